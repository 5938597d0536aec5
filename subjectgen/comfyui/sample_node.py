"""The node that paints."""

from typing import Any

import torch
from comfy_api.latest import io

from subjectgen.comfyui.load_node import CATEGORY
from subjectgen.comfyui.managed import ManagedPipeline
from subjectgen.comfyui.pictures import image_from_pictures
from subjectgen.comfyui.sockets import Pipeline, Stages
from subjectgen.comfyui.sockets import Subjects as SubjectsSocket
from subjectgen.comfyui.steps import Steps
from subjectgen.embeds import SubjectEmbeds

OWN = "0: the model's own."
SEEDS = 2**64
NUM_IMAGES = "Pictures of this prompt, as a batch; the k-th is the one of seed + k - 1."


def painting_inputs() -> list[io.Input]:
    """What to paint, and how; 0 and an empty text leave a choice to the model."""
    return [
        io.String.Input("prompt", multiline=True, tooltip="What the picture shows; subjects are image 1, image 2, ..."),
        io.String.Input("negative", multiline=True, default="", tooltip="What it shall not; needs guidance above 1."),
        io.Int.Input("width", default=0, min=0, max=8192, step=16, tooltip=f"In pixels. {OWN}"),
        io.Int.Input("height", default=0, min=0, max=8192, step=16, tooltip=f"In pixels. {OWN}"),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip=f"Solver steps. {OWN}"),
        io.Float.Input("guidance", default=0.0, min=0.0, max=30.0, step=0.1, tooltip=f"1: none. {OWN}"),
        io.Int.Input("seed", default=0, min=0, max=SEEDS - 1, control_after_generate=True),
    ]


def num_images_input() -> io.Input:
    """Apart and optional, as workflows from before it have neither its value nor a place for it."""
    return io.Int.Input("num_images", default=1, min=1, max=64, optional=True, tooltip=NUM_IMAGES)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One for each picture, so that it can be painted alone."""
    return [torch.Generator().manual_seed((seed + k) % SEEDS) for k in range(count)]


def call_options(negative: str, width: int, height: int, steps: int, guidance: float, stages: Any) -> dict[str, Any]:
    """Widgets' values -> arguments of a call; None leaves a choice to the model."""
    return {
        "negative_prompt": negative or None,
        "width": width or None,
        "height": height or None,
        "num_inference_steps": steps or None,
        "guidance_scale": guidance or None,
        "stages": stages,
    }


class Sample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenSample",
            display_name="Paint subjects",
            category=CATEGORY,
            description="A picture of your subjects in the scene you describe; without subjects, of the scene alone.",
            inputs=[
                Pipeline.Input("pipeline"),
                *painting_inputs(),
                SubjectsSocket.Input("subjects", optional=True),
                Stages.Input("stages", optional=True, tooltip="The model's own if nothing is plugged in."),
                num_images_input(),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        pipeline: ManagedPipeline,
        prompt: str,
        negative: str,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
        subjects: SubjectEmbeds | None = None,
        stages: Any = None,
        num_images: int = 1,
    ) -> io.NodeOutput:
        options = call_options(negative, width, height, steps, guidance, stages)
        options["num_images_per_prompt"] = num_images
        pipeline.make_room(pipeline.pipe.estimate(prompt, subjects, **options))
        painted = pipeline(
            prompt,
            subjects,
            generator=generators(seed, num_images),
            callback_on_step_end=Steps(previews=pipeline.offload != "model"),  # which moves networks whole
            **options,
        )
        return io.NodeOutput(image_from_pictures(painted.images))
