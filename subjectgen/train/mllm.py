"""Phase 3: mini's MLLM, whose tower sees by now, learns to say what it sees and to plan. Frozen afterwards."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor, nn

from subjectgen.data.batches import ALIKE, random_looks, reading_pose
from subjectgen.data.render import Look, ReferencePose, Renderer
from subjectgen.data.rough import roughened
from subjectgen.data.sightings import Sighting, sighting
from subjectgen.data.talks import Talk, judgement_talk, plan_talk, question_talk, random_painted
from subjectgen.data.world import MAX_SUBJECTS, SIDE
from subjectgen.evaluate.sheet import picture_grid
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.train.attention import attention_of
from subjectgen.train.mini_mllm import export, trained

SHARE_OF_JUDGEMENTS = 0.15  # of batches: pictures to be compared with what was asked for
SHARE_OF_REFERENCES = (0.6, 0.25, 0.15)  # batches about one, two, three: a plan must lose none of them
SHARE_OF_PLANS = 0.6  # of the rest; what remains are questions about one reference
SHORT = 4  # questions or judgements for each plan that a batch would have: each teaches a word or two
IGNORED = -100  # label of tokens that are not learned
PAD_TO = 32  # tokens; few lengths, few recompilations


class MllmPhase:
    """Language modelling of answers about rendered references."""

    name = "mllm"

    def __init__(self, renderer: Renderer, start: Path, *, batch_size: int = 16, seed: int = 0):
        """start: a folder with `mllm` and `processor` to go on from: the export of `--phase sight`, or a pipeline."""
        self.renderer, self.batch_size, self.seed = renderer, batch_size, seed
        torch.manual_seed(seed)
        self.processor, model = trained(start)
        self.model = model.to(renderer.device)  # type: ignore[arg-type]  (hidden by a decorator)
        self.model.model.vision_tower.requires_grad_(False)  # sees already; noise from a new reader would spoil it
        self.reader = InternVLReader(self.model, self.processor)

    @property
    def networks(self) -> list[nn.Module]:
        """The MLLM as a whole."""
        return [self.model]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers' tokens."""
        talks, pixels, counts = self.talks(step)
        ids, labels = self.tokens(talks, counts)
        device = self.renderer.device
        with torch.autocast(device.type, torch.bfloat16), attention_of(device):
            out = self.model(input_ids=ids.to(device), pixel_values=pixels, use_cache=False)
        target = labels[:, 1:].to(device)
        loss = F.cross_entropy(out.logits[:, :-1].float().flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        right = (out.logits[:, :-1].argmax(-1) == target)[target != IGNORED].float().mean()
        return loss, {"right": right.item()}

    def talks(self, step: int, seed: int | None = None) -> tuple[list[Talk], Float[Tensor, "n 3 h w"], list[int]]:
        """Exchanges, their pictures in order, and how many pictures each has. Neighbouring batches are of one kind."""
        seed = self.seed if seed is None else seed
        rng, alike = np.random.default_rng((seed, step)), np.random.default_rng((seed, step // ALIKE))
        count = 1 + int(alike.choice(MAX_SUBJECTS, p=SHARE_OF_REFERENCES))
        if alike.random() < SHARE_OF_JUDGEMENTS:
            return self.judgements(rng, count)
        planning = alike.random() < SHARE_OF_PLANS
        number = self.batch_size * (1 if planning else SHORT)
        looks, poses = self.drawn(rng, number, count)
        ask = plan_talk if planning else question_talk
        talks = [ask(rng, each) for each in self.seen(looks, poses)]
        pixels = self.renderer.references(list(chain(*looks)), list(chain(*poses)))
        return talks, pixels, [count] * number

    def judgements(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[Talk], Float[Tensor, "n 3 h w"], list[int]]:
        """So many references and a picture each: is it what was asked for?"""
        number = self.batch_size * SHORT // count
        looks, poses = self.drawn(rng, number, count)
        painted = [random_painted(rng, count) for _ in looks]
        others, _ = self.drawn(rng, number, 1)
        shown = [
            look if each.same_subject else [*other, *look[1:]]
            for look, other, each in zip(looks, others, painted, strict=True)
        ]
        talks = [judgement_talk(rng, *pair) for pair in zip(painted, self.seen(looks, poses), strict=True)]
        references = self.renderer.references(list(chain(*looks)), list(chain(*poses)))
        pictures = roughened(rng, self.renderer.scenes([each.shows for each in painted], shown))
        whole = torch.cat([rearrange(references, "(n r) c h w -> n r c h w", n=number), pictures[:, None]], dim=1)
        return talks, whole.flatten(0, 1), [count + 1] * number

    def seen(self, looks: list[list[Look]], poses: list[list[ReferencePose]]) -> list[list[Sighting]]:
        """What is to be seen in the references of each exchange."""
        return [
            [sighting(self.renderer, *pair) for pair in zip(*both, strict=True)]
            for both in zip(looks, poses, strict=True)
        ]

    def drawn(
        self, rng: np.random.Generator, number: int, count: int
    ) -> tuple[list[list[Look]], list[list[ReferencePose]]]:
        """So many exchanges, of so many references each."""
        num_subjects = len(self.renderer.names)
        looks = [random_looks(rng, num_subjects, count) for _ in range(number)]
        return looks, [[reading_pose(rng, num_subjects) for _ in range(count)] for _ in range(number)]

    def tokens(self, talks: list[Talk], counts: list[int]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Token ids and labels of whole exchanges, padded to the right."""
        tokenizer = self.processor.tokenizer
        heads = [self.reader.template(talk.user, count) for talk, count in zip(talks, counts, strict=True)]
        asked = tokenizer(heads, add_special_tokens=False)["input_ids"]
        said = tokenizer([talk.answer for talk in talks], add_special_tokens=False)["input_ids"]
        rows = [(a, [*s, tokenizer.eos_token_id]) for a, s in zip(asked, said, strict=True)]
        length = -(-max(len(a) + len(s) for a, s in rows) // PAD_TO) * PAD_TO
        ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), IGNORED)
        for row, (a, s) in enumerate(rows):
            ids[row, : len(a) + len(s)] = torch.tensor(a + s)
            labels[row, len(a) : len(a) + len(s)] = torch.tensor(s)
        return ids, labels

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """References, and what the model says of each when asked for a description."""
        _, pixels, _ = self.talks(0, seed=self.seed + 1)
        pictures = pixels[:8]
        sheet = Image.new("RGB", (SIDE * 8, SIDE * len(pictures)), "white")
        sheet.paste(picture_grid(pictures, columns=1), (0, 0))
        for row, picture in enumerate(pictures):
            said = self.answer("Describe image 1.", picture[None])
            ImageDraw.Draw(sheet).text((SIDE + 8, SIDE * row + SIDE // 2), said, fill="black", font_size=20)
        return sheet

    def answer(self, user: str, pixels: Float[Tensor, "r 3 h w"], max_new_tokens: int = 96) -> str:
        """What the model says, greedily."""
        tokenizer = self.processor.tokenizer
        text = self.reader.template(user, len(pixels))
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(pixels.device)
        out = self.model.generate(  # type: ignore[attr-defined]  (a mixin's protocol)
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    def export(self, folder: Path) -> None:
        """Save model (bfloat16) and processor beside each other."""
        export(self.model, self.processor, folder)
