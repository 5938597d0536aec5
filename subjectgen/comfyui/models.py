"""The models that ComfyUI's folders hold, by the names its users see."""

import json
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from subjectgen.hub import INDEX
from subjectgen.load import recipes

MODELS, SUBJECTS = "subjectgen", "subjectgen_subjects"  # keys in extra_model_paths.yaml
NO_ADAPTER = "none"
SUFFIX = ".safetensors"


def add_folders() -> None:
    """Tell ComfyUI of our folders, beside those that its user's own configuration names."""
    models = Path(folder_paths.models_dir) / "subjectgen"
    folder_paths.add_model_folder_path(MODELS, str(models))
    folder_paths.add_model_folder_path(SUBJECTS, str(models / "subjects"))


def model_places() -> dict[str, str]:
    """Name -> what `subjectgen.load` opens: recipes, and pipelines in ComfyUI's folders."""
    folders = {folder.name: str(folder) for folder in _entries(MODELS, "diffusers") if _is_pipeline(folder)}
    return folders | {name: name for name in recipes()}


def adapter_places() -> dict[str, str | None]:
    """Name -> what was trained on top of a recipe, a file; and none of them."""
    return {NO_ADAPTER: None} | {file.name: str(file) for file in _entries(MODELS) if file.suffix == SUFFIX}


def subject_files() -> list[str]:
    """Names of subjects that were saved, as `folder_paths` knows them."""
    return [name for name in folder_paths.get_filename_list(SUBJECTS) if name.endswith(SUFFIX)]


def _entries(*keys: str) -> Iterator[Path]:
    """All that lies in these folders, those last that ComfyUI prefers."""
    for key in keys:
        for folder in map(Path, reversed(folder_paths.get_folder_paths(key))):
            yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def _is_pipeline(folder: Path) -> bool:
    """Whether it can be loaded; a broken one of others, in a folder that they share, must not hide the rest."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("_class_name") == "SubjectPipeline"
