"""Pipelines on disk and on the Hub: checkpoints are whole and fit, or the error says why not."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline

from subjectgen import hub
from subjectgen.backbones import ADAPTERS, adapter_of
from subjectgen.placement import check_dtype
from subjectgen.quantization import check_saved
from subjectgen.strict import check_classes, check_complete, check_configured
from subjectgen.weights import verify

Pipeline = TypeVar("Pipeline", bound="SavedPipeline")


class SavedPipeline(DiffusionPipeline):
    """A DiffusionPipeline that loads strictly, and saves a repository that others can load."""

    @classmethod
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> Pipeline:
        """As of every DiffusionPipeline; but strict, and what a manifest speaks of is checked. Raises WeightsError."""
        name = str(pretrained_model_name_or_path)
        _check_dtypes(kwargs)
        with hub.loading(name):
            index = hub.read_index(name, cls.__name__, **kwargs)
            for part in ADAPTERS.keys() - kwargs.keys():
                adapter_of(part, index[part][1])
            check_classes(name, index)
            folder = Path(name if Path(name).is_dir() else cls.download(name, **kwargs))
            verify(folder)
            check_configured(*(folder / part for part in ADAPTERS.keys() - kwargs.keys()))
            check_saved(name, folder, quantised_again=kwargs.get("quantization_config") is not None)
            pipe = super().from_pretrained(folder, **kwargs)
            check_complete(pipe.components, folder, passed=kwargs)
        pipe.register_to_config(_name_or_path=name)
        return pipe

    def save_pretrained(  # type: ignore[override]  (without flashpack)
        self,
        save_directory: str | PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **hub_options: Any,
    ) -> None:
        """As of every DiffusionPipeline, with `pipeline.py` and a model card; `hub_options` as of `push_to_hub`.

        A `README.md` that is not as an earlier call wrote it stays.
        """
        _check_no_lora(self.transformer)
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size)
        hub.write_repository_files(self, Path(save_directory))  # type: ignore[arg-type]
        if push_to_hub:
            hub.upload(Path(save_directory), **{"repo_id": Path(save_directory).name, **hub_options})

    def push_to_hub(  # type: ignore[override]  (a pipeline is a whole repository, no subfolder of one)
        self,
        repo_id: str,
        commit_message: str = "Upload SubjectPipeline",
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Save and upload; a model card that the repository already has stays. Returns the commit's URL."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant)
            return hub.upload(Path(folder), repo_id, commit_message, private, token, create_pr)


def _check_dtypes(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a precision, or one of a component, that is told by its name."""
    for name in ("dtype", "torch_dtype"):
        dtypes = given.get(name)
        for each in dtypes.values() if isinstance(dtypes, dict) else (dtypes,):
            check_dtype(name, each)


def _check_no_lora(transformer: torch.nn.Module) -> None:
    names = sorted(getattr(transformer, "peft_config", {}))
    if names:
        raise ValueError(
            f"the transformer has LoRA ({', '.join(names)}), which a saved pipeline cannot hold: expected none. "
            "Save SubjectAdapter.of(pipe), or merge with transformer.fuse_lora() and transformer.unload_lora()."
        )
