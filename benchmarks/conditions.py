"""joint against cached conditions on the same weights, and what the pipeline takes beside its networks. One run.

Every figure is the best of several rounds in which all are measured in turn, so that a busy machine spoils none alone.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

import subjectgen
from subjectgen import SubjectPipeline
from subjectgen.placement import best_device

COUNTS = (0, 1, 2, 4)  # references of a picture
MODES = ("joint", "cached")
TOGETHER = 4  # pictures of a prompt: one alone is so little work for mini that its step is mostly the calls themselves
PROMPTS = ("the large subject on the left, teal stripes behind", "the subject at the top on a plain yellow ground")
COLOURS = ("crimson", "royalblue", "gold", "seagreen")
FASTER, OVERHEAD = 4.0, 0.05  # the bars: a cached step with most references; pipeline time beside its networks
console = Console()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one picture took; several of a prompt are painted together."""

    image: float  # seconds
    step: float  # seconds, the shortest step
    reads: int  # references that any network was run on, outside the steps


@dataclass(kw_only=True)
class Row:
    """The best of all rounds, for one kind of conditions and number of references."""

    first: Cost  # a subject's first picture
    again: Cost  # its next, from the same SubjectEmbeds


def main(
    model: Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")] = "mini",
    rounds: Annotated[int, typer.Option(min=1, help="Of which the best counts.")] = 3,
    steps: Annotated[int | None, typer.Option(min=2, help="The model's own if left out.")] = None,
) -> None:
    """Print both comparisons and whether the bars are met; exit code 1 if not."""
    base = subjectgen.load(model, device=best_device())
    num_steps = steps or int(base.config["num_inference_steps"])
    rows = compare(base, rounds, num_steps)
    console.print(comparison_table(rows, base, num_steps))
    speedup = rows["joint", COUNTS[-1]].first.step / rows["cached", COUNTS[-1]].first.step
    pipeline, networks = time_beside_networks(base, rounds, num_steps)
    verdicts = [
        verdict(speedup >= FASTER, f"{COUNTS[-1]} references: a cached step is {speedup:.1f} x as fast (bar {FASTER})"),
        verdict(
            not any(rows["cached", count].again.reads for count in COUNTS),
            "the next picture of a cached subject reads none of its references",
        ),
        verdict(
            pipeline <= networks * (1 + OVERHEAD),
            f"pipeline {pipeline:.3f} s, its networks alone {networks:.3f} s: "
            f"{100 * (pipeline / networks - 1):+.1f} % (bar {100 * OVERHEAD:.0f} %)",
        ),
    ]
    raise typer.Exit(0 if all(verdicts) else 1)


def verdict(met: bool, text: str) -> bool:
    """Print a bar and whether it is met."""
    console.print(f"[green]met[/]     {text}" if met else f"[red]missed[/]  {text}", highlight=False)
    return met


