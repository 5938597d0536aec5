"""The page: a form, its pictures, and what happens when something is pressed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  (extra)

from subjectgen.engine import Progress
from subjectgen.generate.stages import Number
from subjectgen.references import check_count
from subjectgen.web import status
from subjectgen.web.asked import Values, named_subjects, names_after, paintings_of
from subjectgen.web.curve import curve_of
from subjectgen.web.dial import BY_DIAL, chosen_stages, dial_of
from subjectgen.web.downloads import names_of, save_pictures, save_subject
from subjectgen.web.errors import REFUSALS
from subjectgen.web.examples import EXAMPLES, example_files
from subjectgen.web.form import Fields, all_fields
from subjectgen.web.results import Results, result_fields
from subjectgen.web.run import Run, caption_of
from subjectgen.web.studio import Studio
from subjectgen.web.why import why

TITLE = "subjectgen"
AT_ONCE: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}  # the engine has a line of its own
QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
UPLOADS_SECONDS = 24 * 60 * 60  # that uploads and pictures are kept on disk


def page_of(studio: Studio) -> gr.Blocks:
    """The page of this studio; `launch.py` shows it."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(UPLOADS_SECONDS // 24, UPLOADS_SECONDS)
    ) as blocks:
        gr.Markdown(f"# {TITLE}\nA picture of *your* subject, in the scene *you* describe. Model: {studio.facts.name}.")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                fields, names, curve, examples = all_fields(studio)
            with gr.Column(scale=6, min_width=320):
                results = result_fields()
        Page(studio, fields, names, curve, results).listen(blocks, examples)
    return blocks


class Page:
    """What happens on it."""

    def __init__(self, studio: Studio, fields: Fields, names: Sequence[gr.Textbox], curve: gr.HTML, results: Results):
        self._studio, self._fields, self._names, self._curve, self._results = studio, fields, names, curve, results
        self._runs: dict[str, Run] = {}  # by session, while they go on

    def listen(self, blocks: gr.Blocks, examples: Sequence[gr.Button]) -> None:
        """Tie every handler to what sets it off."""
        fields, results, form = self._fields, self._results, [*self._fields.values(), *self._names]
        shown = [results.pictures, results.status, results.why, results.files]
        gr.on([results.paint.click, fields["prompt"].submit], self.paint, form, shown, api_name="paint", **AT_ONCE)
        results.keep.click(self.keep, form, [results.subject, results.status], api_name="keep", **AT_ONCE)
        results.stop.click(self.stop, None, results.status, **QUIET)
        fields["stages"].input(self.choose, [fields["stages"], fields["dial"]], [fields["dial"], self._curve], **QUIET)
        fields["dial"].input(self.turn, fields["dial"], [fields["stages"], self._curve], **QUIET)
        self._listen_to_references(examples)
        blocks.unload(self.leave)

    def _listen_to_references(self, examples: Sequence[gr.Button]) -> None:
        references, prompt = self._fields["references"], self._fields["prompt"]
        files = gr.State([])
        given, shown = [references, files, *self._names], [files, self._results.status, *self._names]
        sight: tuple[Any, ...] = (self.look, given, shown)
        gr.on([references.upload, references.delete, references.change], *sight, **QUIET)
        for button, (names, words) in zip(examples, EXAMPLES, strict=True):
            filled = example_files(names), words
            clicked = button.click(lambda filled=filled: filled, None, [references, prompt], **QUIET)
            clicked.then(*sight, **QUIET)  # the gallery does not tell of what is put there from here

    def paint(self, request: gr.Request, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Previews while it paints; pictures, why and files in the end."""
        try:
            values = self._values(given)
            paintings = paintings_of(values, self._studio.facts.limits)
            run = Run(self._studio.engine, paintings, self._studio.timeout)
        except REFUSALS as error:
            yield gr.skip(), status.refused(error), gr.skip(), gr.skip()
            return
        self._runs[str(request.session_hash)] = run
        try:
            for progress in run.changes():
                yield run.pictures, status.going_on(progress), gr.skip(), gr.skip()
            yield from self._end(run, values)
        finally:
            run.cancel()
            self._runs.pop(str(request.session_hash), None)

    def stop(self, request: gr.Request) -> Any:
        """The pictures end within one step, and their own handler tells so."""
        run = self._runs.get(str(request.session_hash))
        if run is None:
            return status.NOTHING_TO_STOP
        run.cancel()
        return gr.skip()

    def leave(self, request: gr.Request) -> None:
        """Nobody waits for the pictures of a page that was closed."""
        if run := self._runs.get(str(request.session_hash)):
            run.cancel()

    def keep(self, *given: Any) -> Iterator[tuple[Any, str]]:
        """The subject as a file."""
        yield gr.skip(), status.going_on(Progress(phase="encoding"))
        try:
            with TemporaryDirectory() as folder:
                file = save_subject(self._studio, self._values(given), Path(folder))
                yield gr.File(file, visible=True), status.SAVED  # copied before the folder goes
        except REFUSALS as error:
            yield gr.skip(), status.refused(error)

    def look(self, references: Any, before: list[str], *names: str | None) -> tuple[Any, ...]:
        """The files that are there; at once what cannot be read of them; and a field for the name of each."""
        files = [file for file, _ in references or ()]
        fields = [gr.Textbox(visible=k < len(files)) for k in range(len(names))]
        for k, name in enumerate(names_after(before, names, files)):
            if name != (names[k] or ""):  # else it is left as it is, for somebody may be writing there
                fields[k] = gr.Textbox(name, visible=k < len(files))
        return files, self._first_sight(references), *fields

    def choose(self, choice: str, dial: Number) -> tuple[Any, str]:
        """A preset was chosen: the dial goes where the preset is, and the curve is drawn."""
        stages = chosen_stages(choice, dial, self._studio.facts.limits.stages)
        at = dial_of(stages)
        return (gr.skip() if at is None else at), curve_of(stages)

    def turn(self, dial: Number) -> tuple[str, str]:
        """The dial was turned: it counts from here on."""
        return BY_DIAL, curve_of(chosen_stages(BY_DIAL, dial, None))

    def _end(self, run: Run, values: Values) -> Iterator[tuple[Any, ...]]:
        if run.error is not None and not isinstance(run.error, REFUSALS):
            raise run.error
        with TemporaryDirectory() as folder:
            files = save_pictures(run, self._studio.facts, names_of(values), Path(folder))
            shown = [(file, caption_of(painting)) for file, (painting, _) in zip(files, run.painted, strict=True)]
            yield shown or run.pictures, status.ended(run), why(self._studio, run), gr.File(files, visible=bool(files))

    def _first_sight(self, references: Any) -> str:
        try:
            check_count(len(references or ()), self._studio.facts.limits)
            for subject in named_subjects(references, ()):
                subject.read()
        except REFUSALS as error:
            return status.refused(error)
        return status.READY

    def _values(self, given: Sequence[Any]) -> Values:
        """What stands in the form, by the names of its fields."""
        number = len(self._fields)
        return dict(zip(self._fields, given[:number], strict=True)) | {"names": given[number:]}
