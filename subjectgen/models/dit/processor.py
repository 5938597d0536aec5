"""The attention processor that lets a stock FluxTransformer2DModel keep and reuse keys and values of its conditions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Float
from torch import Tensor, nn

from subjectgen.models.dit.kept import KeyValues, StackedKeyValues

Heads = Float[Tensor, "batch tokens heads dim"]
Rotation = tuple[Float[Tensor, "tokens dim"], Float[Tensor, "tokens dim"]]  # cosines, sines


@dataclass(kw_only=True)
class AttentionCall:
    """What the attention blocks of one forward write down and append. It lives as long as that forward."""

    writing: bool = False
    kept: KeyValues | StackedKeyValues | None = None
    bias: Float[Tensor, "batch keys"] | None = None  # added to the attention logits; None = nothing
    written: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def key_values(self) -> KeyValues:
        """Everything written, in the order of the blocks."""
        blocks = [self.written[index] for index in sorted(self.written)]
        return KeyValues(keys=tuple(key for key, _ in blocks), values=tuple(value for _, value in blocks))


class BlockProcessor:
    """What the processors of all families share: their block, what is kept for it, and the backend that was set."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, index: int):
        self.index = index  # of the attention block it serves
        self.slot = torch.tensor([index])  # the same, on the device of the transformer

    def to(self, device: torch.device) -> None:
        if self.slot.device != device:
            self.slot = self.slot.to(device)

    def _kept(self, kept: KeyValues | StackedKeyValues) -> tuple[Heads, Heads]:
        if isinstance(kept, StackedKeyValues) and torch.compiler.is_compiling():
            return kept.at(self.slot)
        return kept.keys[self.index], kept.values[self.index]


class ConditionProcessor(BlockProcessor):
    """Flux attention that can keep its keys (before rotation) and values, and append kept ones (rotated).

    Without an `AttentionCall` it computes what diffusers' own processor computes.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "batch image width"],
        encoder_hidden_states: Float[Tensor, "batch text width"] | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
        conditions: AttentionCall | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        call = conditions or AttentionCall()
        query, key, value = _projected(attn, hidden_states, encoder_hidden_states)
        if call.writing:
            call.written[self.index] = (key, value)
        if image_rotary_emb is not None:
            query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        if call.kept is not None:
            kept_key, kept_value = self._kept(call.kept)
            key, value = torch.cat([key, kept_key], dim=1), torch.cat([value, kept_value], dim=1)
        mixed = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask if call.bias is None else call.bias[:, None, None].to(query.dtype),
            backend=self._attention_backend,
            parallel_config=None if call.writing else self._parallel_config,  # conditions are read whole
        )
        return _output(attn, mixed.flatten(2, 3).to(query.dtype), encoder_hidden_states)


def install(transformer: Any, kind: type) -> list[Any]:
    """Give every attention block a processor of this kind, once; the backend and the parallelism that were set stay."""
    processors: dict[str, Any] = dict(transformer.attn_processors)
    if not all(isinstance(processor, kind) for processor in processors.values()):
        ours = {name: kind(index) for index, name in enumerate(processors)}
        for name, processor in ours.items():
            processor._attention_backend = getattr(processors[name], "_attention_backend", None)
            processor._parallel_config = getattr(processors[name], "_parallel_config", None)
        transformer.set_attn_processor(dict(ours))
        processors = ours
    return list(processors.values())


def rotated(heads: Heads, rotation: Rotation) -> Heads:
    """Queries or keys turned to their positions."""
    return apply_rotary_emb(heads, rotation, sequence_dim=1)  # type: ignore[arg-type, return-value]


def _projected(attn, hidden_states, encoder_hidden_states) -> tuple[Heads, Heads, Heads]:
    """Normalised queries and keys, and values, of text then image tokens."""
    query, key, value = _split_heads(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
    query, key = attn.norm_q(query), attn.norm_k(key)
    if encoder_hidden_states is None:
        return query, key, value
    names = ("add_q_proj", "add_k_proj", "add_v_proj")
    text_query, text_key, text_value = _split_heads(attn, encoder_hidden_states, "to_added_qkv", names)
    query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
    key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
    return query, key, torch.cat([text_value, value], dim=1)


def _split_heads(attn, tokens, fused: str, separate: Sequence[str]) -> list[Heads]:
    if attn.fused_projections:
        parts = getattr(attn, fused)(tokens).chunk(3, dim=-1)
    else:
        parts = [getattr(attn, name)(tokens) for name in separate]
    return [part.unflatten(-1, (-1, attn.head_dim)) for part in parts]


def _output(attn, mixed, encoder_hidden_states) -> Tensor | tuple[Tensor, Tensor]:
    if encoder_hidden_states is None:
        return mixed
    num_text = encoder_hidden_states.shape[1]
    text, image = mixed[:, :num_text], mixed[:, num_text:]
    image = attn.to_out[1](attn.to_out[0](image.contiguous()))
    return image, attn.to_add_out(text.contiguous())
