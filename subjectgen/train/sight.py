"""Phase 2: the tower of the MLLM of mini learns to see, by the truth about references, before it learns to speak."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor, nn

from subjectgen.data.batches import cluttered_pose, random_looks, random_reference_pose
from subjectgen.data.render import ReferencePose, Renderer
from subjectgen.data.rough import roughened
from subjectgen.data.sightings import POSES_SEEN, Sighting, sighting
from subjectgen.data.world import COLOURS, PATTERNS, SIDE
from subjectgen.evaluate.sheet import picture_grid
from subjectgen.train.attention import attention_of
from subjectgen.train.mini_mllm import export, trained, untrained

Loss = Callable[[Tensor, Sequence[Sighting]], Tensor]
SHARE_ALONE = 0.4  # of the views
BOX_WEIGHT = 4.0  # of the box's error, in sides of the picture, against the entropies in nats
LIKENESS = 64  # numbers that tell a subject from others
TEMPERATURE = 0.1  # of their cosines


class Heads(nn.Module):
    """What is to be read off the image tokens of one picture, each by one linear layer; thrown away after training."""

    def __init__(self, names: Sequence[str], width: int):
        """width: of all image tokens of a picture together."""
        super().__init__()
        self.names = list(names)
        sizes = {"name": len(names), "colours": 2 * len(COLOURS), "pose": len(POSES_SEEN), "box": 4}
        sizes |= {"ground": len(COLOURS), "pattern": len(PATTERNS), "likeness": LIKENESS}
        self.read = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, tokens: Float[Tensor, "b t width"]) -> dict[str, Float[Tensor, "b n"]]:
        """Logits of each, and the box in sides of the picture."""
        return {name: read(tokens.flatten(1)).float() for name, read in self.read.items()}


class SightPhase:
    """What a reference shows, by classification and regression: fast, as no words are in the way.

    Each subject of a batch is there twice, the second time turned, placed and roughened otherwise. To know it again is
    learnt by contrast (InfoNCE, arXiv 1807.03748), which, unlike names, holds for what was never seen. Hues are any, so
    that colours are not learnt by heart.
    """

    name = "sight"

    def __init__(self, renderer: Renderer, *, start: Path | None = None, batch_size: int = 128, seed: int = 0):
        """start: a folder with the `mllm` and `processor` to go on from; untrained ones if left out.

        Raises ValueError for a batch that is not made of pairs.
        """
        if batch_size % 2:
            raise ValueError(f"batch_size={batch_size}: expected an even number, as every subject is there twice")
        self.renderer, self.batch_size, self.seed = renderer, batch_size, seed
        torch.manual_seed(seed)
        names = tuple(dict.fromkeys(renderer.names))  # variants share theirs
        self.processor, mllm = untrained(names) if start is None else trained(start)
        self.mllm = mllm.to(renderer.device)  # type: ignore[arg-type]  (hidden by a decorator)
        width = self.processor.image_seq_length * mllm.config.text_config.hidden_size  # type: ignore[union-attr]  (built by now)
        heads = Heads(names, width).to(renderer.device)
        parts = {"tower": mllm.model.vision_tower, "projector": mllm.model.multi_modal_projector, "heads": heads}
        self.model = nn.ModuleDict(parts)
        self.heads = heads

    @property
    def networks(self) -> list[nn.Module]:
        """Tower, projector and heads."""
        return list(self.model.children())

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """All losses together, and how often the main colour and the pose are right."""
        pixels, seen = self.batch((self.seed, step))
        told = self.told(pixels)
        losses = losses_of(told, seen, self.heads.names)
        right = {name: share.mean().item() for name, share in rightly(told, seen).items()}
        return sum(losses.values(), torch.zeros((), device=pixels.device)), right

    def batch(self, seed: tuple[int, int]) -> tuple[Float[Tensor, "b 3 side side"], list[Sighting]]:
        """Half as many subjects as pictures, in two views each: all first ones, then all second ones; and the truth."""
        rng = np.random.default_rng(seed)
        looks = [random_looks(rng, len(self.renderer.names), 1)[0] for _ in range(self.batch_size // 2)]
        looks = [replace(look, hue=float(rng.integers(360))) for look in looks] * 2
        poses = [seen_pose(rng, len(self.renderer.names)) for _ in looks]
        seen = [sighting(self.renderer, *pair) for pair in zip(looks, poses, strict=True)]
        first, second = self.renderer.references(looks, poses).chunk(2)
        return torch.cat([first, roughened(rng, second)]), seen

    def told(self, pixels: Float[Tensor, "b 3 side side"]) -> dict[str, Float[Tensor, "b n"]]:
        """What the heads read off pictures."""
        with torch.autocast(pixels.device.type, torch.bfloat16), attention_of(pixels.device):
            tokens = self.mllm.model.get_image_features(pixels).pooler_output  # type: ignore[union-attr]  (no tuple)
            return self.heads(tokens)

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """References with the boxes that the model sees, and what else it sees."""
        pixels, _ = self.batch((self.seed + 1, 0))
        pixels = pixels[:8]
        told = self.told(pixels)
        sheet = Image.new("RGB", (SIDE * 6, SIDE * len(pixels)), "white")
        sheet.paste(picture_grid(pixels, columns=1), (0, 0))
        draw = ImageDraw.Draw(sheet)
        for row, box in enumerate(told["box"].tolist()):
            left, top, right, bottom = (edge * SIDE for edge in box)
            edges = (min(left, right), top + row * SIDE, max(left, right), max(top, bottom) + row * SIDE)
            draw.rectangle(edges, outline="red")
            words = (
                self.heads.names[told["name"][row].argmax()],
                list(COLOURS)[told["colours"][row, : len(COLOURS)].argmax()],
                POSES_SEEN[told["pose"][row].argmax()],
            )
            draw.text((SIDE + 8, SIDE * row + SIDE // 2), ", ".join(words), fill="black", font_size=20)
        return sheet

    def export(self, folder: Path) -> None:
        """Save the whole MLLM and its processor, for `--phase mllm` to go on from."""
        export(self.mllm, self.processor, folder)


def seen_pose(rng: np.random.Generator, num_subjects: int) -> ReferencePose:
    """Turned, mirrored as often as not: twice as many things to learn from which way up they are. Some stand alone on
    white paper and large, where that is learnt first.
    """
    pose = cluttered_pose(rng, num_subjects)
    if rng.random() < SHARE_ALONE:
        pose = replace(random_reference_pose(rng), degrees=pose.degrees)
    return replace(pose, mirrored=bool(rng.random() < 0.5))


def losses_of(told: dict[str, Tensor], seen: Sequence[Sighting], names: Sequence[str]) -> dict[str, Tensor]:
    """The error of each head."""
    device = told["box"].device
    main, listed = told["colours"].chunk(2, dim=-1)
    return {
        "name": F.cross_entropy(told["name"], index([each.name for each in seen], names, device)),
        "main": F.cross_entropy(main, index([each.colours[0] for each in seen], list(COLOURS), device)),
        "colours": F.binary_cross_entropy_with_logits(listed, which([each.colours for each in seen], device)),
        "pose": F.cross_entropy(told["pose"], index([each.pose for each in seen], POSES_SEEN, device)),
        "box": F.l1_loss(told["box"], torch.tensor([each.box for each in seen], device=device) / 100) * BOX_WEIGHT,
        "ground": F.cross_entropy(told["ground"], index([each.ground.colour for each in seen], list(COLOURS), device)),
        "pattern": F.cross_entropy(told["pattern"], index([each.ground.pattern for each in seen], PATTERNS, device)),
        "likeness": contrast(alike(told["likeness"])),
    }


def alike(likeness: Float[Tensor, "b n"]) -> Float[Tensor, "half half"]:
    """Cosines of all first views with all second ones."""
    first, second = F.normalize(likeness, dim=-1).chunk(2)
    return first @ second.T


def contrast(cosines: Float[Tensor, "half half"]) -> Tensor:
    """How surprising it is that each view belongs to the other of the same number, both ways."""
    logits, own = cosines / TEMPERATURE, torch.arange(len(cosines), device=cosines.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def rightly(told: dict[str, Tensor], seen: Sequence[Sighting]) -> dict[str, Tensor]:
    """Which pictures are read right."""
    device = told["box"].device
    main = told["colours"][:, : len(COLOURS)].argmax(-1) == index([s.colours[0] for s in seen], list(COLOURS), device)
    pose = told["pose"].argmax(-1) == index([s.pose for s in seen], POSES_SEEN, device)
    box = (told["box"] - torch.tensor([s.box for s in seen], device=device) / 100).abs()
    known = alike(told["likeness"]).argmax(-1) == torch.arange(len(seen) // 2, device=device)
    return {"main": main.float(), "posed": pose.float(), "off": box, "known": known.float()}


def index(values: Sequence[str], options: Sequence[str], device: torch.device) -> Tensor:
    return torch.tensor([options.index(value) for value in values], device=device)


def which(sets: Sequence[Sequence[str]], device: torch.device) -> Float[Tensor, "b colours"]:
    """1 where a colour is listed."""
    return torch.tensor([[float(colour in each) for colour in COLOURS] for each in sets], device=device)
