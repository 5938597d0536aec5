"""FLUX as a denoiser under conditions, joint or cached.

The transformer stays diffusers' own; only its attention processors are ours (`processor.py`).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import FluxTransformer2DModel
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from subjectgen.models.dit.context import (
    Memo,
    StageContext,
    Weights,
    cached_share,
    for_process,
    joint_shares,
    restart_step_caches,
)
from subjectgen.models.dit.kept import KeyValues, weighed
from subjectgen.models.dit.parallel import ranks_of
from subjectgen.models.dit.positions import Grid, grid_ids, position_features, reference_ids
from subjectgen.models.dit.processor import AttentionCall, ConditionProcessor, install, rotated
from subjectgen.types import Condition

UNGUIDED = 1.0  # what a guidance-distilled net is told while it reads conditions, so that they serve any guidance


class FluxDenoiser:
    """A FluxTransformer2DModel that predicts velocities under semantic and identity conditions.

    "joint": conditions stand beside the noise in every forward. "cached": each group (the semantic tokens, every
    reference) is read once, alone, at sigma 0; noise attends to the keys and values kept from that.
    """

    patch = 2  # latent pixels per token, both sides
    multiple = 1  # tokens that a side of the grid must be divisible by
    needs_aggregator = True  # to be told in its own width what the MLLM read

    def __init__(self, transformer: FluxTransformer2DModel, conditions: str = "cached"):
        if conditions not in ("joint", "cached"):
            raise ValueError(f"conditions={conditions!r}: expected 'joint' or 'cached'")
        self.transformer = transformer
        self.conditions = conditions
        self._processors = install(transformer, ConditionProcessor)

    @property
    def num_channels(self) -> int:
        """Channels of a packed latent token."""
        return self.transformer.config["out_channels"] or self.transformer.config["in_channels"]

    @staticmethod
    def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n packed"]:
        """Latents -> tokens of 2 x 2 latent pixels, row by row."""
        return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)

    @staticmethod
    def unpack(tokens: Float[Tensor, "b n packed"], rows: int, columns: int) -> Float[Tensor, "b c h w"]:
        """Tokens of a grid -> latents; undoes `pack`."""
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=2, q=2)

    # Padded batches: training calls these directly, and gradients flow through them.

    def semantic_kv(
        self,
        tokens: Float[Tensor, "b t width"],
        mask: Bool[Tensor, "b t"] | None,
        null_pooled: Float[Tensor, " pooled"],
    ) -> KeyValues:
        """Kept keys and values of semantic tokens (True = real; no row all False)."""
        call = AttentionCall(writing=True, bias=None if mask is None else weighed(mask))
        nothing = tokens.new_zeros(len(tokens), 0, self.transformer.config["in_channels"])
        self._read(nothing, tokens, null_pooled, grid_ids((0, 0), device=tokens.device), call)
        return call.key_values()

    def identity_kv(
        self,
        tokens: Float[Tensor, "b r n c"],
        grid: Grid,
        noise_grid: Grid,
        null_pooled: Float[Tensor, " pooled"],
        mask: Bool[Tensor, "b r n"] | None = None,
    ) -> KeyValues:
        """Kept keys and values of r references of one size per sample, in their places: r * n tokens a sample.

        Tokens outside the mask are not seen by the others of their reference (True = seen; no reference all False).
        """
        count = tokens.shape[1]
        kept = self.reference_kv(
            tokens.flatten(0, 1), grid, null_pooled, mask=None if mask is None else mask.flatten(0, 1)
        )
        kept = kept.each(lambda tensor: rearrange(tensor, "(b r) n h d -> b (r n) h d", r=count))
        return self.placed(kept, [grid] * count, noise_grid)

    def reference_kv(
        self,
        tokens: Float[Tensor, "b n c"],
        grid: Grid,
        null_pooled: Float[Tensor, " pooled"],
        counted: Bool[Tensor, " n"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> KeyValues:
        """Kept keys and values of references that have no place yet: they serve any place in any prompt.

        Within a reference, rotary attention depends on differences of positions only. Tokens that do not count are
        not read at all; those outside the mask, of padded batches, are seen by no other.
        """
        places = slice(None) if counted is None else counted.to(tokens.device)
        call = AttentionCall(writing=True, bias=None if mask is None else weighed(mask))
        nothing = tokens.new_zeros(len(tokens), 0, self.transformer.config["joint_attention_dim"])
        tokens = self.with_positions(tokens, grid)[:, places]
        self._read(tokens, nothing, null_pooled, grid_ids(grid, device=tokens.device)[places], call)
        return call.key_values()

    def placed(
        self,
        kept: KeyValues,
        grids: Sequence[Grid],
        noise_grid: Grid,
        counted: Sequence[Bool[Tensor, " _"]] | None = None,
    ) -> KeyValues:
        """Keys of references one after the other, turned to their rotary positions behind the noise."""
        rotation = self.transformer.pos_embed(reference_ids(grids, noise_grid, kept.keys[0].device, counted))
        return replace(kept, keys=tuple(rotated(key, rotation) for key in kept.keys))

    def denoise_with_kv(
        self,
        tokens: Float[Tensor, "b n c"],
        sigma: Float[Tensor, " _"],
        pooled: Float[Tensor, "b pooled"],
        grid: Grid,
        kept: KeyValues | None = None,
        mask: Bool[Tensor, "b kept"] | Float[Tensor, "b kept"] | None = None,
        guidance: float | int | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Velocity of noise tokens that see one another and the kept keys (True = seen, or a bias of the logits)."""
        if ranks_of(self.transformer).degree > 1:
            raise ValueError("denoise_with_kv over several processes: expected one. Call prepare() and velocity()")
        if mask is not None:
            bias = weighed(mask) if mask.dtype == torch.bool else mask
            mask = torch.cat([bias.new_zeros(tokens.shape[:2]), bias], dim=1)
        call = AttentionCall(kept=kept, bias=mask)
        ids = grid_ids(grid, device=tokens.device)
        nothing = tokens.new_zeros(len(tokens), 0, self.transformer.config["joint_attention_dim"])
        return self._forward(self.with_positions(tokens, grid), nothing, pooled, sigma, ids, call, guidance)

    # Lists of conditions: sampling calls these.

    def prepare(
        self,
        conditions: Sequence[Condition],
        grid: Grid,
        semantic: float | int,
        identity: float | int,
        null_pooled: Float[Tensor, " pooled"],
        *,
        name: str = "cond",
        memo: Memo | None = None,
    ) -> StageContext:
        """The conditions of a batch at these weights (0 = not there, 1 = as they are), for all steps of a stage.

        `name` keys the step caches of diffusers, which start anew. `memo` belongs to one call on one list of prompts
        and saves reading the same semantic tokens twice; references are remembered by their `IdentityTokens`.
        """
        ranks, num_noise = ranks_of(self.transformer), grid[0] * grid[1]
        weights = Weights(semantic=semantic, identity=identity)
        present = [weights.present(condition) for condition in conditions]
        null_pooled = null_pooled.to(self.transformer.dtype)
        if self.conditions == "joint":
            shares = joint_shares(self, present, grid, weights, null_pooled)
        else:
            shares = (cached_share(self, present, grid, weights, null_pooled, {} if memo is None else memo),)
        shares = tuple(for_process(share, num_noise, ranks) for share in shares)
        restart_step_caches(self.transformer)
        return StageContext(shares=shares, features=self._position_features(grid, null_pooled), name=name)

    def velocity(
        self,
        tokens: Float[Tensor, "b n c"],
        sigma: float | Float[Tensor, ""] | Float[Tensor, " b"],
        context: StageContext,
        guidance: float | int | None = None,
    ) -> Float[Tensor, "b n c"]:
        """noise - image as predicted at `sigma`; `guidance` is what a guidance-distilled net is told."""
        times = torch.as_tensor(sigma, dtype=torch.float32, device=tokens.device).expand(len(tokens))
        noise = _beside(tokens, context.features.expand(len(tokens), -1, -1), dim=-1).to(context.features.dtype)
        if len(context.shares) == 1:
            return self._velocity_of(context, 0, noise, times, guidance).to(tokens.dtype)
        velocity = torch.empty_like(tokens)
        for index, share in enumerate(context.shares):
            part = self._velocity_of(context, index, noise[share.rows], times[share.rows], guidance)
            velocity[share.rows] = part.to(tokens.dtype)
        return velocity

    def _velocity_of(self, context: StageContext, index: int, noise, times, guidance: float | int | None) -> Tensor:
        """The velocity of the samples of one share."""
        share = context.shares[index]
        call = AttentionCall(kept=share.kept, bias=share.bias)
        image = _beside(noise, share.image, dim=1)
        with self.transformer.cache_context(f"{context.name}/{index}"):
            out = self._forward(image, share.text, share.pooled, times, share.image_ids, call, guidance)
        return out[:, : noise.shape[1]]

    def with_positions(self, tokens: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n wider"]:
        """Tokens with the position features that a net with surplus input channels expects."""
        if self.transformer.config["in_channels"] == tokens.shape[-1]:
            return tokens
        return torch.cat([tokens, self._position_features(grid, tokens).expand(len(tokens), -1, -1)], dim=-1)

    def _position_features(self, grid: Grid, like: Tensor) -> Float[Tensor, "1 n features"]:
        return position_features(*grid, self.transformer.config["in_channels"] - self.num_channels).to(like)[None]

    def _read(self, image, text, null_pooled, image_ids, call: AttentionCall) -> None:
        """Run a group of condition tokens alone, at sigma 0, for what `call` writes down."""
        self._forward(image, text, null_pooled.expand(len(image), -1), image.new_zeros(len(image)), image_ids, call)

    def _forward(self, image, text, pooled, sigma, image_ids, call: AttentionCall, guidance: float | int | None = None):
        """One pass of the stock transformer: the output at its image tokens."""
        for processor in self._processors:
            processor.to(image.device)
        told = None
        if self.transformer.config["guidance_embeds"]:
            told = image.new_full((len(image),), UNGUIDED if guidance is None else guidance)
        (velocity,) = self.transformer(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma.expand(len(image)),
            img_ids=image_ids,
            txt_ids=image_ids.new_zeros(text.shape[1], 3),
            guidance=told,
            joint_attention_kwargs={"conditions": call},
            return_dict=False,
        )
        return velocity


def _beside(first: Tensor, second: Tensor, *, dim: int) -> Tensor:
    """One after the other; nothing is copied where there is no second."""
    return torch.cat([first, second], dim=dim) if second.shape[dim] else first
