"""What ComfyUI asks the pack for: its nodes."""

from comfy_api.latest import ComfyExtension, io

from subjectgen.comfyui.all_in_one_node import PaintAtOnce
from subjectgen.comfyui.load_node import Load
from subjectgen.comfyui.models import add_folders
from subjectgen.comfyui.sample_node import Sample
from subjectgen.comfyui.stages_node import Stages
from subjectgen.comfyui.subject_nodes import EncodeSubjects, LoadSubjects, SaveSubjects, Subject

NODES: list[type[io.ComfyNode]] = [
    Load,
    Subject,
    EncodeSubjects,
    SaveSubjects,
    LoadSubjects,
    Stages,
    Sample,
    PaintAtOnce,
]


class SubjectgenExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI calls this once, at its start. Older ones call no `on_load`, and schemas need the folders."""
    add_folders()
    return SubjectgenExtension()
