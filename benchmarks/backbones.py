"""FLUX.1-dev and Qwen-Image 2.1 at their true sizes: ours against diffusers' pipelines for the same tokens. One run.

Weights and conditions are random and made on the device. Steps are timed, whole images are their true counts of steps:
those of each stage by themselves, after reading the conditions. Medians of rounds in which all are measured in turn.
`--count` needs no GPU: how many operations steps and images take, exactly.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from both_sides import BothSides, Case, Flux, Qwen
from operations import (
    PRESETS,
    STEPS,
    Kind,
    count_table,
    header,
    line,
    passes,
    stage_steps,
    stages_of,
    step_operations,
    written,
)
from torch import nn

from subjectgen.generate.guide import Guidance
from subjectgen.generate.stages import Stage, resolve_stages
from subjectgen.load import recipe
from subjectgen.placement import best_device

SIDES: dict[str, type[Flux] | type[Qwen]] = {"flux": Flux, "qwen": Qwen}
ROWS = "0 1x512 2x512 4x512 1x1024 2x1024 4x1024"
AT = "2x1024"  # where the goals are
GOALS = (("joint", "paper", "true CFG", 1.6), ("joint", "paper", "embedded", 1.1), ("cached", "faithful", None, 2.5))
NOISE, SHARE = 0.98, 0.60  # as fast as diffusers, but for what times vary; of the device's matrix rate
TINY = {512: 32, 1024: 64}  # pixels


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of an image and of a step that sees both conditions, and the most memory that was allocated."""

    image: float
    step: float
    peak: int


Costs = dict[tuple[str, str], Cost]  # by way ("diffusers", "joint", "cached") and preset of stages


