"""What a user fills in. Names of the fields are those that `asked.py` reads."""

import gradio as gr  # pyright: ignore[reportMissingImports]  (extra)
from gradio.components import Component  # pyright: ignore[reportMissingImports]  (extra)

from subjectgen.engine.work import MAX_SEED
from subjectgen.request import Limits
from subjectgen.web.curve import curve_of
from subjectgen.web.dial import CHOICES, OWN, chosen_stages, dial_of
from subjectgen.web.examples import EXAMPLES
from subjectgen.web.studio import Studio

MAX_STEPS, MAX_PICTURES = 100, 8
Fields = dict[str, Component]


def subject_fields(num_references: int) -> tuple[Fields, list[gr.Textbox]]:
    """References and the prompt; and a name for each reference, hidden until there is one."""
    references = gr.Gallery(
        label=f"References: drop 1 to {num_references}",
        file_types=["image"],
        columns=4,
        fit_columns=False,
        height=170,
        object_fit="contain",
        interactive=True,
        allow_preview=False,
        elem_id="references",
    )
    with gr.Row(elem_id="names"):
        names = [_name(number) for number in range(1, num_references + 1)]
    prompt = gr.Textbox(
        label="Prompt",
        info="Call your subjects image 1, image 2, or by their names. Enter paints, Shift+Enter breaks the line.",
        placeholder="image 1 on a red ground",
        elem_id="prompt",
    )
    return {"references": references, "prompt": prompt}, names


def stage_fields(limits: Limits) -> tuple[Fields, gr.HTML]:
    """A preset or the dial; and the curve of what they stand for."""
    own = chosen_stages(OWN, 1, limits.stages)
    stages = gr.Radio(list(CHOICES), value=OWN, label="Stages: what acts when", elem_id="stages")
    at = dial_of(own)
    dial = gr.Slider(
        0,
        1,
        value=1 if at is None else at,
        step=0.05,
        label="Identity dial",
        info="The references act from this sigma on: 0 is never and free, 1 is always and faithful.",
        elem_id="dial",
    )
    return {"stages": stages, "dial": dial}, gr.HTML(curve_of(own), elem_id="curve")


def seed_fields() -> Fields:
    """How many pictures, and from which noise."""
    with gr.Row():
        pictures = gr.Slider(1, MAX_PICTURES, value=2, step=1, precision=0, label="Seeds side by side", min_width=180)
        seed = gr.Number(label="First seed", precision=0, minimum=0, maximum=MAX_SEED, value=1, min_width=120)
    return {"pictures": pictures, "seed": seed}


def further_fields(limits: Limits) -> Fields:
    """What the model has its own choice for."""
    size = gr.Textbox(label="Size", placeholder=str(limits.image_size), info=_size_rule(limits), max_lines=1)
    steps = gr.Slider(1, MAX_STEPS, value=limits.num_inference_steps, step=1, precision=0, label="Steps")
    guidance = gr.Number(label="Guidance scale", info="1 is none", value=limits.guidance_scale)
    negative = gr.Textbox(label="Negative prompt", info="acts where guidance is not 1", max_lines=1)
    saved = gr.File(label="A saved subject, in place of references", file_types=[".safetensors"], height=120)
    return {"size": size, "steps": steps, "guidance_scale": guidance, "negative_prompt": negative, "saved": saved}


def all_fields(studio: Studio) -> tuple[Fields, list[gr.Textbox], gr.HTML, list[gr.Button]]:
    """The whole form, its names of references, its curve, and a button for each example."""
    subject, names = subject_fields(studio.max_references)
    with gr.Row(elem_id="examples"):
        examples = [gr.Button(prompt, size="sm", min_width=150, elem_classes="example") for _, prompt in EXAMPLES]
    stages, curve = stage_fields(studio.facts.limits)
    seeds = seed_fields()
    with gr.Accordion("Size, steps, guidance, a saved subject", open=False):
        further = further_fields(studio.facts.limits)
    return {**subject, **stages, **seeds, **further}, names, curve, examples


def _name(number: int) -> gr.Textbox:
    return gr.Textbox(
        label=f"image {number} is called", placeholder="red shoe", visible=False, max_lines=1, min_width=110
    )


def _size_rule(limits: Limits) -> str:
    return f"N or WIDTHxHEIGHT, multiples of {limits.size_multiple}; empty: {limits.image_size}"
