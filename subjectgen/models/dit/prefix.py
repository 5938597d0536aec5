"""The attention processor that lets a stock QwenImage21Transformer2DModel read its conditions in parts and keep them.

The net is block-causal: what stands before the noise never sees it, so keys and values of the references serve every
prompt, and those of the prompt every step. diffusers keeps them for one call and one layout; here they belong to the
subject and to the call, whatever stands in the batch beside them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from einops import rearrange
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from subjectgen.models.dit.processor import AttentionCall, BlockProcessor, Heads

Keys = Float[Tensor, "batch keys heads dim"]  # and values: of the tokens at hand and of what is kept
KeyValue = tuple[Float[Tensor, "batch _ heads dim"], Float[Tensor, "batch _ heads dim"]]
Segment = tuple[int, int, bool]  # first token, end, whether it is text (causal) or an image (sees itself whole)
Turn = Complex[Tensor, "#batch #tokens half"]  # one for all samples or tokens, or one each


@dataclass(kw_only=True)
class PrefixCall(AttentionCall):
    """An AttentionCall that passes for diffusers' `kv_cache`: every block gets the whole of it."""

    turn: Turn  # moves the rotary positions, which the net counts from 0, behind what is kept

    def get_layer(self, _index: int) -> "PrefixCall":
        """What diffusers asks of a cache; a processor knows its block by itself."""
        return self


class PrefixProcessor(BlockProcessor):
    """Attention of Qwen-Image 2.1 after kept keys and values; only for forwards that come with a PrefixCall."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch tokens width"],
        attention_mask: Bool[Tensor, "batch 1 1 keys"] | None = None,
        rotary_emb: Complex[Tensor, "tokens half"] | None = None,
        layer_cache: PrefixCall | None = None,
        kv_cache_mode: str | None = None,
        cache_write_slice: slice | None = None,
        segments: list[Segment] | None = None,
        key_valid: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        assert layer_cache is not None and rotary_emb is not None
        query, key, value = _projected(attn, hidden_states, rotary_emb, layer_cache.turn)
        if cache_write_slice is not None:
            layer_cache.written[self.index] = key[:, cache_write_slice], value[:, cache_write_slice]
        kept = None if layer_cache.kept is None else self._kept(layer_cache.kept)
        if segments is None:
            bias = layer_cache.bias
            mask = None if bias is None else bias[:, None, None].to(query.dtype)
            mixed = self._attend(query, *_joined((key, value), kept), mask, self._parallel_config)
        else:
            mixed = self._attend_in_turn(query, *_joined(kept, (key, value)), segments)
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3)))

    def _attend_in_turn(self, query: Heads, key: Keys, value: Keys, segments: list[Segment]) -> Heads:
        """Each segment sees what is before it and itself; text sees no later word of its own. Read whole, not split."""
        before = key.shape[1] - query.shape[1]
        outputs = [
            self._attend(
                query[:, first:end],
                key[:, : before + end],
                value[:, : before + end],
                _causal(end - first, before + end, query.device) if is_text else None,
            )
            for first, end, is_text in _with_noise(segments, query.shape[1])
        ]
        return torch.cat(outputs, dim=1)

    def _attend(self, query: Heads, key: Keys, value: Keys, mask: Tensor | None, parallel: Any = None) -> Heads:
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=parallel
        )


def _projected(attn, tokens: Tensor, rotary_emb: Tensor, turn: Turn) -> tuple[Heads, Heads, Heads]:
    """Normalised queries and keys at their positions, and values."""
    heads = [
        rearrange(layer(tokens), "b n (h d) -> b n h d", d=attn.inner_dim // attn.heads) for layer in _layers(attn)
    ]
    rotation = rotary_emb * turn
    query, key = (
        turned(norm(x).to(x.dtype), rotation) for norm, x in ((attn.norm_q, heads[0]), (attn.norm_k, heads[1]))
    )
    return query, key, heads[2]


def _joined(first: KeyValue | None, second: KeyValue | None) -> tuple[Keys, Keys]:
    """Keys and values one after the other."""
    key, value = (torch.cat(parts, dim=1) for parts in zip(*(pair for pair in (first, second) if pair), strict=True))
    return key, value


def _layers(attn) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attn.to_q, attn.to_k, attn.to_v


def turned(heads: Heads, turn: Turn) -> Heads:
    """Queries or keys turned to their positions, in float32 as in diffusers."""
    pairs = torch.view_as_complex(rearrange(heads.float(), "b n h (d two) -> b n h d two", two=2).contiguous())
    return torch.view_as_real(pairs * turn[:, :, None]).flatten(3).type_as(heads)


def _with_noise(segments: list[Segment], num_tokens: int) -> list[Segment]:
    """The segments of the prefix and, as an image, the noise behind it."""
    end = segments[-1][1] if segments else 0
    return [*segments, (end, num_tokens, False)]


def _causal(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "1 1 queries keys"]:
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return seen.tril(num_keys - num_queries)[None, None]
