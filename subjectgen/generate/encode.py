"""Station 1: prompt and references -> raw hidden states of every MLLM layer."""

from collections.abc import Sequence

from subjectgen.backbones import Reader
from subjectgen.types import HiddenStates, ReferencePrefix


def encode(reader: Reader, prompts: Sequence[str], prefixes: Sequence[ReferencePrefix]) -> list[HiddenStates]:
    """One entry per prompt, each continuing from its own prefix: prompts of a batch never see one another."""
    if len(prompts) != len(prefixes):
        raise ValueError(f"{len(prompts)} prompts with {len(prefixes)} sets of references: give one set per prompt")
    return [reader.read_prompt(prompt, prefix) for prompt, prefix in zip(prompts, prefixes, strict=True)]
