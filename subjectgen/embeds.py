"""Subjects encoded once, for many prompts: what the MLLM and the VAE made of them, and which model that was."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from subjectgen.files import whole_file
from subjectgen.images import shown
from subjectgen.types import IdentityTokens, ReferencePrefix
from subjectgen.weights import kept_aside, state_hash

REMEDY = "Encode the subjects again with pipe.encode_subjects(images)."
VERSIONED = {"transformers_version", "processor_class"}  # differ between releases, change nothing
FORMAT = "subjectgen.SubjectEmbeds/3"
PREFIX_TENSORS = ("states", "is_image", "keys", "values")


@dataclass(frozen=True, kw_only=True)
class SubjectEmbeds:
    """The references of one prompt, encoded. Goes wherever `subject_images` goes, with the model that made it only."""

    prefix: ReferencePrefix
    identity: IdentityTokens
    names: tuple[str | None, ...]  # what prompts may call each reference
    fingerprints: Mapping[str, str]  # component or setting -> sha256 or value

    @property
    def key(self) -> tuple[str, int]:
        """Tells these subjects from others of the same call."""
        return ("embeds", id(self))

    @property
    def num_references(self) -> int:
        return self.prefix.num_references

    def grids(self, pixels_per_token: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of identity tokens of each reference."""
        return self.identity.grids

    def num_identity(self, pixels_per_token: int) -> int:
        """How many identity tokens count."""
        return sum(int(mask.sum()) for mask in self.identity.counted)

    def num_dropped(self, reader) -> int:
        """How many image tokens of the MLLM became no semantic tokens."""
        return self.prefix.num_dropped

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {f"prefix.{name}": getattr(self.prefix, name) for name in PREFIX_TENSORS}
        tensors |= {f"identity.{k}": tokens for k, tokens in enumerate(self.identity.tokens)}
        tensors |= {f"identity_mask.{k}": mask for k, mask in enumerate(self.identity.masks or ())}
        metadata = {
            "format": FORMAT,
            "num_references": str(self.num_references),
            "position": str(self.prefix.position),
            "num_dropped": str(self.prefix.num_dropped),
            "names": json.dumps(self.names),
            "grids": json.dumps(self.identity.grids),
            "fingerprints": json.dumps(dict(self.fingerprints), sort_keys=True),
        }
        with whole_file(Path(path)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "SubjectEmbeds":
        """Read what `save` wrote, on the CPU. Raises FileNotFoundError, or ValueError for any other kind of file."""
        path = Path(path)
        if path.is_dir():
            raise ValueError(
                f"'{path}' is a folder: expected a file written by SubjectEmbeds.save(). Give the file in it"
            )
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
        try:
            return cls._from_tensors(tensors, metadata)
        except KeyError as error:
            raise ValueError(f"'{path}' lacks {error}: it was altered. {REMEDY}") from error
        except ValueError as error:
            raise ValueError(
                f"'{path}' was altered ({error}): expected what SubjectEmbeds.save() wrote. {REMEDY}"
            ) from error

    @classmethod
    def _from_tensors(cls, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> "SubjectEmbeds":
        numbers = {name: _number(name, metadata[name]) for name in ("position", "num_references", "num_dropped")}
        num_references = numbers["num_references"]
        prefix = {name: tensors[f"prefix.{name}"] for name in PREFIX_TENSORS}
        masked = range(num_references) if "identity_mask.0" in tensors else ()
        tokens = tuple(tensors[f"identity.{k}"] for k in range(num_references))
        names, grids, fingerprints = (_parsed(name, metadata[name]) for name in ("names", "grids", "fingerprints"))
        _check_names(names, num_references)
        _check_fingerprints(fingerprints)
        return cls(
            prefix=ReferencePrefix(**prefix, **numbers),  # type: ignore[arg-type]
            identity=IdentityTokens(
                tokens=tokens,
                grids=_grids(grids, [len(each) for each in tokens]),
                masks=tuple(tensors[f"identity_mask.{k}"] for k in masked) or None,
            ),
            names=tuple(names),
            fingerprints=fingerprints,
        )

    def check(self, fingerprints: Mapping[str, str], remedy: str = REMEDY) -> None:
        """Raise ValueError, naming what differs, unless a model with these fingerprints made this."""
        names = sorted(self.fingerprints.keys() | fingerprints.keys())
        differing = [name for name in names if self.fingerprints.get(name) != fingerprints.get(name)]
        if differing:
            shown = [
                f"{name} (made by {_short(self.fingerprints.get(name))}, here {_short(fingerprints.get(name))})"
                for name in differing
            ]
            raise ValueError(f"these SubjectEmbeds come from a different model: {', '.join(shown)}. {remedy}")


class Fingerprints:
    """Hashes of components, computed when first asked for and again only when a component was replaced or changed."""

    def __init__(self):
        self._kept: dict[str, tuple[Any, str]] = {}

    def __call__(self, *, mllm: nn.Module, vae: Any, processor: Any) -> dict[str, str]:
        return {
            "mllm": self._hash("mllm", mllm, lambda: state_hash(mllm)),
            "vae": self._hash("vae", vae, lambda: hash_of(state_hash(vae), normalisation(vae))),
            "processor": self._hash("processor", processor, lambda: hash_of(processor_settings(processor))),
        }

    def _hash(self, name: str, component: Any, compute: Callable[[], str]) -> str:
        stamp = _stamp(component)
        if self._kept.get(name, (None,))[0] != stamp:
            self._kept[name] = (stamp, compute())
        return self._kept[name][1]


def _stamp(component: Any) -> tuple[Any, ...]:
    """Changes as soon as a component is replaced, updated or cast, without reading its weights; not when it moves."""
    if not isinstance(component, nn.Module):
        return (id(component),)
    tensors = dict(chain(component.named_parameters(), component.named_buffers())) | kept_aside(component)
    return (id(component), *((id(t), t.dtype, 0 if t.is_inference() else t._version) for t in tensors.values()))


def normalisation(vae: Any) -> list[Any]:
    """What turns its latents into those that are sampled, which no weight holds."""
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    return [vae.config.get(name) for name in names]


def processor_settings(processor: Any) -> list[Any]:
    """What decides which pixels and which ids the MLLM sees."""
    images = {key: value for key, value in processor.image_processor.to_dict().items() if key not in VERSIONED}
    per_image = getattr(processor, "image_seq_length", None)  # None: as many tokens as a picture's size asks for
    return [processor.chat_template, per_image, images, processor.tokenizer.get_vocab()]


def hash_of(*values: Any) -> str:
    """sha256 of values as JSON has them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{name}={shown(text)}: expected a whole number from 0")
    return int(text)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}={shown(text)}: expected JSON") from error


def _grids(given: Any, counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of each reference. Raises ValueError unless they have its number of tokens."""
    pairs = isinstance(given, list) and all(isinstance(each, list) and len(each) == 2 for each in given)
    whole = pairs and all(type(side) is int and side > 0 for each in given for side in each)
    if not whole or [rows * columns for rows, columns in given] != list(counts):
        raise ValueError(f"grids={shown(given)}: expected rows and columns of {list(counts)} tokens")
    return tuple((rows, columns) for rows, columns in given)


def _check_names(given: Any, count: int) -> None:
    known = isinstance(given, list) and all(each is None or isinstance(each, str) for each in given)
    if not known or len(given) != count:
        raise ValueError(f"names={shown(given)}: expected a name or null for each of {count} references")


def _check_fingerprints(given: Any) -> None:
    if not isinstance(given, dict) or not all(isinstance(each, str) for each in given.values()):
        raise ValueError(f"fingerprints={shown(given)}: expected a text for each component")


def _short(fingerprint: str | None) -> str:
    return "nothing" if fingerprint is None else fingerprint[:12]
