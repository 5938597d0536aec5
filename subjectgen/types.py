"""What travels the path from prompt and references to a picture: frozen, keyword-only, a shape on every field.

A batch is a list of these, one per prompt: nothing is padded until a network needs it, so prompts with different
numbers and sizes of references never influence one another.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Raw hidden states of every MLLM layer for the tokens of one prompt and its references.

    Layer 0 is the embedding output, the last layer is taken before the final norm. Template tokens are cut away.
    """

    states: Float[Tensor, "layers tokens width"]
    is_image: Bool[Tensor, " tokens"]


@dataclass(frozen=True, kw_only=True)
class SemanticTokens:
    """Fused hidden states of one prompt, ready for the DiT's text stream, and their pooled vector."""

    tokens: Float[Tensor, "tokens width"]
    pooled: Float[Tensor, " pooled"]
    is_image: Bool[Tensor, " tokens"] | None = None  # where a DiT of one sequence puts the references; None: nowhere


@dataclass(frozen=True, kw_only=True)
class IdentityTokens:
    """Packed VAE latents of the references of one prompt, one entry per reference, in the prompt's order."""

    tokens: tuple[Float[Tensor, "_ channels"], ...]
    grids: tuple[tuple[int, int], ...]  # rows and columns of tokens of each reference
    masks: tuple[Bool[Tensor, " _"], ...] | None = None  # which tokens of each count, see `counted`; None: all
    kv: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # condition K/V, kept by the subject

    @property
    def counted(self) -> tuple[Bool[Tensor, " _"], ...]:
        """Which tokens of each reference count; the others are left out, the positions are those of the whole grid."""
        if self.masks is not None:
            return self.masks
        return tuple(torch.ones(len(each), dtype=torch.bool, device=each.device) for each in self.tokens)

    @property
    def layout(self) -> tuple[Any, ...]:
        """Equal where tokens that count are at equal places."""
        return self.grids, tuple(tuple(mask.tolist()) for mask in self.counted)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """All that may condition one picture. `None` or no references means that kind is absent."""

    semantic: SemanticTokens | None = None
    identity: IdentityTokens | None = None


@dataclass(frozen=True, kw_only=True)
class ReferencePrefix:
    """What a causal MLLM keeps of references that precede every prompt: exact for each of them."""

    states: Float[Tensor, "layers tokens width"]  # raw, of the tokens that condition the DiT
    is_image: Bool[Tensor, " tokens"]  # which of these are images
    keys: Float[Tensor, "decoder_layers kv_heads prefix_tokens head_dim"]  # of the whole prefix with its template
    values: Float[Tensor, "decoder_layers kv_heads prefix_tokens head_dim"]
    position: int  # the next token's
    num_references: int
    num_dropped: int = 0  # image tokens outside the masks, which are not among the states
