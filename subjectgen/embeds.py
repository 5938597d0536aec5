"""Subjects encoded once, for many prompts: what the MLLM and the VAE made of them, and which model that was."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from subjectgen.files import whole_file
from subjectgen.types import IdentityTokens, ReferencePrefix

FORMAT = "subjectgen.SubjectEmbeds/1"
PREFIX_TENSORS = ("states", "keys", "values")


@dataclass(frozen=True, kw_only=True)
class SubjectEmbeds:
    """The references of one prompt, encoded. Goes wherever `subject_images` goes, with the model that made it only."""

    prefix: ReferencePrefix
    identity: IdentityTokens
    fingerprints: Mapping[str, str]  # component or setting -> sha256 or value
    condition_kv: dict[Any, dict] = field(default_factory=dict, repr=False, compare=False)  # by the DiT's weights_stamp

    @property
    def num_references(self) -> int:
        return self.prefix.num_references

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {f"prefix.{name}": getattr(self.prefix, name) for name in PREFIX_TENSORS}
        tensors |= {f"identity.{k}": tokens for k, tokens in enumerate(self.identity.tokens)}
        metadata = {
            "format": FORMAT,
            "num_references": str(self.num_references),
            "grids": json.dumps(self.identity.grids),
            "fingerprints": json.dumps(dict(self.fingerprints), sort_keys=True),
        }
        with whole_file(Path(path)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "SubjectEmbeds":
        """Read what `save` wrote, on the CPU. Raises FileNotFoundError, or ValueError when it is another kind of file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' does not exist: expected a file written by SubjectEmbeds.save()")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{path}' cannot be read ({error}): it is corrupt or cut off. {REMEDY}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"'{path}' has format {metadata.get('format')!r}: expected {FORMAT!r}. {REMEDY}")
        return cls._from_tensors(tensors, metadata)

    @classmethod
    def _from_tensors(cls, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> "SubjectEmbeds":
        num_references = int(metadata["num_references"])
        prefix = {name: tensors[f"prefix.{name}"] for name in PREFIX_TENSORS}
        return cls(
            prefix=ReferencePrefix(**prefix, num_references=num_references),
            identity=IdentityTokens(
                tokens=tuple(tensors[f"identity.{k}"] for k in range(num_references)),
                grids=tuple((rows, columns) for rows, columns in json.loads(metadata["grids"])),
            ),
            fingerprints=json.loads(metadata["fingerprints"]),
        )

    def check(self, fingerprints: Mapping[str, str]) -> None:
        """Raise ValueError, naming what differs, unless a model with these fingerprints made this."""
        names = sorted(self.fingerprints.keys() | fingerprints.keys())
        differing = [name for name in names if self.fingerprints.get(name) != fingerprints.get(name)]
        if differing:
            shown = (f"{name} ({_short(self.fingerprints.get(name))} made them, here it is {_short(fingerprints.get(name))})"
                     for name in differing)  # fmt: skip
            raise ValueError(f"these SubjectEmbeds come from a different model: {', '.join(shown)}. {REMEDY}")

    def identity_for(self, stamp: Any) -> IdentityTokens:
        """Identity tokens with the condition K/V kept for networks of this stamp; those of any other are dropped."""
        if stamp not in self.condition_kv:
            self.condition_kv.clear()
        return replace(self.identity, kv=self.condition_kv.setdefault(stamp, {}))


REMEDY = "Encode the subjects again with pipe.encode_subjects(images)."


def weights_stamp(*modules: nn.Module) -> tuple:
    """What changes as soon as weights of these modules are replaced, moved or updated, in microseconds (no hashing)."""
    return tuple(chain.from_iterable(map(_stamps, modules)))


def _stamps(module: nn.Module) -> Iterator[Any]:
    yield id(module)
    for tensor in chain(module.parameters(), module.buffers()):
        yield tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
    for part in module.modules():
        if hasattr(part, "lora_A"):  # adapters act through numbers, too
            yield str((part.scaling, part.active_adapters, part.disable_adapters))


def _short(fingerprint: str | None) -> str:
    return "nothing" if fingerprint is None else fingerprint[:12]
