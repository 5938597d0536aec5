"""What a picture of the emoji world shows, by the nearest rendered alternative: ground, place, size and pose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from subjectgen.data.render import Look, ReferencePose, Renderer, layers_of
from subjectgen.data.sightings import PAPER, turn_words
from subjectgen.data.world import COLOURS, PLACES, POSES, SIDE, SIZES, Placement, Scene

ALIKE = 20.0  # dB between two poses of a subject from which nobody can tell them apart: a ball has no upside
OFF = 0.25  # of half a side: from there on a subject is not in the middle; a large one in a corner is at .31
Pixels = Float[Tensor, "3 side side"]  # -1..1


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a picture, a request or a reference shows of one subject; `poses` are all that look the same."""

    ground: str  # the colour
    place: str
    size: str
    poses: tuple[str, ...]


def asked_of(scene: Scene, k: int) -> Shown:
    """What a scene asks of its subject k."""
    placement = scene.placements[k]
    return Shown(ground=scene.ground.colour, place=placement.place, size=placement.size, poses=(placement.pose,))


def of_reference(pose: ReferencePose) -> Shown:
    """What a reference shows, in the words of scenes."""
    column, row = (0 if centre < -OFF else 1 if centre <= OFF else 2 for centre in (pose.x, pose.y))
    size = min(SIZES, key=lambda size: abs(SIZES[size] - pose.scale * SIDE))
    ground = pose.ground or PAPER
    return Shown(ground=ground.colour, place=PLACES[3 * row + column], size=size, poses=(turn_words(pose),))


class SceneReader:
    """Reads pictures that were asked for by one scene; what is drawn for the first is kept for the next.

    Place and size are found by outlines, whatever has been painted in them; the pose by what is nearest there.
    """

    def __init__(self, renderer: Renderer, scene: Scene, looks: Sequence[Look]):
        self.scene, self.inside = scene, box_mask(scene)
        coloured = [scene.with_colour(colour) for colour in COLOURS]
        self.full = renderer.scenes(coloured, [list(looks)] * len(coloured))
        self.grounds = renderer.scenes([replace(each, placements=()) for each in coloured], [[]] * len(coloured))
        self.elsewhere = [~box_mask(replace(scene, placements=self._others(k))) for k in range(len(looks))]
        self.free = [self._free(k) for k in range(len(looks))]
        self.drawn = [self._drawn(renderer, look, self.free[k]) for k, look in enumerate(looks)]

    def read(self, picture: Pixels, k: int) -> Shown:
        """What a picture shows of subject k, whatever the other subjects do."""
        ground = nearest(picture, self.full, ~self.inside)
        place, size = self.outline(picture, ground, k)
        poses = self.drawn[k][place, size]
        renders, touched = over(poses, self.grounds[ground]), (poses[:, 3] > 0).any(0)
        shown = renders[nearest(picture, renders, self.elsewhere[k])]
        alike = [name for name, each in zip(POSES, renders, strict=True) if same(each, shown, touched)]
        colour, names = list(COLOURS)[ground], list(SIZES)
        return Shown(ground=colour, place=self.free[k][place], size=names[size], poses=tuple(alike))

    def outline(self, picture: Pixels, ground: int, k: int) -> tuple[int, int]:
        """Place (of those free for subject k) and size whose outline, in any pose, is most like what is not ground."""
        painted = apart(picture, self.grounds[ground])
        alike = correlation(self.drawn[k][:, :, :, 3], painted, self.elsewhere[k]).amax(2)
        place, size = divmod(int(alike.argmax()), len(SIZES))
        return place, size

    def _drawn(
        self, renderer: Renderer, look: Look, places: Sequence[str]
    ) -> Float[Tensor, "places sizes poses 4 side side"]:
        """A subject alone, premultiplied with alpha."""
        kinds = [Placement(place=place, size=size, pose=pose) for place in places for size in SIZES for pose in POSES]
        scenes = [replace(self.scene, placements=(kind,)) for kind in kinds]
        drawn = renderer.draw(layers_of(scenes, [[look]] * len(scenes)), renderer.small)
        return rearrange(drawn, "(place size pose) c h w -> place size pose c h w", size=len(SIZES), pose=len(POSES))

    def _others(self, k: int) -> tuple[Placement, ...]:
        return self.scene.placements[:k] + self.scene.placements[k + 1 :]

    def _free(self, k: int) -> list[str]:
        """Places that no other subject is to have."""
        return [place for place in PLACES if place not in {other.place for other in self._others(k)}]


def over(drawn: Float[Tensor, "n 4 side side"], ground: Pixels) -> Float[Tensor, "n 3 side side"]:
    """Premultiplied cut-outs laid over a ground, pixels -1..1."""
    alpha = drawn[:, 3:]
    return (ground + 1) * (1 - alpha) + 2 * drawn[:, :3] - 1


def apart(picture: Pixels, ground: Pixels) -> Float[Tensor, "side side"]:
    """How far each pixel is from a bare ground: the outline of whatever has been painted on it."""
    return (picture - ground).norm(dim=0).sqrt()


def correlation(
    outlines: Float[Tensor, "*kinds side side"],
    painted: Float[Tensor, "side side"],
    where: Bool[Tensor, "side side"],
) -> Float[Tensor, "*kinds"]:
    """Pearson's, over the pixels of a region; 0 where either is the same everywhere."""
    shapes, values = outlines[..., where], painted[where]
    shapes, values = shapes - shapes.mean(-1, keepdim=True), values - values.mean()
    return shapes @ values / (shapes.norm(dim=-1) * values.norm()).clamp(min=1e-6)


def same(first: Pixels, second: Pixels, where: Bool[Tensor, "side side"]) -> bool:
    """Whether nobody can tell two pictures apart in a region."""
    return psnr(first[:, where], second[:, where]) >= ALIKE


def box_mask(scene: Scene) -> Bool[Tensor, "side side"]:
    """Inside the subjects' boxes."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for left, top, right, bottom in (box for placement in scene.placements for box in placement.boxes()):
        mask[top:bottom, left:right] = True
    return mask


def nearest(
    picture: Float[Tensor, "3 side side"], candidates: Float[Tensor, "n 3 side side"], where: Bool[Tensor, "side side"]
) -> int:
    """Index of the candidate with the least squared error in a region."""
    return int(errors_of(picture, candidates, where).argmin())


def errors_of(
    picture: Float[Tensor, "3 side side"], candidates: Float[Tensor, "n 3 side side"], where: Bool[Tensor, "side side"]
) -> Float[Tensor, " n"]:
    """Squared error of each candidate in a region."""
    error = (candidates - picture).square() * where
    return rearrange(error, "n c h w -> n (c h w)").sum(1)


def psnr(picture: Float[Tensor, "..."], truth: Float[Tensor, "..."]) -> float:
    """Peak signal to noise ratio in dB of pixels -1..1."""
    return float(10 * torch.log10(4 / (picture - truth).square().mean().clamp(min=1e-10)))
