"""One line that says what goes on, also to those who hear the page."""

from html import escape

from subjectgen.engine import Progress
from subjectgen.web.run import Run

READY = '<p role="status">Ready.</p>'
NOTHING_TO_STOP = '<p role="status">Nothing is being painted.</p>'
SAVED = '<p role="status">The subject is saved.</p>'


def going_on(progress: Progress) -> str:
    """Of pictures that are not done yet."""
    if progress.phase == "waiting":
        return '<p role="status">Waiting in line.</p>'
    if progress.step == 0:
        return '<p role="status">Reading the subjects and the prompt.</p>'
    bar = f'<progress value="{progress.step}" max="{progress.steps}" aria-label="steps"></progress>'
    return f'<p role="status">Step {progress.step} of {progress.steps}</p>{bar}'


def ended(run: Run) -> str:
    """Of pictures that are all done, stopped or failed."""
    if run.error is not None:
        return refused(run.error)
    number = len(run.painted)
    done = f"{number} picture{'' if number == 1 else 's'} painted"
    return f'<p role="status">{f"Stopped, {done}." if run.was_stopped else f"{done}."}</p>'


def refused(error: BaseException) -> str:
    """What was wrong, in the words of the library."""
    return f'<p role="alert" class="refused">{escape(str(error))}</p>'
