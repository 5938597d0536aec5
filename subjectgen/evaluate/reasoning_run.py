"""The reasoning benchmark from its requests to its report: plans and pictures are files, so a killed run goes on."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from subjectgen.evaluate.cases import (
    Painting,
    Shard,
    check_cases,
    check_out,
    check_phase,
    paintings_of,
    pictures_hash,
    references_hash,
    write_cases,
)
from subjectgen.evaluate.generation import (
    PICTURES,
    Run,
    Settings,
    batches,
    binds,
    facts_of,
    joined,
    paint_batch,
    read_run,
    run_of,
    write_run,
)
from subjectgen.evaluate.plan_scores import decision_scores, read_scores
from subjectgen.evaluate.plots import check_plots
from subjectgen.evaluate.reasoning import Asked, Question, ReasoningBenchmark
from subjectgen.evaluate.run import SHEET_ROWS, WHOLE, write_results
from subjectgen.evaluate.scoring import SCORES, Line, key_of, read_lines, score, write_lines
from subjectgen.evaluate.sheet import captioned_sheet
from subjectgen.evaluate.table import Means
from subjectgen.files import whole_file
from subjectgen.images import load_image
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.paint import words_and_references
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.references import cropped_as_seen

PHASES = ("all", "paint", "score")
MODEL, PLANS = "model.json", "plans"
OWN = ("default",)  # stages by which pictures are painted: the model's own
BATCH = 20  # plans written together, and pictures painted together if nothing else is said
WHOLE_REFERENCE, PLANNED_BOX = CLUTTER = ("whole reference", "planned box")
PLAIN, BY_PLAN = INDIRECT = ("without a plan", "with a plan")
DIRECT_REQUESTS, INDIRECT_REQUESTS = "direct requests", "indirect requests"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be done. Raises ValueError for what does not go together."""

    model: str = ""
    phase: str = "all"
    settings: Settings = Settings(batch_size=BATCH)  # noqa: RUF009  (frozen)
    shard: Shard = WHOLE
    command: str = ""  # that was given, for the report

    def __post_init__(self):
        check_phase(self.phase, PHASES, self.shard)


def evaluate(benchmark: ReasoningBenchmark, out: Path, order: Order, open_pipe: Callable[[], SubjectPipeline]) -> Means:
    """Plan, paint and score, as far as ordered. => the means, none where nothing was scored."""
    check_out(out)
    if order.phase != "paint":
        check_plots()
    if order.phase != "score":
        make(open_pipe(), benchmark, out, order)
    return {} if order.phase == "paint" else measure(benchmark, out, order)


def make(pipe: SubjectPipeline, benchmark: ReasoningBenchmark, out: Path, order: Order) -> None:
    """Plans and pictures of this shard's requests, but for those that are there.

    Raises ValueError if those of another model or of other settings, or the answer to other requests, are there.
    """
    pipe.set_progress_bar_config(disable=True)
    write_cases(benchmark, out, 1)
    run, bound = reasoning_run_of(pipe, benchmark, order), binds(out / MODEL, out / PLANS, out / PICTURES)
    write_run(out / MODEL, joined(read_run(out / MODEL), run) if bound else run)
    cases = order.shard.of(benchmark.cases)
    write_plans(pipe, benchmark, [case for case in cases if not plan_file(out, case).exists()], out)
    waiting = [each for case in cases for each in paintings(case, out) if not each.file.exists()]
    for batch in track(batches(waiting, order.settings.batch_size), "painting"):
        paint(pipe, benchmark, run, batch, out)


def paintings(case: Asked, out: Path) -> list[Painting]:
    """The pictures of a request: one for each way to paint it."""
    ways = INDIRECT if isinstance(case, Question) else CLUTTER
    return [each for way in ways for each in paintings_of([case], way, 1, out / PICTURES)]


def write_plans(pipe: SubjectPipeline, benchmark: ReasoningBenchmark, cases: Sequence[Asked], out: Path) -> None:
    """A file for each request; it holds null where the MLLM came to no plan."""
    for batch in track(batches(cases, BATCH), "reasoning"):
        for case, plan in zip(batch, planned(pipe, benchmark, batch), strict=True):
            with whole_file(plan_file(out, case)) as temporary:
                temporary.write_text("null" if plan is None else plan.to_json(), encoding="utf-8")


def planned(pipe: SubjectPipeline, benchmark: ReasoningBenchmark, cases: Sequence[Asked]) -> list[Plan | None]:
    """Plans, and None where there is none."""
    try:
        return pipe.reason([case.prompt for case in cases], [benchmark.references(case) for case in cases])
    except PlanError as error:
        return [each if isinstance(each, Plan) else None for each in error.plans]


