"""The weights of the stages along sigma, as an SVG that takes its colours from the page."""

from collections.abc import Iterator, Sequence

from subjectgen.generate.stages import Number, Stage

LEFT, RIGHT, WIDTH = 66, 348, 360  # of the plot, and of all
LANE, HEIGHT = 34, 136
LANES = (("meaning", "semantic", 40), ("identity", "identity", 92))  # label, field of a stage, base line
BETWEEN = 53  # the lanes
APART = 0.09  # sigmas whose labels do not touch


def curve_of(stages: Sequence[Stage], steps: Sequence[int] = ()) -> str:
    """From noise at the left to the picture at the right, a lane for each condition; steps: of each stage, if known."""
    shapes = "".join([*_lanes(stages), *_axis(stages), *_steps(stages, steps)])
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_told(stages)}" '
        f'xmlns="http://www.w3.org/2000/svg">{shapes}</svg>'
    )


def _lanes(stages: Sequence[Stage]) -> Iterator[str]:
    for label, field, base in LANES:
        yield _text(LEFT - 6, base - LANE / 2 + 4, label, "end")
        yield f'<rect class="lane" x="{LEFT}" y="{base - LANE}" width="{RIGHT - LEFT}" height="{LANE}"/>'
        for begin, stage in _begun(stages):
            height = getattr(stage, field) * LANE
            x, width = _x(begin), _x(stage.until) - _x(begin)
            yield f'<rect class="{label}" x="{x:g}" y="{base - height:g}" width="{width:g}" height="{height:g}"/>'


def _axis(stages: Sequence[Stage]) -> Iterator[str]:
    bottom = LANES[-1][-1]
    yield _text(LEFT - 6, bottom + 18, "sigma", "end")
    yield _text(LEFT, bottom + 34, "noise", "start")
    yield _text(RIGHT, bottom + 34, "picture", "end")
    for sigma in _apart([1, *(stage.until for stage in stages)]):
        yield _text(_x(sigma), bottom + 18, f"{sigma:g}", "middle")
    for stage in stages[:-1]:
        x = _x(stage.until)
        yield f'<line class="ends" x1="{x:g}" x2="{x:g}" y1="{LANES[0][-1] - LANE}" y2="{bottom + 5}"/>'


def _steps(stages: Sequence[Stage], steps: Sequence[int]) -> Iterator[str]:
    if steps:
        yield _text(LEFT - 6, BETWEEN, "steps", "end")
    for (begin, stage), number in zip(_begun(stages), steps, strict=False):
        yield _text((_x(begin) + _x(stage.until)) / 2, BETWEEN, str(number), "middle")


def _begun(stages: Sequence[Stage]) -> list[tuple[Number, Stage]]:
    """Each stage with the sigma that it begins at."""
    return list(zip([1, *(stage.until for stage in stages)], stages, strict=False))


def _apart(sigmas: Sequence[Number]) -> Iterator[Number]:
    """Those whose labels do not touch the one before; the last, 0, always."""
    shown = float("inf")
    for sigma in sigmas:
        if shown - sigma >= APART and (sigma >= APART or sigma == 0):
            shown = sigma
            yield sigma


def _x(sigma: Number) -> Number:
    return round(RIGHT - sigma * (RIGHT - LEFT), 1)


def _text(x: Number, y: Number, words: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'


def _told(stages: Sequence[Stage]) -> str:
    """The same in words."""
    told = [
        f"from sigma {begin:g} to {stage.until:g} meaning {stage.semantic:g} and identity {stage.identity:g}"
        for begin, stage in _begun(stages)
    ]
    return "Weights of the conditions: " + "; ".join(told)
