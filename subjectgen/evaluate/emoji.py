"""The emoji benchmark: unseen subjects in scenes whose truth can be rendered, so identity and obedience are exact."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from subjectgen.data.batches import HUES, random_reference_pose
from subjectgen.data.prompts import request
from subjectgen.data.render import Look, ReferencePose, Renderer, layers_of
from subjectgen.data.subjects import load_subjects
from subjectgen.data.world import COLOURS, PLACES, SIDE, Scene, random_scene
from subjectgen.evaluate.sheet import captioned_sheet, picture_of
from subjectgen.files import whole_file
from subjectgen.generate.stages import Stage
from subjectgen.load import load
from subjectgen.models.vae import latents_from_pixels, pixels_from_latents
from subjectgen.pipeline import SubjectPipeline
from subjectgen.placement import best_device

NUM_SUBJECTS = 60  # own truth against that of 59 others
SEED = 2605  # of prompts and noise; training never draws from it
BATCH = 20
SHEET_ROWS = 12
MLLM_ONLY = (Stage(0.0, identity=0.0),)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt of the benchmark."""

    subject: int
    scene: Scene
    prompt: str
    pose: ReferencePose


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of one picture: three answers right or wrong, and the subject region's PSNR in dB."""

    ground: bool
    place: bool
    identity: bool
    region_psnr: float


class EmojiBenchmark:
    """Prompts, references and truths on subjects held out from training."""

    def __init__(self, num_prompts: int, cutouts: Path | None = None):
        unseen = load_subjects(cutouts=cutouts).split(unseen=True)
        if len(unseen.names) < NUM_SUBJECTS:
            raise ValueError(
                f"{cutouts or 'the font'} gives {len(unseen.names)} subjects never trained on: expected {NUM_SUBJECTS} "
                "(a tenth of all, by their names)"
            )
        self.renderer = Renderer(unseen)
        rng = np.random.default_rng(SEED)
        self.looks = [Look(subject=i, hue=float(rng.choice(HUES))) for i in range(NUM_SUBJECTS)]
        self.cases = [self.case(rng, i % NUM_SUBJECTS) for i in range(num_prompts)]

    def case(self, rng: np.random.Generator, subject: int) -> Case:
        """A scene with one copy of the subject, asked for in one of the wordings."""
        scene = random_scene(rng, 1)
        while scene.placements[0].number > 1:
            scene = random_scene(rng, 1)
        prompt = request(rng, scene, [self.renderer.names[self.looks[subject].subject]])
        return Case(subject=subject, scene=scene, prompt=prompt, pose=random_reference_pose(rng))

    def reference(self, case: Case) -> Image.Image:
        """The subject as the model sees it."""
        return picture_of(self.renderer.references([self.looks[case.subject]], [case.pose])[0])

    def truth(self, case: Case) -> Float[Tensor, "3 side side"]:
        """The picture asked for."""
        return self.renderer.scenes([case.scene], [[self.looks[case.subject]]])[0]

    def score(self, case: Case, picture: Float[Tensor, "3 side side"]) -> Scores:
        """Ground and identity by the nearest rendered alternative (squared error of pixels); place: see `place_in`."""
        scene, look, inside = case.scene, self.looks[case.subject], box_mask(case.scene)
        grounds = self.renderer.scenes([scene.with_colour(colour) for colour in COLOURS], [[look]] * len(COLOURS))
        subjects = self.renderer.scenes([scene] * NUM_SUBJECTS, [[other] for other in self.looks])
        colour = list(COLOURS)[nearest(picture, grounds, ~inside)]
        return Scores(
            ground=colour == scene.ground.colour,
            place=self.place_in(picture, scene.with_colour(colour), look) == scene.placements[0].place,
            identity=nearest(picture, subjects, inside) == case.subject,
            region_psnr=psnr(picture[:, inside], subjects[case.subject][:, inside]),
        )

    def place_in(self, picture: Float[Tensor, "3 side side"], scene: Scene, look: Look) -> str:
        """The place where the subject's outline holds most of what is not ground, whatever has been painted there."""
        (ground,) = self.renderer.scenes([replace(scene, placements=())], [[]])
        painted = (picture - ground).square().sum(0)
        places = layers_of([scene.with_place(place) for place in PLACES], [[look]] * len(PLACES))
        outline = self.renderer.draw(places, self.renderer.small)[:, 3]
        within = (painted * outline).sum((1, 2)) / outline.sum((1, 2))
        without = (painted * (1 - outline)).sum((1, 2)) / (1 - outline).sum((1, 2))
        return PLACES[int((within - without).argmax())]


