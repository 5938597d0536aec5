"""Seconds of a plan of mini: one prompt after the other, and several side by side; references are read with it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import subjectgen
from subjectgen.evaluate.reasoning import ReasoningBenchmark
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.plan import Plan


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="Indirect requests about unseen subjects.")] = 20,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print both, in seconds and in seconds of CPU, which other work on the machine disturbs less."""
    pipe = subjectgen.load("mini")
    pipe.set_progress_bar_config(disable=True)
    benchmark = ReasoningBenchmark(0, num_prompts, cutouts)
    requests = [(case.prompt, benchmark.references(case)) for case in benchmark.questions]
    for way, (plans, seconds, cpu) in compare(pipe, requests).items():
        print(f"{way}: {seconds / len(plans):.2f} s a plan, {cpu / len(plans):.2f} s of CPU")


def compare(
    pipe: SubjectPipeline, requests: Sequence[tuple[str, list[Any]]]
) -> dict[str, tuple[list[Plan], float, float]]:
    """Plans, seconds and seconds of CPU of each way."""
    pipe.reason(*requests[0])  # what is made once
    prompts, references = map(list, zip(*requests, strict=True))
    return {
        "one after the other": timed(lambda: [pipe.reason(*each) for each in requests]),
        "side by side": timed(lambda: pipe.reason(prompts, references)),
    }


def timed(work: Callable[[], list[Plan]]) -> tuple[list[Plan], float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    plans = work()
    return plans, time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    typer.run(main)
