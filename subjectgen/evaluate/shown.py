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
    column, row = (0 if centre < -1 / 3 else 1 if centre <= 1 / 3 else 2 for centre in (pose.x, pose.y))
    size = min(SIZES, key=lambda size: abs(SIZES[size] - pose.scale * SIDE))
    ground = pose.ground or PAPER
    return Shown(ground=ground.colour, place=PLACES[3 * row + column], size=size, poses=(turn_words(pose),))


class SceneReader:
    """Reads pictures that were asked for by one scene; what is rendered for the first is kept for the next."""

    def __init__(self, renderer: Renderer, scene: Scene, looks: Sequence[Look]):
        self.renderer, self.scene, self.looks = renderer, scene, list(looks)
        self.inside = box_mask(scene)
        coloured = [scene.with_colour(colour) for colour in COLOURS]
        self.grounds = renderer.scenes(coloured, [self.looks] * len(coloured))
        self.empty = renderer.scenes([replace(each, placements=()) for each in coloured], [[]] * len(coloured))
        self.outlines = [self._outlines(k) for k in range(len(self.looks))]

    def read(self, picture: Pixels, k: int) -> Shown:
        """What a picture shows of subject k, whatever the other subjects do."""
        ground = nearest(picture, self.grounds, ~self.inside)
        placement = replace(self.scene.placements[k], place=self.place(picture, ground, k))
        sizes = [replace(placement, size=size) for size in SIZES]
        widest = box_mask(replace(self.scene, placements=(sizes[-1],))) & self._elsewhere(k)
        placement = sizes[nearest(picture, self._renders(sizes, ground, k), widest)]
        poses = self._poses(picture, placement, ground, k)
        return Shown(ground=list(COLOURS)[ground], place=placement.place, size=placement.size, poses=poses)

    def place(self, picture: Pixels, ground: int, k: int) -> str:
        """Where the subject's outline holds most of what is not ground, whatever has been painted there."""
        painted = (picture - self.empty[ground]).square().sum(0)
        elsewhere = self._elsewhere(k)
        within, without = self.outlines[k] * elsewhere, (1 - self.outlines[k]) * elsewhere
        inner = (painted * within).sum((1, 2)) / within.sum((1, 2)).clamp(min=1)
        outer = (painted * without).sum((1, 2)) / without.sum((1, 2)).clamp(min=1)
        free = torch.tensor([place in self._free(k) for place in PLACES])
        return PLACES[int((inner - outer).where(free, -torch.inf).argmax())]

    def _poses(self, picture: Pixels, placement: Placement, ground: int, k: int) -> tuple[str, ...]:
        """The nearest pose, and those of which nobody can tell it apart."""
        where = box_mask(replace(self.scene, placements=(placement,)))
        renders = self._renders([replace(placement, pose=pose) for pose in POSES], ground, k)
        first = nearest(picture, renders, where)
        return tuple(
            pose
            for pose, render in zip(POSES, renders, strict=True)
            if psnr(render[:, where], renders[first][:, where]) >= ALIKE
        )

    def _renders(self, placements: Sequence[Placement], ground: int, k: int) -> Float[Tensor, "n 3 side side"]:
        """Subject k alone in each placement, on a ground of the colour of this number."""
        coloured = self.scene.with_colour(list(COLOURS)[ground])
        scenes = [replace(coloured, placements=(placement,)) for placement in placements]
        return self.renderer.scenes(scenes, [[self.looks[k]]] * len(scenes))

    def _outlines(self, k: int) -> Float[Tensor, "places side side"]:
        """How much of each pixel subject k covers in each place."""
        scenes = [replace(self.scene, placements=(replace(self.scene.placements[k], place=place),)) for place in PLACES]
        return self.renderer.draw(layers_of(scenes, [[self.looks[k]]] * len(scenes)), self.renderer.small)[:, 3]

    def _others(self, k: int) -> tuple[Placement, ...]:
        return self.scene.placements[:k] + self.scene.placements[k + 1 :]

    def _elsewhere(self, k: int) -> Bool[Tensor, "side side"]:
        """Where the other subjects are not to stand."""
        return ~box_mask(replace(self.scene, placements=self._others(k)))

    def _free(self, k: int) -> list[str]:
        """Places that no other subject is to have."""
        return [place for place in PLACES if place not in {other.place for other in self._others(k)}]


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
    error = (candidates - picture).square() * where
    return int(rearrange(error, "n c h w -> n (c h w)").sum(1).argmin())


def psnr(picture: Float[Tensor, "..."], truth: Float[Tensor, "..."]) -> float:
    """Peak signal to noise ratio in dB of pixels -1..1."""
    return float(10 * torch.log10(4 / (picture - truth).square().mean().clamp(min=1e-10)))
