"""Draws references and scenes of the emoji world in batches by torch, on any device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from subjectgen.data.subjects import Subjects
from subjectgen.data.world import COLOURS, PATTERNS, POSES, SIDE, SIZES, Ground, Scene

TEXTURE = 64  # pixels of the texture that scenes draw from; references draw from the full cut-out
SKY = (190, 220, 245)
PAPER = 255.0
BESIDE = 0.28  # of the picture's side: a second thing in a reference
Colour = tuple[float | int, ...]  # red, green, blue, 0..255


@dataclass(frozen=True, kw_only=True)
class Look:
    """A subject in one colouring: the name alone does not tell the look."""

    subject: int
    hue: float = 0.0  # degrees


@dataclass(frozen=True, kw_only=True)
class ReferencePose:
    """How a subject stands in its reference, and what else is there: nothing but white paper, if nothing is said."""

    degrees: float = 0.0
    scale: float = 0.8  # of the picture's side
    x: float = 0.0  # centre, -1..1
    y: float = 0.0
    mirrored: bool = False  # before it is turned
    ground: Ground | None = None
    beside: Look | None = None  # a second, smaller thing in the corner farthest from the subject

    @property
    def corner(self) -> tuple[float, float]:
        """Where the second thing has its centre."""
        return math.copysign(1 - BESIDE, -self.x), math.copysign(1 - BESIDE, -self.y)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Subjects to draw: layer i goes over picture `picture[i]`, in order."""

    picture: list[int]
    looks: list[Look]
    size: list[float]  # of the picture's side
    degrees: list[float]
    mirrored: list[bool]
    centre: list[tuple[float, float]]  # x, y in -1..1


