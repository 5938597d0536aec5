"""Variants of subjects: many, each another, and as they stood."""

import numpy as np
import pytest
import torch
from torch import Tensor

from subjectgen.data.patchwork import patched, recoloured, with_patchwork
from subjectgen.data.subjects import SIDE, Subjects


def cone(colour: tuple[int, int, int]) -> Tensor:
    """A triangle that is wide at the bottom."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    inside = (columns - SIDE / 2).abs() <= rows / 2
    rgba = torch.tensor([*colour, 255])[:, None, None].expand(4, SIDE, SIDE) * inside
    return rgba.to(torch.uint8)


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return Subjects(names=("cone", "pile"), rgba=torch.stack([cone((250, 120, 10)), cone((20, 60, 200))]))


class TestWithPatchwork:
    def test_own_come_first_and_are_untouched(self, subjects):
        more = with_patchwork(subjects, 3)
        assert more.names == ("cone", "pile") * 4
        assert more.rgba.shape == (8, 4, SIDE, SIDE) and torch.equal(more.rgba[:2], subjects.rgba)

    def test_none(self, subjects):
        assert torch.equal(with_patchwork(subjects, 0).rgba, subjects.rgba)

    def test_same_seed_same_variants(self, subjects):
        first, again, other = (with_patchwork(subjects, 2, seed=seed).rgba for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_each_is_another(self, subjects):
        rgba = with_patchwork(subjects, 5).rgba
        assert len({each.numpy().tobytes() for each in rgba}) == len(rgba)

    def test_still_the_same_way_up(self, subjects):
        for each in with_patchwork(subjects, 10).rgba[2:]:
            opaque = (each[3] > 127).float()
            rows = opaque.sum(1)
            assert rows.max() > 0.55 * SIDE
            assert float((rows * torch.arange(SIDE)).sum() / rows.sum()) > SIDE / 2  # as in a cone


class TestPatched:
    def test_the_piece_stays_within_the_outline(self, subjects):
        """Without stretching nothing would be opaque that was not: a square of the other kind shows it best."""
        thing, other = subjects.rgba
        other = torch.full_like(other, 255)
        for seed in range(10):
            opaque = patched(np.random.default_rng(seed), thing, other)[3] > 127
            assert opaque.float().mean() <= (thing[3] > 127).float().mean() + 0.02

    def test_shows_both(self, subjects):
        thing, _ = subjects.rgba
        striped = torch.full_like(thing, 255)
        striped[:3, ::2] = 0
        pictures = [patched(np.random.default_rng(seed), thing, striped) for seed in range(20)]
        shades = [len(each[:3, each[3] > 250].T.unique(dim=0)) for each in pictures]
        assert min(shades) > 1  # a cone alone has one colour

    def test_its_parts_are_left_alone(self, subjects):
        before = subjects.rgba.clone()
        patched(np.random.default_rng(0), *subjects.rgba)
        assert torch.equal(subjects.rgba, before)


class TestRecoloured:
    def test_alpha_and_gray_stay(self):
        gray = cone((100, 100, 100))
        new = recoloured(np.random.default_rng(3), gray)
        assert torch.equal(new[3], gray[3])
        inside = new[:3, gray[3] > 0]
        assert (inside == inside[0]).all() and 60 <= int(inside[0, 0]) <= 125
