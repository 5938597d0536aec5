"""The node that opens a model."""

import torch
from comfy_api.latest import io

from subjectgen.comfyui.managed import open_pipeline
from subjectgen.comfyui.models import NO_ADAPTER, adapter_places, model_places
from subjectgen.comfyui.sockets import Pipeline
from subjectgen.placement import OFFLOADS
from subjectgen.quantization import QUANTIZATIONS

CATEGORY = "subjectgen"
DTYPES = {"the model's own": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ADAPTER = "What was trained on top of a model that needs it: a .safetensors in models/subjectgen."
OFFLOAD = (
    "none: ComfyUI brings all weights to the device and takes them away. model, group, sequential: most of them wait "
    "in the CPU's memory, for less of the device's, from fast to slow; with model there are no previews."
)
QUANTIZATION = (
    "int8, fp8, nf4: large layers in 8 or 4 bits, for less memory; int8 is the nearest to the original. They need "
    "subjectgen's extra `quantize`, nf4 also an offload of model or group; none of them goes with sequential."
)


def model_inputs() -> list[io.Input]:
    """Which model, and how it is kept."""
    return [
        io.Combo.Input(
            "model", options=list(model_places()), default="mini", tooltip="A recipe, or a folder in models/subjectgen."
        ),
        io.Combo.Input("adapter", options=list(adapter_places()), default=NO_ADAPTER, tooltip=ADAPTER),
        io.Combo.Input("dtype", options=list(DTYPES), default=next(iter(DTYPES)), tooltip="Of the weights."),
        io.Combo.Input("offload", options=list(OFFLOADS), default="none", tooltip=OFFLOAD),
    ]


def quantization_input() -> io.Input:
    """Apart and optional, as workflows from before it have neither its value nor a place for it."""
    return io.Combo.Input(
        "quantization", options=list(QUANTIZATIONS), default="none", optional=True, tooltip=QUANTIZATION
    )


class Load(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenLoad",
            display_name="Load subjectgen model",
            category=CATEGORY,
            description="Opens a model once; it stays open between runs and ComfyUI may take it out of memory.",
            inputs=[*model_inputs(), quantization_input()],
            outputs=[Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def execute(cls, model: str, adapter: str, dtype: str, offload: str, quantization: str = "none") -> io.NodeOutput:
        place, trained = model_places()[model], adapter_places()[adapter]
        options = {"dtype": DTYPES[dtype], "quantization": quantization, "offload": offload}
        return io.NodeOutput(open_pipeline(place, adapter=trained, **options))
