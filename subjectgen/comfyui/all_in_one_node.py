"""The node that is all others in one."""

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from subjectgen.comfyui.load_node import CATEGORY, model_inputs, quantization_input
from subjectgen.comfyui.sample_node import num_images_input, painting_inputs
from subjectgen.comfyui.subject_nodes import subject_inputs
from subjectgen.generate.stages import STAGE_PRESETS

OWN_STAGES = "the model's own"
MODEL = ("model", "adapter", "dtype", "offload", "quantization")


class PaintAtOnce(io.ComfyNode):
    """Becomes the single nodes when it runs, so that ComfyUI keeps the model and the encoded subjects for the next."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenPaintAtOnce",
            display_name="Paint subjects, all in one",
            category=CATEGORY,
            description="From images of subjects and a prompt to a picture.",
            inputs=[
                *model_inputs(),
                *painting_inputs(),
                io.Combo.Input("stages", options=[OWN_STAGES, *STAGE_PRESETS], default=OWN_STAGES),
                subject_inputs(raw_link=True),  # links, not images: the single nodes are plugged in where this one is
                quantization_input(),
                num_images_input(),
            ],
            outputs=[io.Image.Output(display_name="image")],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, subjects: dict[str, Any], stages: str, **widgets: Any) -> io.NodeOutput:
        graph = GraphBuilder()
        model = {name: widgets.pop(name) for name in MODEL if name in widgets}
        pipeline = graph.node("SubjectgenLoad", **model).out(0)
        sockets = {f"subjects.{name}": link for name, link in subjects.items() if link is not None}
        encoded = graph.node("SubjectgenEncodeSubjects", pipeline=pipeline, **sockets).out(0)
        painted = graph.node("SubjectgenSample", pipeline=pipeline, subjects=encoded, **widgets)
        if stages != OWN_STAGES:
            chosen = graph.node("SubjectgenStages", preset=stages, tau1=0.95, tau2=0.85)
            painted.set_input("stages", chosen.out(0))
        return io.NodeOutput(painted.out(0), expand=graph.finalize())