class Renderer:
    """Cut-outs and grounds kept on one device, ready to be composed."""

    def __init__(self, subjects: Subjects, device: str | torch.device = "cpu"):
        self.names, self.device = subjects.names, torch.device(device)
        full = subjects.rgba.to(self.device, torch.float32) / 255
        full = torch.cat([full[:, :3] * full[:, 3:], full[:, 3:]], dim=1)  # premultiplied: no dark fringes
        self.full = full.half() if self.device.type == "cuda" else full
        small = F.interpolate(full, size=(TEXTURE, TEXTURE), mode="bilinear", antialias=True)
        self.small = small.half() if self.device.type == "cuda" else small
        self.words: dict[Look, tuple[str, ...]] = {}  # colour words of looks asked for before
        self.extents = [alpha_extent(subject[3]) for subject in small.float().cpu()]

    def references(self, looks: Sequence[Look], poses: Sequence[ReferencePose]) -> Float[Tensor, "n 3 side side"]:
        """Each subject on its ground, before what is beside it; pixels -1..1."""
        paper = torch.ones(len(looks), 3, SIDE, SIDE, device=self.device)
        patterned = [index for index, pose in enumerate(poses) if pose.ground is not None]
        if patterned:
            paper[patterned] = self.grounds([pose.ground for pose in poses if pose.ground is not None])
        return self.compose(paper, reference_layers(looks, poses), self.full)

    def scenes(self, scenes: Sequence[Scene], looks: Sequence[Sequence[Look]]) -> Float[Tensor, "b 3 side side"]:
        """The rendered truth of each scene with its subjects, pixels -1..1."""
        return self.compose(self.grounds([scene.ground for scene in scenes]), layers_of(scenes, looks), self.small)

    def outlines(self, scenes: Sequence[Scene], looks: Sequence[Sequence[Look]]) -> Float[Tensor, "b side side"]:
        """Where each scene shows a subject, by its alpha; subjects that overlap add up."""
        layers = layers_of(scenes, looks)
        alpha = self.draw(layers, self.small)[:, 3]
        picture = torch.tensor(layers.picture, device=self.device)
        return alpha.new_zeros(len(scenes), SIDE, SIDE).index_add(0, picture, alpha)

    def coloured(self, look: Look) -> Float[Tensor, "4 texture texture"]:
        """A small cut-out in its colouring, not premultiplied."""
        rgba = hue_shift(self.small[look.subject][None].float(), torch.tensor([look.hue], device=self.device))[0]
        return torch.cat([rgba[:3] / rgba[3:].clamp(min=1e-3), rgba[3:]])

    def reference_box(self, look: Look, pose: ReferencePose) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a subject in its reference, in percent of the side."""
        corners = self.extents[look.subject] * (-1 if pose.mirrored else 1, 1) * pose.scale
        angle = math.radians(-pose.degrees)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        points = corners @ turn.T + (pose.x, pose.y)
        edges = np.concatenate([points.min(0), points.max(0)])
        return tuple(round(edge) for edge in ((edges + 1) * 50).clip(0, 100))  # type: ignore[return-value]

    def grounds(self, grounds: Sequence[Ground]) -> Float[Tensor, "b 3 side side"]:
        """Backgrounds, pixels 0..1."""
        mask = pattern_masks(self.device)[[PATTERNS.index(ground.pattern) for ground in grounds]]
        pairs = torch.tensor([ground_colours(ground) for ground in grounds], device=self.device) / 255
        first, second = pairs.unbind(1)
        return first[:, :, None, None] * (1 - mask[:, None]) + second[:, :, None, None] * mask[:, None]

    def compose(
        self, canvas: Float[Tensor, "b 3 side side"], layers: Layers, texture: Tensor
    ) -> Float[Tensor, "b 3 side side"]:
        """Draw the layers over the canvas (0..1) in order; returns pixels -1..1."""
        if layers.picture:
            drawn = self.draw(layers, texture)
            for index in passes(layers.picture):
                picture = torch.tensor([layers.picture[i] for i in index], device=self.device)
                colour, alpha = drawn[index, :3], drawn[index, 3:]
                canvas[picture] = canvas[picture] * (1 - alpha) + colour
        return canvas.clamp(0, 1) * 2 - 1

    def draw(self, layers: Layers, texture: Tensor) -> Float[Tensor, "n 4 side side"]:
        """Turn, scale, move and recolour the cut-outs by one affine grid."""
        subject = torch.tensor([look.subject for look in layers.looks], device=self.device)
        grid = F.affine_grid(affine(layers).to(self.device), [len(subject), 4, SIDE, SIDE], align_corners=False)
        picked = hue_shift(texture[subject], torch.tensor([look.hue for look in layers.looks], device=self.device))
        return F.grid_sample(picked, grid.to(picked.dtype), align_corners=False).float()


def layers_of(scenes: Sequence[Scene], looks: Sequence[Sequence[Look]]) -> Layers:
    """Flatten scenes into layers: every copy of every subject of every picture."""
    layers = Layers(picture=[], looks=[], size=[], degrees=[], mirrored=[], centre=[])
    for picture, (scene, scene_looks) in enumerate(zip(scenes, looks, strict=True)):
        for placement, look in zip(scene.placements, scene_looks, strict=True):
            for x, y in placement.centres():
                layers.picture.append(picture)
                layers.looks.append(look)
                layers.size.append(SIZES[placement.size] / SIDE)
                layers.degrees.append(POSES[placement.pose])
                layers.mirrored.append(placement.pose == "mirrored")
                layers.centre.append((x / SIDE * 2 - 1, y / SIDE * 2 - 1))
    return layers


def reference_layers(looks: Sequence[Look], poses: Sequence[ReferencePose]) -> Layers:
    """The subject of each reference, after the second thing of those that have one."""
    layers = Layers(picture=[], looks=[], size=[], degrees=[], mirrored=[], centre=[])
    for picture, (look, pose) in enumerate(zip(looks, poses, strict=True)):
        subject = (look, pose.scale, pose.degrees, pose.mirrored, (pose.x, pose.y))
        things = [subject] if pose.beside is None else [(pose.beside, BESIDE, 0.0, False, pose.corner), subject]
        for thing, size, degrees, mirrored, centre in things:
            layers.picture.append(picture)
            layers.looks.append(thing)
            layers.size.append(size)
            layers.degrees.append(degrees)
            layers.mirrored.append(mirrored)
            layers.centre.append(centre)
    return layers


def passes(picture: list[int]) -> list[list[int]]:
    """Split layers into rounds in which no picture occurs twice, keeping the order within a picture."""
    rounds: list[list[int]] = []
    seen: dict[int, int] = {}
    for index, target in enumerate(picture):
        turn = seen.get(target, 0)
        seen[target] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(index)
    return rounds


def affine(layers: Layers) -> Float[Tensor, "n 2 3"]:
    """Inverse maps (output to texture) of each layer, as `affine_grid` wants them."""
    angle = np.radians(np.asarray(layers.degrees))
    size, centre = np.asarray(layers.size), np.asarray(layers.centre)
    flip = np.where(layers.mirrored, -1.0, 1.0)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    turn = np.stack([np.stack([flip * cos, flip * -sin], -1), np.stack([sin, cos], -1)], 1)
    shift = -np.einsum("nij,nj->ni", turn, centre)
    return torch.from_numpy(np.concatenate([turn, shift[..., None]], -1)).float()


def hue_shift(rgba: Float[Tensor, "n 4 side2 side2"], degrees: Float[Tensor, " n"]) -> Float[Tensor, "n 4 side2 side2"]:
    """Rotate colours about the gray axis; brightness stays, alpha is untouched."""
    radians = torch.deg2rad(degrees.float())
    cos, sin = torch.cos(radians)[:, None, None], torch.sin(radians)[:, None, None]
    third, root = torch.full((3, 3), 1 / 3, device=rgba.device), math.sqrt(1 / 3)
    cross = torch.tensor([[0.0, -root, root], [root, 0.0, -root], [-root, root, 0.0]], device=rgba.device)
    matrix = cos * torch.eye(3, device=rgba.device) + (1 - cos) * third + sin * cross
    alpha = rgba[:, 3:]
    flat = rearrange(rgba[:, :3], "n c h w -> n c (h w)")
    turned = rearrange(matrix.to(rgba.dtype) @ flat, "n c (h w) -> n c h w", h=rgba.shape[2])
    return torch.cat([turned.clamp(min=0).minimum(alpha), alpha], dim=1)


def ground_colours(ground: Ground) -> tuple[Colour, Colour]:
    """First and second colour of a pattern."""
    colour = COLOURS[ground.colour]
    if ground.pattern == "hills":
        return colour, SKY
    light = sum(colour) < 3 * 150
    toward, share = (PAPER, 0.35) if light else (0.0, 0.25)
    return colour, tuple(channel * (1 - share) + toward * share for channel in colour)


def alpha_extent(alpha: Float[Tensor, "texture texture"]) -> np.ndarray:
    """Outline points (x, y in -1..1) of a cut-out: the corners of every row."""
    rows, columns = np.nonzero(alpha.numpy() > 0.3)
    ends = [(c, r) for r in np.unique(rows) for c in (columns[rows == r].min(), columns[rows == r].max() + 1)]
    corners = [(c, y) for c, r in ends for y in (r, r + 1)]
    return np.array(corners) / alpha.shape[-1] * 2 - 1


@lru_cache(maxsize=4)
def pattern_masks(device: torch.device) -> Float[Tensor, "patterns side side"]:
    """How much of the second colour each pattern shows at each pixel, in PATTERNS' order."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    cell = SIDE / 8
    dots = ((x % cell - cell / 2) ** 2 + (y % cell - cell / 2) ** 2).sqrt()
    hills = SIDE * 0.55 + 6 * torch.sin(x / SIDE * 4 * math.pi)
    masks = {
        "plain": torch.zeros_like(x),
        "striped": ((x // cell) % 2),
        "checkered": ((x // cell + y // cell) % 2),
        "dotted": (cell * 0.3 - dots + 0.5).clamp(0, 1),
        "gradient": y / SIDE,
        "hills": (hills - y + 0.5).clamp(0, 1),
        "room": (y > SIDE * 0.7).float(),
    }
    return torch.stack([masks[name] for name in PATTERNS]).to(device)


def colour_words_of(renderer: Renderer, look: Look) -> tuple[str, ...]:
    """The one to three colours that cover most of a subject as it looks."""
    if look not in renderer.words:
        renderer.words[look] = tuple(colour_words(renderer.coloured(look)))
    return renderer.words[look]


def colour_words(rgba: Float[Tensor, "4 h w"], share: float = 0.18) -> list[str]:
    """The colours that cover at least this share (the largest always), by nearest palette colour, largest first."""
    opaque = rgba[:3, rgba[3] > 0.5].T.float() * 255
    palette = torch.tensor(list(COLOURS.values()), device=rgba.device).float()
    counts = torch.bincount(torch.cdist(opaque, palette).argmin(-1), minlength=len(palette)) / max(len(opaque), 1)
    order = counts.argsort(descending=True)[:3].tolist()
    return [list(COLOURS)[i] for n, i in enumerate(order) if n == 0 or counts[i] >= share]
