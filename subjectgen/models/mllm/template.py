"""The chat template around a prompt, in tokens: what precedes it, the prompt's own, what follows."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """One prompt and its references as token ids, up to the last token that has any influence."""

    input_ids: Int[Tensor, " tokens"]
    is_image: Bool[Tensor, " tokens"]
    is_text: Bool[Tensor, " tokens"]  # further tokens that become semantic ones; neither kind = dropped
    num_prefix: int  # tokens that depend on the references only


@dataclass(frozen=True)
class Frame:
    """The rendered chat template around a prompt, cut at special tokens: nothing merges across those."""

    prefix_ids: Int[Tensor, " tokens"]  # up to the last special token before the prompt
    head: str  # all before the prompt
    lead: str  # the part of it after that special token
    trail: str  # between the prompt and the next special token
    tail: str  # all after the prompt


def probed(render: Callable[[str], str]) -> tuple[str, str]:
    """What a template puts before and after a prompt: all that two prompts which share no character have in common."""
    first, second = render("a"), render("b")
    start = next((i for i, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), len(first))
    head, tail = first[:start], first[start + 1 :]
    if head + "b" + tail != second:
        raise ValueError("the processor's chat template changes the prompt: it must contain it once, as it is")
    return head, tail


def cut(tokenizer: Any, head: str, tail: str) -> Frame:
    """The frame of a prompt between `head` and `tail`."""
    added = tokenizer.added_tokens_decoder.values()
    boundaries = [re.escape(token.content) for token in added if not (token.lstrip or token.rstrip)]
    special = re.compile("|".join(boundaries))
    end = max((match.end() for match in special.finditer(head)), default=0)
    following = special.search(tail)
    return Frame(
        prefix_ids=token_ids(tokenizer, head[:end]),
        head=head,
        lead=head[end:],
        trail=tail[: following.start()] if following else tail,
        tail=tail,
    )


def token_ids(tokenizer: Any, text: str) -> Int[Tensor, " tokens"]:
    """Ids of a piece of template, special tokens and all."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


def asked_ids(tokenizer: Any, prompt: str, frame: Frame) -> Int[Tensor, " tokens"]:
    """Everything behind the references, up to the start of an answer. The prompt is only text, as below."""
    text = frame.lead + prompt + frame.trail
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    answer = token_ids(tokenizer, frame.tail.removeprefix(frame.trail))
    return torch.cat((torch.tensor(ids, dtype=torch.long), answer))


def prompt_tokens(tokenizer: Any, prompt: str, frame: Frame, available: int, at_most: int) -> tuple[list, list[int]]:
    """Ids of lead + prompt + trail, and the positions among them that hold (a part of) the prompt; warns where it cuts.

    The prompt is only text: a special token's name in it has no effect. `available` positions are left after the
    prefix, of which the prompt takes `at_most`.
    """
    encoded = tokenizer(
        frame.lead + prompt + frame.trail,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    start, stop = len(frame.lead), len(frame.lead) + len(prompt)
    spans = encoded["offset_mapping"]
    positions = [i for i, (first, last) in enumerate(spans) if first < stop and last > start]
    limit = min(at_most, available - (positions[0] if positions else 0))
    if len(positions) > limit:
        left_out = prompt[max(spans[positions[limit]][0] - start, 0) :]
        warnings.warn(_cut_message(len(positions), limit, left_out), stacklevel=4)
    return encoded["input_ids"], positions[:limit]


def _cut_message(num_tokens: int, limit: int, left_out: str) -> str:
    return (
        f"the prompt has {num_tokens} tokens and {limit} can be read: the last {num_tokens - limit} tokens "
        f"({len(left_out.split())} words) were cut, from {left_out[:40]!r} on"
    )
