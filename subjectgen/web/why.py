"""Why a picture looks as it does: what each word stood for, what acted when, and what it cost."""

from collections.abc import Iterator, Sequence
from html import escape

from subjectgen.engine import Painted, Painting
from subjectgen.estimate import StageEstimate
from subjectgen.web.curve import curve_of
from subjectgen.web.run import Clock, Run
from subjectgen.web.studio import Studio

HEADINGS = ("until sigma", "steps", "passes a step", "picture", "meaning", "identity", "seconds")


def why(studio: Studio, run: Run) -> str:
    """As HTML, of the first picture of a run that has any; "" of one that has none."""
    if not run.painted:
        return ""
    painting, painted = run.painted[0]
    stages = _stages(studio, painting)
    return "".join(
        [
            _bindings(painted),
            curve_of([each.stage for each in stages], [each.steps for each in stages]),
            _table(stages, run.clock),
            f"<p>{_seconds(run.clock, painted)}</p>",
        ]
    )


def _stages(studio: Studio, painting: Painting) -> tuple[StageEstimate, ...]:
    """What the call computed, counted without running anything."""
    entries = getattr(painting.subjects, "entries", painting.subjects)
    options = {name: value for name, value in painting.shared.items() if value is not None}
    return studio.pipe.estimate(
        painting.prompt,
        list(entries) if isinstance(entries, tuple) else entries,
        negative_prompt=painting.negative_prompt,
        **options,
    ).stages


def _bindings(painted: Painted) -> str:
    said = "; ".join(escape(str(each)) for each in painted.bindings)
    return f"<p>{said}</p>" if said else "<p>The prompt names no reference.</p>"


def _table(stages: Sequence[StageEstimate], clock: Clock) -> str:
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    body = "".join(f"<tr>{''.join(_cells(each, clock))}</tr>" for each in stages)
    caption = "Tokens of each kind that a pass attends over, and seconds"
    return f'<div class="scroll"><table><caption>{caption}</caption><tr>{head}</tr>{body}</table></div>'


def _cells(each: StageEstimate, clock: Clock) -> Iterator[str]:
    seconds = clock.by_stage.get(float(each.stage.until))
    counts = (each.steps, each.passes, each.noise_tokens, each.semantic_tokens, each.identity_tokens)
    yield f'<th scope="row">{each.stage.until:g}</th>'
    yield from (f"<td>{count}</td>" for count in counts)
    yield f"<td>{'' if seconds is None else f'{seconds:.2f}'}</td>"


def _seconds(clock: Clock, painted: Painted) -> str:
    beside = painted.painted_together - 1
    together = f", with {_counted(beside, 'other picture')} in the same passes" if beside else ""
    return (
        f"{painted.seconds:.2f} s{together}. Reading the subjects and the prompt and the first step took "
        f"{clock.first:.2f} s, which no stage is charged for; previews are charged where they were made."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
