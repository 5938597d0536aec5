"""Opening a model by what it is called: a recipe that ships with the package, a folder, or a repository on the Hub."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from subjectgen.pipeline import SubjectPipeline
from subjectgen.weights import find_folder


def load(
    model: str | Path = "mini", *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SubjectPipeline:
    """The pipeline called `model`: a recipe's name, a folder written by save_pretrained, or a Hub repo id.

    Raises FileNotFoundError for a name that is none of these, WeightsError for weights that are not as they should be.
    """
    if str(model) in recipes():
        return recipe(str(model)).load(dtype=dtype).to(device)
    if not Path(model).is_dir() and str(model).count("/") != 1:
        raise FileNotFoundError(
            f"there is no model '{model}': expected one of {', '.join(recipes())}, a folder written by "
            "save_pretrained, or a Hub repo id such as 'someone/a-model'"
        )
    return SubjectPipeline.from_pretrained(str(model), dtype=dtype).to(device)


def recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(file.stem for file in find_folder("pipelines").glob("*.py"))


def recipe(name: str) -> ModuleType:
    """A recipe as a module: `recipe("mini").load()`."""
    spec = importlib.util.spec_from_file_location(f"subjectgen_recipe_{name}", find_folder("pipelines") / f"{name}.py")
    assert spec is not None and spec.loader is not None  # a .py file that exists always has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