def plan_file(out: Path, case: Asked) -> Path:
    return out / PLANS / f"{case.name}.json"


def read_plan(out: Path, case: Asked) -> Plan | None:
    """What `write_plans` wrote."""
    values = json.loads(plan_file(out, case).read_text(encoding="utf-8"))
    return None if values is None else Plan.from_dict(values)


def paint(pipe: SubjectPipeline, benchmark: ReasoningBenchmark, run: Run, batch: Sequence[Painting], out: Path) -> None:
    """Every picture from its own seed: that of a case is the same, whatever it is painted from."""
    prompts, references = zip(*(_asked(pipe, benchmark, each, out) for each in batch), strict=True)
    paint_batch(pipe, run, batch, prompts, references)


def _asked(
    pipe: SubjectPipeline, benchmark: ReasoningBenchmark, painting: Painting, out: Path
) -> tuple[str, list[Any]]:
    """Words and references; what has no plan that can be painted is painted as it was asked for."""
    case: Any = painting.case
    plan = read_plan(out, case) if painting.stages in (PLANNED_BOX, BY_PLAN) else None
    references = benchmark.references(case)
    if plan is None:
        return case.prompt, references
    if painting.stages == PLANNED_BOX:
        return case.prompt, [cropped_as_seen(references[0], plan.subjects[0].box, pipe.limits)]
    try:
        return words_and_references(plan.replace(subject_images=references), pipe.limits)
    except ValueError:  # a box that shows nothing, a subject lost: no plan to paint
        return case.prompt, references


def measure(benchmark: ReasoningBenchmark, out: Path, order: Order) -> Means:
    """Scores, table, sheet and report of all that is there. Raises FileNotFoundError where a plan or picture lacks."""
    check_cases(benchmark, out)
    painted = [each for case in benchmark.cases for each in paintings(case, out)]
    files = [*(plan_file(out, case) for case in benchmark.cases), *(each.file for each in painted)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} plans and pictures lack in '{out}', the first is '{missing[0]}': expected "
            "all. Run --phase paint first, for every shard."
        )
    run = read_run(out / MODEL)
    pictures = score(benchmark, painted, out, run.sha256)
    plans = [
        {"benchmark": benchmark.name, **line, "model": run.sha256}
        for case in benchmark.cases
        for line in plan_lines(benchmark, case, read_plan(out, case))
    ]
    write_lines(out / SCORES, (read_lines(out / SCORES) | {key_of(line): line for line in plans}).values())
    about = facts_of(run) | {
        "pictures": f"{len(painted)} of {len(painted)}",
        "command": order.command,
        "sha256 of the cases": pictures_hash(painted),
        "sha256 of the references": references_hash(benchmark),
        "scored by": ", ".join(benchmark.scorers),
    }
    return write_results(benchmark, out, [*plans, *pictures], contact_sheet(benchmark, out), about)


def plan_lines(benchmark: ReasoningBenchmark, case: Asked, plan: Plan | None) -> Iterator[Line]:
    """Whether there is a plan, what it decides, and how it reads each reference."""
    requests = INDIRECT_REQUESTS if isinstance(case, Question) else DIRECT_REQUESTS
    decided = {"parsed": float(plan is not None), **decision_scores(plan, *benchmark.meant(case))}
    yield _line(case, "deciding", requests, 0, case.subject, decided)
    for number, (said, true) in enumerate(zip(plan.subjects if plan else (), benchmark.seen(case), strict=False)):
        yield _line(case, "reading", "plan", number, true.name, read_scores(said, true))


def _line(case: Asked, part: str, way: str, number: int, subject: str, scores: dict[str, float]) -> Line:
    """What the other benchmarks write of a picture."""
    facts = {"part": part, "case": case.name, "number": number, "subject": subject, "prompt": case.prompt}
    return {**facts, "stages": way, "seed": case.seed, "scores": scores}


def contact_sheet(benchmark: ReasoningBenchmark, out: Path) -> Image.Image:
    """Of indirect requests: the first reference, the truth, and what was painted."""
    rows = []
    for case in benchmark.questions[:SHEET_ROWS]:
        painted = [load_image(each.file) for each in paintings(case, out)]
        rows.append((case.prompt, [benchmark.references(case)[0], benchmark.truth(case), *painted]))
    return captioned_sheet(("reference", "truth", *INDIRECT), rows)


def reasoning_run_of(pipe: SubjectPipeline, benchmark: ReasoningBenchmark, order: Order) -> Run:
    """What is about to plan and paint: beside what changes pictures, what changes plans."""
    run = run_of(pipe, benchmark, order.model, OWN, order.settings)
    planning = {name: str(pipe.config.get(name)) for name in ("plan_instruction", "max_references")}
    return replace(run, settings=run.settings | planning)
