"""The nodes that say what of an image is the subject, read subjects once, keep them in a file and read them from it."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from subjectgen.comfyui.load_node import CATEGORY
from subjectgen.comfyui.managed import ManagedPipeline
from subjectgen.comfyui.models import SUBJECTS, SUFFIX, subject_files
from subjectgen.comfyui.pictures import references_from_sockets, subjects_from_image
from subjectgen.comfyui.sockets import Pipeline
from subjectgen.comfyui.sockets import Subject as SubjectSocket
from subjectgen.comfyui.sockets import Subjects as SubjectsSocket
from subjectgen.embeds import SubjectEmbeds

MAX_SUBJECTS = 8
PLACE = "An image of a subject, or a Subject; prompts call it by its place: image 1, ..."
MASK = (
    "1 where the subject is, as you paint it in a mask editor; the rest is left out. Not LoadImage's MASK of a cut-out."
)
TRANSPARENCY = (
    "1 where the picture is transparent, as LoadImage's MASK of a cut-out PNG has it; it is laid on white. LoadImage's "
    "IMAGE alone shows whatever colours lie under it."
)
NAME = "What prompts may call it, such as: red shoe. One picture only."


def subject_inputs(**image_options: Any) -> io.Input:
    """Sockets for images and subjects, one more as soon as the last is used. image_options: of each."""
    image = io.MultiType.Input("image", [io.Image, SubjectSocket], tooltip=PLACE, **image_options)
    return io.Autogrow.Input(
        "subjects", template=io.Autogrow.TemplatePrefix(input=image, prefix="subject", min=1, max=MAX_SUBJECTS)
    )


class Subject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenSubject",
            display_name="Subject",
            category=CATEGORY,
            description="What of an image is the subject, and its name. Goes where an image of a subject goes.",
            inputs=[
                io.Image.Input("image"),
                io.Mask.Input("mask", optional=True, tooltip=MASK),
                io.Mask.Input("transparency", optional=True, tooltip=TRANSPARENCY),
                io.String.Input("name", default="", optional=True, tooltip=NAME),
            ],
            outputs=[SubjectSocket.Output(display_name="subject")],
        )

    @classmethod
    def execute(cls, image: Any, mask: Any = None, transparency: Any = None, name: str = "") -> io.NodeOutput:
        return io.NodeOutput(subjects_from_image(image, mask, transparency, name))


class EncodeSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenEncodeSubjects",
            display_name="Encode subjects",
            category=CATEGORY,
            description="Reads subjects once, for many prompts. Each picture of a batch is a subject of its own.",
            inputs=[Pipeline.Input("pipeline"), subject_inputs()],
            outputs=[SubjectsSocket.Output(display_name="subjects")],
        )

    @classmethod
    def execute(cls, pipeline: ManagedPipeline, subjects: dict[str, Any]) -> io.NodeOutput:
        images = references_from_sockets(subjects)
        pipeline.make_room(pipeline.pipe.estimate("image 1", images))
        return io.NodeOutput(pipeline.encode_subjects(images))


class SaveSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenSaveSubjects",
            display_name="Save subjects",
            category=CATEGORY,
            description="Keeps encoded subjects in models/subjectgen/subjects, for the model that read them.",
            inputs=[SubjectsSocket.Input("subjects"), io.String.Input("filename_prefix", default="subject")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, subjects: SubjectEmbeds, filename_prefix: str) -> io.NodeOutput:
        first = folder_paths.get_folder_paths(SUBJECTS)[0]
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, first)
        file = f"{name}_{number:05}_{SUFFIX}"
        subjects.save(Path(folder) / file)
        return io.NodeOutput(ui={"subjects": [(Path(subfolder) / file).as_posix()]})


class LoadSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SubjectgenLoadSubjects",
            display_name="Load subjects",
            category=CATEGORY,
            description="Subjects that were encoded and saved before, with the same model.",
            inputs=[io.Combo.Input("file", options=subject_files())],
            outputs=[SubjectsSocket.Output(display_name="subjects")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """Changes with the file, so that it is read again."""
        found = Path(folder_paths.get_full_path_or_raise(SUBJECTS, file)).stat()
        return f"{found.st_mtime_ns} {found.st_size}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(SubjectEmbeds.load(folder_paths.get_full_path_or_raise(SUBJECTS, file)))
