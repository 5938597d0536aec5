"""The node that says how meaning hands over to identity."""

from typing import Any

from comfy_api.latest import io

from subjectgen.comfyui.load_node import CATEGORY
from subjectgen.comfyui.sockets import Stages as StagesSocket
from subjectgen.generate.stages import STAGE_PRESETS, Stage

TWO_TAUS = "two taus"
PRESET = (
    "faithful: meaning and identity always. free: meaning first, then both. paper: meaning, both, then identity alone. "
    f"{TWO_TAUS}: as paper, but handing over at tau1 and tau2."
)


def stages_of(preset: str, tau1: float, tau2: float) -> Any:
    """A preset's name, or meaning until tau1, both until tau2, then identity alone."""
    if preset != TWO_TAUS:
        return preset
    return [Stage(tau1, identity=0.0), Stage(tau2), Stage(0.0, semantic=0.0)]


class Stages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenStages",
            display_name="Stages",
            category=CATEGORY,
            description="How meaning hands over to identity while a picture is painted, from noise (1) to image (0).",
            inputs=[
                io.Combo.Input("preset", options=[*STAGE_PRESETS, TWO_TAUS], default="paper", tooltip=PRESET),
                _tau("tau1", 0.95, "Identity joins below this noise level."),
                _tau("tau2", 0.85, "Meaning leaves below this noise level, which is lower than tau1."),
            ],
            outputs=[StagesSocket.Output(display_name="stages")],
        )

    @classmethod
    def execute(cls, preset: str, tau1: float, tau2: float) -> io.NodeOutput:
        return io.NodeOutput(stages_of(preset, tau1, tau2))


def _tau(name: str, default: float, tooltip: str) -> io.Input:
    tooltip = f"{tooltip} Only for '{TWO_TAUS}'."
    return io.Float.Input(name, default=default, min=0.01, max=1.0, step=0.01, tooltip=tooltip)
