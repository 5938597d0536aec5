"""Guidance: which passes run, what they see, and what is made of them."""

import pytest
import torch
from tiny_flux import GRID, NULL, identity, noise, semantic, tiny_flux

from subjectgen.generate.guide import Guidance, guided, needs_negative, plan
from subjectgen.generate.stages import Stage, resolve_stages
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.types import Condition

BOTH, TEXT_ONLY, IDENTITY_ONLY = Stage(0.0), Stage(0.0, identity=0.0), Stage(0.0, semantic=0.0)
SIGMA = torch.tensor(0.6)


def subject() -> Condition:
    return Condition(semantic=semantic(7, 1), identity=identity((3, 4), seed=2))


def negative_of(condition: Condition) -> Condition:
    return Condition(semantic=semantic(3, 5), identity=condition.identity)


def velocity(denoiser, condition: Condition, stage: Stage = BOTH) -> torch.Tensor:
    context = denoiser.prepare([condition], GRID, stage.semantic, stage.identity, NULL)
    return denoiser.velocity(noise(), SIGMA, context)


def counted(guidance: Guidance, stage: Stage, condition: Condition, negative: Condition) -> int:
    """Forwards of the transformer for one step; joint mode reads nothing beforehand."""
    transformer, forwards = tiny_flux(), []
    transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    guided(FluxDenoiser(transformer, "joint"), [condition], [negative], guidance, GRID, NULL)(stage)(noise(), SIGMA)
    return len(forwards)


TWO_TERMS = [
    # negative, stage, passes
    ("empty_text", BOTH, 2),
    ("empty_text", TEXT_ONLY, 2),
    ("empty_text", IDENTITY_ONLY, 1),  # the trap: the negative keeps the references, so it is the same pass
    ("no_identity", BOTH, 2),
    ("no_identity", TEXT_ONLY, 2),
    ("no_identity", IDENTITY_ONLY, 2),
    ("no_condition", BOTH, 2),
    ("no_condition", IDENTITY_ONLY, 2),
    ("no_condition", Stage(0.0, semantic=0.0, identity=0.0), 1),
]


@pytest.mark.parametrize(("negative", "stage", "passes"), TWO_TERMS)
def test_no_pass_is_paid_twice(negative, stage, passes):
    assert counted(Guidance(scale=2.5, negative=negative), stage, subject(), negative_of(subject())) == passes
    assert counted(Guidance(scale=1, negative=negative), stage, subject(), negative_of(subject())) == 1


@pytest.mark.parametrize(
    ("guidance", "stage", "passes"),
    [
        (Guidance(identity=2.0, text=3.0), BOTH, 3),
        (Guidance(identity=2.0, text=3.0), IDENTITY_ONLY, 2),  # v_id is v
        (Guidance(identity=2.0, text=2.0), BOTH, 2),  # v_id cancels
        (Guidance(identity=1.0, text=2.0), BOTH, 2),  # v_none cancels
        (Guidance(identity=1.0, text=1.0), BOTH, 1),
    ],
)
def test_three_terms_pay_for_what_counts(guidance, stage, passes):
    assert counted(guidance, stage, subject(), negative_of(subject())) == passes


def test_without_references_no_identity_is_empty_text():
    text = Condition(semantic=semantic(7, 1))
    for negative in ("empty_text", "no_identity"):
        assert counted(Guidance(scale=2.5, negative=negative), BOTH, text, text) == 1
        assert counted(Guidance(scale=2.5, negative=negative), BOTH, text, negative_of(text)) == 2
    assert counted(Guidance(scale=2.5), IDENTITY_ONLY, text, negative_of(text)) == 2  # the prompt acts instead


def test_a_negative_that_is_the_prompt_is_not_read():
    condition = subject()
    assert counted(Guidance(scale=2.5), BOTH, condition, condition) == 1


@pytest.mark.parametrize("mode", ["joint", "cached"])
@pytest.mark.parametrize("negative", ["empty_text", "no_identity", "no_condition"])
def test_two_terms_by_hand(mode, negative):
    denoiser, condition = FluxDenoiser(tiny_flux(), mode), subject()
    other = negative_of(condition)
    away = {
        "empty_text": other,
        "no_identity": Condition(semantic=other.semantic),
        "no_condition": Condition(),
    }[negative]
    guidance = Guidance(scale=2.5, negative=negative)
    result = guided(denoiser, [condition], [other], guidance, GRID, NULL)(BOTH)(noise(), SIGMA)
    v, v_negative = velocity(denoiser, condition), velocity(denoiser, away)
    assert torch.allclose(result, v_negative + 2.5 * (v - v_negative), atol=1e-5)


@pytest.mark.parametrize("mode", ["joint", "cached"])
def test_three_terms_by_hand(mode):
    denoiser, condition = FluxDenoiser(tiny_flux(), mode), subject()
    other = negative_of(condition)
    guidance = Guidance(identity=1.5, text=3.0)
    result = guided(denoiser, [condition], [other], guidance, GRID, NULL)(BOTH)(noise(), SIGMA)
    v_none, v_id, v = (velocity(denoiser, each) for each in (Condition(), other, condition))
    assert torch.allclose(result, v_none + 1.5 * (v_id - v_none) + 3.0 * (v - v_id), atol=1e-5)


def test_a_stage_has_the_last_word_on_the_scale():
    assert [len(plan(Stage(0.0, guidance=1.0), Guidance(scale=2.5))), len(plan(BOTH, Guidance(scale=2.5)))] == [1, 2]
    assert [each.share for each in plan(Stage(0.0, guidance=4.0), Guidance())] == [4.0, -3.0]


@pytest.mark.parametrize("guidance", [Guidance(scale=2.5, negative="no_identity"), Guidance(identity=1.5, text=3.0)])
def test_shares_add_up_to_one(guidance):
    for stage in (BOTH, TEXT_ONLY, IDENTITY_ONLY):
        assert sum(each.share for each in plan(stage, guidance)) == pytest.approx(1.0)


def test_the_negative_prompt_is_needed_only_where_it_is_read():
    assert needs_negative(resolve_stages("paper"), Guidance(scale=2.5))
    assert not needs_negative(resolve_stages("paper"), Guidance())
    assert needs_negative([IDENTITY_ONLY], Guidance(scale=2.5))  # by prompts without references
    assert not needs_negative([BOTH], Guidance(scale=2.5, negative="no_condition"))


def test_semantic_tokens_are_read_once_for_all_stages():
    transformer, reads = tiny_flux(), []
    condition = subject()
    other = negative_of(condition)
    velocity_for = guided(FluxDenoiser(transformer), [condition], [other], Guidance(scale=2.0), GRID, NULL)
    transformer.register_forward_pre_hook(lambda *_: reads.append(1))
    for stage in resolve_stages("paper"):
        velocity_for(stage)
    assert len(reads) == 3  # prompt, negative prompt, reference


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative": "nothing"}, "'nothing'.*empty_text, no_identity, no_condition"),
        ({"scale": float("inf")}, "scale=inf: expected a finite number"),
        ({"identity": float("nan"), "text": 1.0}, "identity=nan: expected a finite number"),
        ({"identity": 2.0}, "needs both"),
        ({"identity": 2.0, "text": 2.0, "scale": 3.0}, "two-term"),
    ],
)
def test_unclear_guidance_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)
