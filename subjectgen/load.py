"""Opening a model by what it is called: a recipe that ships with the package, a folder, or a repository on the Hub."""

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType

import torch

from subjectgen.pipeline import SubjectPipeline
from subjectgen.placement import check_placement, place
from subjectgen.weights import find_folder


def load(
    model: str | Path = "mini",
    *,
    adapter: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    offload: str = "none",
    attention_backend: str | None = None,
    compiled: bool = False,
) -> SubjectPipeline:
    """The pipeline called `model`: a recipe's name, a folder written by save_pretrained, or a Hub repo id.

    adapter: a trained SubjectAdapter, for a recipe that is not whole without: a file, a folder or a Hub repo id.
    dtype: of the weights; the recipe's own if left out, else float32.
    offload, attention_backend, compiled: see `placement.place`.

    Raises FileNotFoundError for a name that is none of these, WeightsError for weights that are not as they should be,
    ValueError for what this machine cannot do.
    """
    check_placement(device, offload)
    opener = _opener(str(model))
    if adapter is not None and "adapter" not in signature(opener).parameters:
        raise ValueError(f"adapter='{adapter}' for '{model}', which is whole without one: leave it out")
    given = {name: value for name, value in (("adapter", adapter), ("dtype", dtype)) if value is not None}
    return place(opener(**given), device, offload=offload, attention_backend=attention_backend, compiled=compiled)


def _opener(model: str) -> Callable[..., SubjectPipeline]:
    if model in recipes():
        return recipe(model).load
    if not Path(model).is_dir() and model.count("/") != 1:
        raise FileNotFoundError(
            f"there is no model '{model}': expected one of {', '.join(recipes())}, a folder written by "
            "save_pretrained, or a Hub repo id such as 'someone/a-model'"
        )
    return partial(SubjectPipeline.from_pretrained, model, dtype=torch.float32)


def recipes() -> list[str]:
    """Names of the recipes that ship with the package: qwen_image_2_1.py is "qwen-image-2.1"."""
    stems = [file.stem for file in find_folder("pipelines").glob("*.py")]
    return sorted(re.sub(r"(?<=\d)_(?=\d)", ".", stem).replace("_", "-") for stem in stems)


def recipe(name: str) -> ModuleType:
    """A recipe as a module: `recipe("mini").load()`."""
    stem = re.sub("[-.]", "_", name)
    spec = importlib.util.spec_from_file_location(f"subjectgen_recipe_{stem}", find_folder("pipelines") / f"{stem}.py")
    assert spec is not None and spec.loader is not None  # a .py file that exists always has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
