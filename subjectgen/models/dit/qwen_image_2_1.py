"""Qwen-Image 2.1 as a denoiser under conditions: one block-causal sequence of text and references, then the noise.

The transformer stays diffusers' own; only its attention processors are ours (`prefix.py`). Its conditions are always
"cached": it modulates them at sigma 0 and they never see the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from subjectgen.models.dit.context import Weights, reading, restart_step_caches, weights_state
from subjectgen.models.dit.kept import KeyValues, StackedKeyValues, beside_noise, joined
from subjectgen.models.dit.parallel import Ranks, ranks_of
from subjectgen.models.dit.positions import Grid
from subjectgen.models.dit.prefix import PrefixCall, PrefixProcessor, Turn
from subjectgen.models.dit.processor import install
from subjectgen.types import Condition, IdentityTokens, SemanticTokens

try:
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21TransformerBlock
except ImportError:  # diffusers before 0.41
    pass
else:  # FirstBlockCache and MagCache do not list it: a block of one stream, which it takes and returns
    ONE_STREAM = TransformerBlockMetadata(return_hidden_states_index=0)
    TransformerBlockRegistry.register(QwenImage21TransformerBlock, ONE_STREAM)

PER_SLOT = 4  # tokens, 2 x 2, that stand in the place of one image token of the MLLM
NO_NOISE = (2, 2)  # the net wants a picture behind every prefix: the smallest there is, never looked at


@dataclass(frozen=True, kw_only=True)
class Sequenced:
    """Words in a row, and which of them only hold the place of an image's tokens."""

    tokens: Float[Tensor, "n width"]
    is_image: Bool[Tensor, " n"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "n width"], is_image: Bool[Tensor, " n"] | None = None) -> "Sequenced":
        nowhere = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        return cls(tokens=tokens, is_image=nowhere if is_image is None else is_image)

    def without_images(self) -> "Sequenced":
        return Sequenced.of(self.tokens[~self.is_image])

    def cut(self) -> tuple["Sequenced", "Sequenced"]:
        """Up to the last image, and the rest."""
        count = int(self.is_image.nonzero().max()) + 1
        first = Sequenced(tokens=self.tokens[:count], is_image=self.is_image[:count])
        return first, Sequenced(tokens=self.tokens[count:], is_image=self.is_image[count:])

    def expanded(self) -> Bool[Tensor, " tokens"]:
        """Which tokens are an image's, once these have taken their places."""
        return torch.repeat_interleave(self.is_image, torch.where(self.is_image, PER_SLOT, 1))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of the sequence before the noise, as it was read."""

    kept: KeyValues
    is_image: Bool[Tensor, " tokens"]
    end: int  # the position behind it

    def text(self) -> KeyValues:
        """What is kept of its words."""
        return self.kept.each(lambda tensor: tensor[:, ~self.is_image])

    def images(self, identity: IdentityTokens) -> KeyValues:
        """What is kept of its references: of their tokens that count."""
        counted = torch.cat(identity.counted).to(self.is_image.device)
        return self.kept.each(lambda tensor: tensor[:, self.is_image][:, counted])


@dataclass(frozen=True, kw_only=True)
class Read:
    """The conditions of one picture as they were read."""

    semantic: KeyValues | None = None
    identity: KeyValues | None = None
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class PrefixContext:
    """Everything about the conditions of one batch that does not change from step to step."""

    kept: StackedKeyValues | None
    bias: Float[Tensor, "b keys"] | None
    turn: Turn
    grid: Grid
    name: str


Memo = dict[tuple[int, int], tuple[Condition, Read]]  # by ids; holds the conditions, so that the ids stay theirs


class QwenImage21Denoiser:
    """A QwenImage21Transformer2DModel that predicts velocities under semantic and identity conditions.

    References are read whole, since the net counts positions by their grids; of tokens that do not count nothing is
    kept, so the noise never sees them.
    """

    patch = 1  # latent pixels per token, both sides
    multiple = 2  # tokens that a side of the grid must be divisible by
    needs_aggregator = False  # it was trained on the MLLM's last layer

    def __init__(self, transformer: Any, conditions: str = "cached"):
        if conditions != "cached":
            raise ValueError(f"conditions={conditions!r}: Qwen-Image 2.1 is made for 'cached' ones only")
        if not transformer.config["causal_condition"]:
            raise ValueError(
                "this QwenImage21Transformer2DModel has causal_condition=False: its conditions change with every "
                "step and cannot be kept. Load a checkpoint with causal_condition=True"
            )
        self.transformer = transformer
        self._processors = install(transformer, PrefixProcessor)

    @property
    def num_channels(self) -> int:
        """Channels of a latent token."""
        return self.transformer.config["in_channels"]

    @staticmethod
    def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """Latents -> tokens of one latent pixel, row by row."""
        return rearrange(latents, "b c h w -> b (h w) c")

    @staticmethod
    def unpack(tokens: Float[Tensor, "b n c"], rows: int, columns: int) -> Float[Tensor, "b c h w"]:
        """Tokens of a grid -> latents; undoes `pack`."""
        return rearrange(tokens, "b (h w) c -> b c h w", h=rows, w=columns)

    def prepare(
        self,
        conditions: Sequence[Condition],
        grid: Grid,
        semantic: float | int,
        identity: float | int,
        like: Tensor,
        *,
        name: str = "cond",
        memo: Memo | None = None,
    ) -> PrefixContext:
        """The conditions of a batch at these weights (0 = not there, 1 = as they are), for all steps of a stage.

        Without identity the prompt is read as if there were no references, without semantics the references alone.
        `like` says on which device. `name` keys the step caches of diffusers, which start anew. `memo` belongs to one
        call and saves reading the same prompt twice; references are remembered by their `IdentityTokens`.
        """
        ranks, num_noise = ranks_of(self.transformer), grid[0] * grid[1]
        _check_tokens(grid, ranks)
        weights = Weights(semantic=semantic, identity=identity)
        like = like.to(self.transformer.dtype)
        memo = {} if memo is None else memo
        read = [self._read_once(weights.present(condition), like, memo) for condition in conditions]
        kinds = (([each.semantic for each in read], semantic), ([each.identity for each in read], identity))
        kept, bias = beside_noise(kinds, num_noise)
        num_kept = 0 if kept is None else kept.keys.shape[2]
        turn = torch.stack([self._turn(each.end, like.device)[1] for each in read])[:, None]
        restart_step_caches(self.transformer)
        bias = ranks.bias(bias, (num_noise, num_kept), like=turn)
        return PrefixContext(kept=ranks.kept(kept), bias=bias, turn=turn, grid=grid, name=name)

    def velocity(
        self,
        tokens: Float[Tensor, "b n c"],
        sigma: float | Float[Tensor, ""] | Float[Tensor, " b"],
        context: PrefixContext,
        guidance: float | int | None = None,
    ) -> Float[Tensor, "b n c"]:
        """noise - image as predicted at `sigma`. Raises ValueError for embedded guidance, which this net has not."""
        if guidance is not None:
            raise ValueError(f"embedded guidance {guidance}: Qwen-Image 2.1 is not guidance-distilled, use scale")
        times = torch.as_tensor(sigma, dtype=torch.float32, device=tokens.device).expand(len(tokens))
        call = PrefixCall(turn=context.turn, kept=context.kept, bias=context.bias)
        nothing = Sequenced.of(tokens.new_zeros(0, self.transformer.config["context_in_dim"]))
        with self.transformer.cache_context(context.name):
            return self._forward(tokens, nothing, (context.grid,), times, call, "cached").to(tokens.dtype)

    def _read_once(self, condition: Condition, like: Tensor, memo: Memo) -> Read:
        key = (id(condition.semantic), id(condition.identity))
        if key not in memo:
            memo[key] = (condition, self._read(condition.semantic, condition.identity, like))
        return memo[key][1]

    def _read(self, semantic: SemanticTokens | None, identity: IdentityTokens | None, like: Tensor) -> Read:
        """Whatever is present: nothing, words alone, references alone, or words around references."""
        words = None if semantic is None else Sequenced.of(semantic.tokens.to(like), semantic.is_image)
        if identity is None:
            if words is None:
                return Read()
            part = self._part(words.without_images())
            return Read(semantic=part.text(), end=part.end)
        if words is None:
            part = self._references(self._slots(identity, like), identity, "alone", like)
            return Read(identity=part.images(identity), end=part.end)
        first, rest = words.cut()
        before = self._references(first, identity, "in words", like)
        after = self._part(rest, before=before)
        return Read(semantic=joined([before.text(), after.text()]), identity=before.images(identity), end=after.end)

    def _references(self, words: Sequenced, identity: IdentityTokens, how: str, like: Tensor) -> Part:
        """All up to the last reference: read once in the subject's life, for no prompt can change it."""
        state = weights_state(self.transformer, like)
        if identity.kv.get(how, (None,))[0] != state:
            identity.kv[how] = (state, self._part(words, identity))
        return identity.kv[how][1]

    def _part(self, words: Sequenced, identity: IdentityTokens | None = None, before: Part | None = None) -> Part:
        """Read a stretch of the sequence, with its references in their places, behind what is before it."""
        like, start = words.tokens, 0 if before is None else before.end
        grids = () if identity is None else identity.grids
        latents = () if identity is None else (tokens.to(like) for tokens in identity.tokens)
        is_image = words.expanded()
        noise = like.new_zeros(NO_NOISE[0] * NO_NOISE[1], self.num_channels)
        call = PrefixCall(
            turn=self._turns(start, torch.cat([is_image, is_image.new_ones(len(noise))])),
            kept=None if before is None else before.kept,
        )
        with reading(self.transformer):
            tokens = torch.cat([*latents, noise])[None]
            self._forward(tokens, words, (*grids, NO_NOISE), like.new_zeros(1), call, "extract")
        end = start + int((~is_image).sum()) + sum(max(grid) for grid in grids)
        return Part(kept=call.key_values(), is_image=is_image, end=end)

    def _slots(self, identity: IdentityTokens, like: Tensor) -> Sequenced:
        """References without any words."""
        count = sum(rows * columns for rows, columns in identity.grids) // PER_SLOT
        tokens = like.new_zeros(count, self.transformer.config["context_in_dim"])
        return Sequenced(tokens=tokens, is_image=torch.ones(count, dtype=torch.bool, device=like.device))

    def _turns(self, start: int, is_image: Bool[Tensor, " n"]) -> Turn:
        """Rotation by `start` positions: of words on all three axes, of images on the first, theirs are centred."""
        words, images = self._turn(start, is_image.device)
        return torch.where(is_image[:, None], images, words)[None]

    def _turn(self, position: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotation of a word and of an image's token by a position."""
        frame, row, column = (axis[position].to(device) for axis in self.transformer.pos_embed.freqs)
        return torch.cat([frame, row, column]), torch.cat([frame, torch.ones_like(row), torch.ones_like(column)])

    def _forward(self, tokens, words: Sequenced, grids: Sequence[Grid], sigma, call: PrefixCall, mode: str) -> Tensor:
        """One pass of the stock transformer: the output at its image tokens."""
        for processor in self._processors:
            processor.to(tokens.device)
        slots = words.is_image.new_ones(grids[-1][0] * grids[-1][1] // PER_SLOT)
        (velocity,) = self.transformer(
            hidden_states=tokens.to(self.transformer.dtype),
            encoder_hidden_states=repeat(words.tokens.to(self.transformer.dtype), "t w -> b t w", b=len(tokens)),
            timestep=sigma,
            img_shapes=[[(1, *grid) for grid in grids]] * len(tokens),
            img_mask=repeat(torch.cat([words.is_image, slots]), "t -> b t", b=len(tokens)),
            kv_cache=call,
            kv_cache_mode=mode,
            return_dict=False,
        )
        return velocity


def _check_tokens(grid: Grid, ranks: Ranks) -> None:
    if ranks.padding(grid[0] * grid[1]):
        raise ValueError(
            f"{grid[0]} x {grid[1]} tokens over {ranks.degree} processes: expected a multiple of {ranks.degree}. "
            "Ask for another height or width, or split over fewer processes (ulysses_degree)"
        )
