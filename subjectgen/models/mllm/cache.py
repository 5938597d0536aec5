"""What a causal MLLM keeps of the tokens it has read, and what it tells of its last layer."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache, InternVLForConditionalGeneration

from subjectgen.types import ReferencePrefix

# How an MLLM's forward calls its cache: transformers before 5.24 knows "past_key_values" alone, 5.40 will not.
IN_FORWARD = inspect.signature(InternVLForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in IN_FORWARD else "past_key_values"


def kept_in(cache: DynamicCache) -> dict[str, Tensor]:
    """Keys and values of one sequence, by their names in a ReferencePrefix."""
    return {
        "keys": torch.cat([layer.keys for layer in cache.layers]),  # type: ignore[misc]
        "values": torch.cat([layer.values for layer in cache.layers]),  # type: ignore[misc]
    }


def cache_of(prefix: ReferencePrefix | None, device: torch.device, dtype: torch.dtype) -> DynamicCache:
    """A cache that continues from the prefix, which stays as it is; an empty one from none."""
    cache = DynamicCache()
    if prefix is None:
        return cache
    for index, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        key, value = (part[None].to(device, dtype) for part in pair)
        cache.update(key, value, index)  # concatenates, so the prefix's own tensors stay as they are
    return cache


def joined(before: ReferencePrefix, further: ReferencePrefix) -> ReferencePrefix:
    """The prefix of all references, where `further` was read behind `before` and its states are its own alone."""
    return replace(
        further,
        states=torch.cat((before.states.to(further.states), further.states), dim=1),
        is_image=torch.cat((before.is_image.to(further.is_image), further.is_image)),
        num_references=before.num_references + further.num_references,
        num_dropped=before.num_dropped + further.num_dropped,
    )


@contextmanager
def last_layer_output(final_norm: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters the final norm: transformers reports the last layer only after it."""
    raw: list[Tensor] = []
    handle = final_norm.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0]))
    try:
        yield raw
    finally:
        handle.remove()
