"""Stages: what each range of sigma is given."""

import pytest

from subjectgen.generate.stages import STAGE_PRESETS, Stage, resolve_stages, split_steps, stage_at


def test_paper_is_equation_5():
    """t >= .95: meaning only; .85 <= t < .95: both; t < .85: identity only."""
    paper = resolve_stages("paper")
    expected = {1.0: (1, 0), 0.95: (1, 0), 0.9499: (1, 1), 0.85: (1, 1), 0.8499: (0, 1), 0.0: (0, 1)}
    for sigma, weights in expected.items():
        stage = stage_at(paper, sigma)
        assert (stage.semantic, stage.identity) == weights


@pytest.mark.parametrize("name", STAGE_PRESETS)
def test_presets_are_valid_lists_too(name):
    assert resolve_stages(list(STAGE_PRESETS[name])) == resolve_stages(name)


def test_mappings_stand_for_stages():
    given = [{"until": 0.5, "identity": 0.0, "guidance": 2}, {"until": 0}]
    assert resolve_stages(given) == (Stage(0.5, 1.0, 0.0, 2), Stage(0))


def test_steps_split_without_remainder():
    stages = (Stage(0.7), Stage(0.3), Stage(0.0))
    assert split_steps(stages, [1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1]) == [3, 2, 2]
    assert split_steps((Stage(0.99), Stage(0.0)), [0.5, 0.1]) == [0, 2]
    assert split_steps((Stage(0.5), Stage(0.0)), [1.0, 0.6]) == [2, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("papper", "'papper'.*paper, free, faithful"),
        ([], "expected one of paper"),
        (3, "expected one of paper"),
        ({"until": 0}, "expected one of paper"),
        ([Stage(0.5)], "last stage ends at 0.5"),
        ([Stage(0.2), Stage(0.5), Stage(0.0)], "falling"),
        ([Stage(0.5), Stage(0.5), Stage(0.0)], "falling"),
        ([0.5, 0.0], "stage 0.5"),
        ([{"until": 0, "identitty": 1}], "identitty"),
        ([{"identity": 1}], "until"),
        ([{"until": 1.5}], "until=1.5"),
        ([{"until": 0, "semantic": -0.1}], "semantic=-0.1"),
        ([{"until": 0, "identity": float("nan")}], "identity=nan"),
    ],
)
def test_wrong_stages_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        resolve_stages(value)