def evaluate(
    model: str,
    num_prompts: int,
    out: Path,
    stages: Sequence[str] = ("default", "mllm only", "paper"),
    cutouts: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Measure a model under several stage settings; writes scores.jsonl, table.json and sheet.png, prints the table."""
    benchmark = EmojiBenchmark(num_prompts, cutouts)
    pipe = load(model, device=best_device())
    pipe.set_progress_bar_config(disable=True)
    rows: dict[str, dict[str, float]] = {}
    painted: dict[str, list[Tensor]] = {}
    for name in stages:
        painted[name] = paint(pipe, benchmark, name)
        pairs = list(zip(benchmark.cases, painted[name], strict=True))
        scores = [benchmark.score(*pair) for pair in track(pairs, f"scoring, {name}")]
        rows[name] = summary(scores)
        write_lines(out / f"scores-{name.replace(' ', '-')}.jsonl", benchmark.cases, scores)
    reconstruction = reconstruction_psnr(pipe, benchmark)
    with whole_file(out / "table.json") as path:
        path.write_text(json.dumps({"stages": rows, "vae_psnr": reconstruction, "prompts": num_prompts}, indent=1))
    with whole_file(out / "sheet.png") as path:
        sheet(benchmark, painted[stages[0]]).save(path, format="PNG")
    print_table(rows, reconstruction, num_prompts, out)
    return rows


def paint(pipe: SubjectPipeline, benchmark: EmojiBenchmark, stages: str) -> list[Float[Tensor, "3 side side"]]:
    """One picture per case, pixels -1..1; case i has its own seed."""
    chosen = {"default": None, "mllm only": MLLM_ONLY}.get(stages, stages)
    pictures: list[Tensor] = []
    for start in track(range(0, len(benchmark.cases), BATCH), f"painting, {stages}"):
        cases = benchmark.cases[start : start + BATCH]
        result = pipe(
            [case.prompt for case in cases],
            [[benchmark.reference(case)] for case in cases],
            stages=chosen,
            generator=[torch.Generator().manual_seed(SEED + start + i) for i in range(len(cases))],
            output_type="pt",
        )
        pictures += list(result.images.float().cpu() * 2 - 1)
    return pictures


def reconstruction_psnr(pipe: SubjectPipeline, benchmark: EmojiBenchmark) -> float:
    """Mean PSNR in dB of the VAE on the rendered truths."""
    values = []
    with torch.no_grad():
        for case in benchmark.cases:
            truth = benchmark.truth(case)
            latents = latents_from_pixels(pipe.vae, truth[None].to(pipe.device))
            values.append(psnr(pixels_from_latents(pipe.vae, latents)[0].float().cpu().clamp(-1, 1), truth))
    return float(np.mean(values))


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


def summary(scores: Sequence[Scores]) -> dict[str, float]:
    """Shares in percent, and the mean PSNR."""
    answers = ("ground", "place", "identity")
    shares = {name: 100 * float(np.mean([getattr(s, name) for s in scores])) for name in answers}
    return {**shares, "region_psnr": float(np.mean([s.region_psnr for s in scores]))}


def write_lines(path: Path, cases: Sequence[Case], scores: Sequence[Scores]) -> None:
    """One JSON line a picture."""
    pairs = zip(cases, scores, strict=True)
    lines = [json.dumps({"prompt": c.prompt, "subject": c.subject, **asdict(s)}) for c, s in pairs]
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def sheet(benchmark: EmojiBenchmark, pictures: Sequence[Tensor]) -> Image.Image:
    """Reference, rendered truth and result of the first cases."""
    rows = [
        (case.prompt, [benchmark.reference(case), picture_of(benchmark.truth(case)), picture_of(picture)])
        for case, picture in list(zip(benchmark.cases, pictures, strict=True))[:SHEET_ROWS]
    ]
    return captioned_sheet(("reference", "truth", "result"), rows)


def print_table(rows: dict[str, dict[str, float]], reconstruction: float, num_prompts: int, out: Path) -> None:
    """The figures as a table on the screen."""
    table = Table(title=f"unseen subjects, {num_prompts} prompts; VAE {reconstruction:.1f} dB")
    for heading in ("stages", "ground %", "place %", "identity top-1 %", "region PSNR dB"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.1f}" for key in ("ground", "place", "identity", "region_psnr")))
    Console().print(table)
    print(out / "sheet.png")