def main(
    backbone: Annotated[str, typer.Option(help="flux or qwen")] = "flux",
    rows: Annotated[str, typer.Option(help="References and their pixels.")] = ROWS,
    compiled: Annotated[bool, typer.Option("--compile", help="The repeated blocks, on both sides.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Operations instead of seconds, without a GPU.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Toy sizes, to try this out.")] = False,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=2, help="In each; the first counts for reading only.")] = 2,
    out: Annotated[Path | None, typer.Option(help="A Markdown file for what is printed.")] = None,
) -> None:
    """Print Markdown tables, and which goals are met; exit code 1 if any is not."""
    kind = SIDES[backbone]
    skeleton = recipe(kind.recipe).skeleton()["transformer"]
    cases = [parsed(row, tiny) for row in rows.split()]
    if count:
        lines, met = list(count_table(kind, skeleton, cases)), True
    else:
        lines, met = compare(kind, skeleton, cases, compiled, tiny, rounds, steps)
    print("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    raise typer.Exit(0 if met else 1)


def parsed(row: str, tiny: bool = False) -> Case:
    """ "2x1024" is two references of 1024 px. Raises ValueError for anything else."""
    references, _, pixels = row.partition("x")
    if not references.isdigit() or (pixels or "0") not in ("0", "512", "1024") or (references == "0") != (not pixels):
        raise ValueError(f"row '{row}': expected 0, or a number of references of 512 or 1024 px such as 2x512")
    scale = TINY if tiny else {512: 512, 1024: 1024}
    return Case(size=scale[1024], references=int(references), pixels=scale[int(pixels)] if pixels else 0)


def compare(
    kind: type[Any], skeleton: nn.Module, cases: Sequence[Case], compiled: bool, tiny: bool, rounds: int, steps: int
) -> tuple[list[str], bool]:
    """Everything measured, as tables, and whether the goals are met."""
    check_equal_work(kind, skeleton)
    device = best_device()
    sides: BothSides = kind(skeleton, device, torch.bfloat16, tiny)
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # two sides, two kinds of conditions, with and without text
        sides.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    measured = {
        (case, name): measure(sides, case, guidance, rounds, steps)
        for case in cases
        for name, guidance in kind.guidances.items()
    }
    rate = matrix_rate(device, 128 if tiny else 8192)
    shares = shares_of(sides, measured, rate)
    goals = list(verdicts(measured, shares, parsed(AT, tiny), compiled))
    lines = [
        f"{kind.recipe}, {STEPS} steps, {cases[0].size} px, {device_name(device)}, compiled: {compiled}, "
        f"{rate / 1e12:.3g} TFLOP/s in a large bfloat16 product",
        "",
        *image_table(measured),
        "",
        *step_table(measured, shares),
        "",
        *(f"{'met' if met else 'missed'}: {text}" for met, text in goals),
    ]
    return lines, all(met for met, _ in goals)


@torch.no_grad()
def check_equal_work(kind: type[Any], skeleton: nn.Module) -> None:
    """Raise AssertionError unless both sides make the same latents of the same tokens, at toy size in float32.

    With references in FLUX they stand in other places, which is all that differs.
    """
    sides: BothSides = kind(skeleton, torch.device("cpu"), torch.float32, tiny=True)
    for case in (parsed("0", tiny=True), parsed("2x512", tiny=True)):
        for guidance in kind.guidances.values():
            theirs = sides.theirs(case, 2, guidance, lambda: None)
            velocity_for = sides.velocity_for(case, kind.modes[0], guidance)
            ours = sides.ours(case, 2, resolve_stages("faithful"), velocity_for, lambda: None)
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@torch.no_grad()
def measure(sides: BothSides, case: Case, guidance: Guidance, rounds: int, steps: int) -> Costs:
    """One row: diffusers, and ours in every mode and preset, measured in turn; the first round warms up."""
    runs: dict[Any, Callable[[], dict[str, float]]] = {"diffusers": lambda: theirs_once(sides, case, guidance, steps)}
    for mode in sides.modes:
        for stage in {(s.semantic, s.identity) for name in PRESETS for s in stages_of(case, name)}:
            runs[mode, stage] = lambda m=mode, k=stage: ours_once(sides, case, m, guidance, k, steps)
        for name in PRESETS:
            runs[mode, name] = lambda m=mode, n=name: read_once(sides, case, m, guidance, n)
    found: dict[Any, list[dict[str, float]]] = {key: [] for key in runs}
    for turn in range(rounds + 1):
        for key, run in runs.items():
            once = run()
            found[key] += [once] if turn else []
    medians = {key: {what: median(each[what] for each in done) for what in done[0]} for key, done in found.items()}
    return costs_of(sides, case, medians)


def costs_of(sides: BothSides, case: Case, medians: dict[Any, dict[str, float]]) -> Costs:
    """From what was timed to images."""
    stock = medians["diffusers"]
    image = stock["first"] + (STEPS - 1) * stock["step"]
    costs: Costs = {("diffusers", "faithful"): Cost(image=image, step=stock["step"], peak=int(stock["peak"]))}
    for mode in sides.modes:
        for name in PRESETS:
            parts = [(count, medians[mode, stage]) for stage, count in stage_steps(sides, case, name)]
            costs[mode, name] = Cost(
                image=medians[mode, name]["read"] + sum(count * part["step"] for count, part in parts),
                step=medians[mode, (1.0, float(case.references > 0))]["step"],
                peak=int(max(part["peak"] for _, part in parts)),
            )
    return costs


def theirs_once(sides: BothSides, case: Case, guidance: Guidance, steps: int) -> dict[str, float]:
    return timed(lambda note: sides.theirs(case, steps, guidance, note))


def ours_once(sides: BothSides, case: Case, mode: str, guidance: Guidance, kind: Kind, steps: int) -> dict[str, float]:
    """Steps of one kind of stage, its conditions read."""
    stage = Stage(0.0, *kind)
    velocity = sides.velocity_for(case, mode, guidance)(stage)
    return timed(lambda note: sides.ours(case, steps, [stage], lambda _: velocity, note))


def read_once(sides: BothSides, case: Case, mode: str, guidance: Guidance, preset: str) -> dict[str, float]:
    """What is done before the steps: references and prompt are read for all stages."""
    velocity_for, started = sides.velocity_for(case, mode, guidance), clock()
    for stage in stages_of(case, preset):
        velocity_for(stage)
    return {"read": clock() - started}


def timed(run: Callable[[Callable[[], None]], Any]) -> dict[str, float]:
    """Seconds of the first step with all before it, and of a later one; the most bytes meanwhile."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ends = [clock()]
    run(lambda: ends.append(clock()))
    first, *later = [end - start for start, end in pairwise(ends)]
    return {"first": first, "step": median(later), "peak": peak_bytes()}


def peak_bytes() -> int:
    """The most that was allocated since the last reset; 0 where nothing counts it."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def clock() -> float:
    """Seconds, when the device has done all it was asked."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device, size: int) -> float:
    """Operations a second of a large bfloat16 product: the median of twenty."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(25):
        started = clock()
        torch.matmul(left, right)
        seconds.append(clock() - started)
    return 2 * size**3 / median(seconds[5:])


def shares_of(
    sides: BothSides, measured: dict[tuple[Case, str], Costs], rate: float
) -> dict[tuple[Case, str, str], float]:
    """Of the device's matrix rate, in a step that sees both conditions."""
    shares = {}
    for (case, name), costs in measured.items():
        for way in ("diffusers", *sides.modes):
            mode = sides.modes[0] if way == "diffusers" else way
            work = step_operations(sides, sides.skeleton, case, mode, 1.0, 1.0)
            forwards = passes((1.0, 1.0), sides.guidances[name], case)
            shares[case, name, way] = work * forwards / costs[way, "faithful"].step / rate
    return shares


def verdicts(
    measured: dict[tuple[Case, str], Costs], shares: dict[tuple[Case, str, str], float], at: Case, compiled: bool
) -> Iterator[tuple[bool, str]]:
    """Whether each goal is met, of those that this run can tell of."""
    for mode, preset, only, bar in GOALS:
        for (case, name), costs in measured.items():
            if case == at and (mode, preset) in costs and only in (name, None) and ("joint", preset) in costs:
                times = speedup(costs, mode, preset)
                yield (
                    times >= bar,
                    f"{AT}, {name}, {mode}, {preset}: {times:.2f} times as fast as diffusers (goal {bar})",
                )
    least, where = min(
        (speedup(costs, *way), f"{written(case)}, {name}, {', '.join(way)}")
        for (case, name), costs in measured.items()
        for way in costs
    )
    yield least >= NOISE, f"never slower than diffusers (least: {least:.2f} times as fast, {where})"
    if compiled:
        share, (case, name, way) = min((share, key) for key, share in shares.items() if key[2] != "diffusers")
        text = (
            f"{100 * share:.0f} % of the matrix rate (least: {written(case)}, {name}, {way}; goal {100 * SHARE:.0f} %)"
        )
        yield share >= SHARE, text


def speedup(costs: Costs, way: str, preset: str) -> float:
    return costs["diffusers", "faithful"].image / costs[way, preset].image


def image_table(measured: dict[tuple[Case, str], Costs]) -> Iterator[str]:
    """Seconds an image, and how many times as fast as diffusers."""
    ways = list(next(iter(measured.values())))
    yield from header("references", "guidance", *(", ".join(way) for way in ways))
    for (case, name), costs in measured.items():
        cells = (f"{costs[way].image:.2f} s ({speedup(costs, *way):.2f} x)" for way in ways)
        yield line(written(case), name, *cells)


def step_table(measured: dict[tuple[Case, str], Costs], shares: dict[tuple[Case, str, str], float]) -> Iterator[str]:
    """Of a step that sees both conditions: seconds, the most memory, share of the matrix rate."""
    ways = list(dict.fromkeys(way for _, _, way in shares))
    yield from header("references", "guidance", *(f"{way}: a step, GiB, of the matrix rate" for way in ways))
    for (case, name), costs in measured.items():
        found = [(costs[way, "faithful"], shares[case, name, way]) for way in ways]
        cells = (f"{cost.step:.3f} s, {cost.peak / 2**30:.1f}, {100 * share:.0f} %" for cost, share in found)
        yield line(written(case), name, *cells)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    typer.run(main)