def compare(base: SubjectPipeline, rounds: int, steps: int) -> dict[tuple[str, int], Row]:
    """Pictures by both kinds of conditions, with any number of references."""
    pipes = {mode: variant(base, mode) for mode in MODES}
    cases = [(mode, count) for count in COUNTS for mode in MODES]
    measured: dict[tuple[str, int], list[Row]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for mode, count in cases:
            row = two_pictures(pipes[mode], references(base, count), steps)
            measured[mode, count] += [row] if turn else []  # the first turn warms up
    return {
        case: Row(first=best([row.first for row in done]), again=best([row.again for row in done]))
        for case, done in measured.items()
    }


def variant(base: SubjectPipeline, mode: str) -> SubjectPipeline:
    """The same weights, all conditions in every step, attended in this way."""
    kept = ("reference_size", "image_size", "guidance_scale", "negative")
    settings = {name: base.config[name] for name in kept}
    pipe = SubjectPipeline(
        **base.components, **settings, conditions=mode, stages="faithful", max_references=max(COUNTS)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def references(pipe: SubjectPipeline, count: int) -> list[Image.Image]:
    """Different pictures, as large as the model reads them."""
    size = (pipe.config["reference_size"],) * 2
    pictures = [Image.new("RGB", size, "white") for _ in range(count)]
    for picture, colour in zip(pictures, COLOURS, strict=False):
        picture.paste(colour, (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4))
    return pictures


def two_pictures(pipe: SubjectPipeline, images: list[Image.Image], steps: int) -> Row:
    """A subject's first picture, then another of it."""
    started = clock()
    subjects = pipe.encode_subjects(images) if images else None
    encoding = clock() - started
    first, again = (picture(pipe, prompt, subjects, steps) for prompt in PROMPTS)
    return Row(first=Cost(image=first.image + encoding, step=first.step, reads=first.reads), again=again)


def picture(pipe: SubjectPipeline, prompt: str, subjects: Any, steps: int) -> Cost:
    """One call, timed step by step."""
    ends: list[float] = []

    def note(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(clock())
        return tensors

    options = {"num_inference_steps": steps, "num_images_per_prompt": TOGETHER, "callback_on_step_end": note}
    with reference_reads(pipe) as reads:
        started = clock()
        pipe(prompt, subjects, generator=torch.Generator().manual_seed(0), **options)
        taken = clock() - started
    return Cost(image=taken / TOGETHER, step=min(after - before for before, after in pairwise(ends)), reads=len(reads))


@contextmanager
def reference_reads(pipe: SubjectPipeline) -> Iterator[list[str]]:
    """Collect every forward that reads references: pictures by MLLM or VAE, identity tokens by the transformer."""
    reads: list[str] = []

    def of_mllm(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        reads.extend(["mllm"] * (kwargs.get("pixel_values") is not None))

    def of_transformer(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        call = kwargs["joint_attention_kwargs"]["conditions"]
        reads.extend(["transformer"] * (call.writing and kwargs["hidden_states"].shape[1] > 0))

    with ExitStack() as stack:
        for module, hook in ((pipe.mllm, of_mllm), (pipe.transformer, of_transformer)):
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(pipe.vae.encoder.register_forward_pre_hook(lambda *_: reads.append("vae")).remove)
        yield reads


def time_beside_networks(base: SubjectPipeline, rounds: int, steps: int) -> tuple[float, float]:
    """Seconds of a picture with one reference, and of its networks' very same forwards with nothing between them."""
    base.set_progress_bar_config(disable=True)
    images = references(base, 1)

    def paint() -> None:
        base(PROMPTS[0], images, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))

    forwards = recorded(base, paint)
    pairs = [(seconds(paint), sum(replay(*forward) for forward in forwards)) for _ in range(rounds + 1)][1:]
    return min(pipeline for pipeline, _ in pairs), min(networks for _, networks in pairs)


def recorded(pipe: SubjectPipeline, act: Callable[[], None]) -> list[tuple[nn.Module, Any, dict[str, Any]]]:
    """The forwards of the networks while `act` runs, with copies of what they were given."""
    forwards: list[tuple[nn.Module, Any, dict[str, Any]]] = []
    networks = (pipe.mllm, pipe.aggregator, pipe.transformer, pipe.vae.encoder, pipe.vae.decoder)
    with ExitStack() as stack:
        for network in networks:
            hook = network.register_forward_pre_hook(
                lambda module, args, kwargs: forwards.append((module, *copy.deepcopy((args, kwargs)))),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        act()
    return forwards


@torch.no_grad()
def replay(network: nn.Module, args: Any, kwargs: dict[str, Any]) -> float:
    """Seconds of one forward."""
    args, kwargs = copy.deepcopy((args, kwargs))  # a K/V cache among them grows
    return seconds(lambda: network(*args, **kwargs))


def seconds(act: Callable[[], Any]) -> float:
    """How long something takes."""
    started = clock()
    act()
    return clock() - started


def clock() -> float:
    """Seconds, when the device has done all it was asked."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def best(costs: list[Cost]) -> Cost:
    """The shortest times."""
    return Cost(image=min(c.image for c in costs), step=min(c.step for c in costs), reads=costs[0].reads)


def comparison_table(rows: dict[tuple[str, int], Row], base: SubjectPipeline, steps: int) -> Table:
    """Both kinds of conditions, number of references by number of references."""
    side, threads = base.config["image_size"], torch.get_num_threads()
    table = Table(title=f"{TOGETHER} of {side} x {side} px, {steps} steps, {base.device}, {threads} threads")
    for heading in (
        "references",
        "conditions",
        "a step, ms",
        "of none",
        "joint : cached",
        "an image, s",
        "the next, s",
    ):
        table.add_column(heading, justify="right")
    for (mode, count), row in rows.items():
        ratio = rows["joint", count].first.step / row.first.step
        table.add_row(
            str(count),
            mode,
            f"{1000 * row.first.step:.1f}",
            f"{row.first.step / rows[mode, 0].first.step:.2f} x",
            f"{ratio:.2f} x" if mode == "cached" else "",
            f"{row.first.image:.2f}",
            f"{row.again.image:.2f}",
            end_section=mode == MODES[-1],
        )
    return table


if __name__ == "__main__":
    typer.run(main)
