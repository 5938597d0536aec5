"""What the page shows: buttons, pictures, why they look so, files."""

from dataclasses import dataclass

import gradio as gr  # pyright: ignore[reportMissingImports]  (extra)

from subjectgen.web.status import READY


@dataclass(frozen=True, kw_only=True)
class Results:
    """The right half of the page."""

    paint: gr.Button
    stop: gr.Button
    status: gr.HTML
    pictures: gr.Gallery
    why: gr.HTML
    files: gr.File
    keep: gr.Button
    subject: gr.File


def result_fields() -> Results:
    """Empty."""
    with gr.Row():
        paint = gr.Button("Paint", variant="primary", elem_id="paint", min_width=120)
        stop = gr.Button("Stop", elem_id="stop", min_width=120)
    status = gr.HTML(READY, elem_id="status")
    pictures = gr.Gallery(
        label="Pictures, a seed each",
        format="png",
        columns=2,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="pictures",
    )
    with gr.Accordion("See why", open=False, elem_id="see-why"):
        why = gr.HTML("Paint first.", elem_id="why")
    files = gr.File(
        label="PNG files with their recipe",
        file_count="multiple",
        interactive=False,
        visible=False,
        elem_id="files",
    )
    keep = gr.Button("Save the subject", size="sm", elem_id="keep")
    subject = gr.File(label="The subject, encoded", interactive=False, visible=False, elem_id="subject")
    return Results(
        paint=paint, stop=stop, status=status, pictures=pictures, why=why, files=files, keep=keep, subject=subject
    )
