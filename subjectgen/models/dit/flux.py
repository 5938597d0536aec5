"""FLUX as a denoiser with conditions: packing, positions, and the keys and values of what conditions it.

The transformer stays diffusers' own; only its attention processors are ours (`processor.py`).
"""

from typing import Literal

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from subjectgen.models.dit.positions import Grid, grid_ids, position_features, reference_offsets
from subjectgen.models.dit.processor import AttentionCall, ConditionProcessor, KeyValues

CONDITION_GUIDANCE = 1.0  # what a guidance-distilled net is told while it reads conditions, so that they stay reusable


class FluxDenoiser:
    """A FluxTransformer2DModel that predicts velocities under semantic and identity conditions."""

    def __init__(self, transformer: FluxTransformer2DModel, conditions: Literal["joint", "cached"] = "cached"):
        if conditions not in ("joint", "cached"):
            raise ValueError(f"conditions={conditions!r}: expected 'joint' or 'cached'")
        self.transformer = transformer
        self.conditions = conditions
        processors = transformer.attn_processors
        if not all(isinstance(processor, ConditionProcessor) for processor in processors.values()):
            ours = {name: ConditionProcessor(index) for index, name in enumerate(processors)}
            transformer.set_attn_processor(ours)  # type: ignore[arg-type]

    @property
    def num_channels(self) -> int:
        """Channels of a packed latent token."""
        return self.transformer.config.out_channels or self.transformer.config.in_channels

    @staticmethod
    def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n packed"]:
        """Latents -> tokens of 2 x 2 latent pixels, row by row."""
        return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)

    @staticmethod
    def unpack(tokens: Float[Tensor, "b n packed"], rows: int, columns: int) -> Float[Tensor, "b c h w"]:
        """Tokens of a grid -> latents; undoes `pack`."""
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=2, q=2)

    def semantic_kv(
        self,
        tokens: Float[Tensor, "b t width"],
        mask: Bool[Tensor, "b t"] | None,
        null_pooled: Float[Tensor, " pooled"],
    ) -> KeyValues:
        """Keys and values of semantic tokens that see only themselves, at sigma 0. No row of `mask` may be all False."""
        call = AttentionCall(writing=True, bias=mask)
        nothing = tokens.new_zeros(len(tokens), 0, self.transformer.config.in_channels)
        self._forward(nothing, tokens, null_pooled, tokens.new_zeros(1), grid_ids((0, 0), device=tokens.device), call)
        return call.key_values()

    def identity_kv(
        self,
        tokens: Float[Tensor, "b r n c"],
        grid: Grid,
        noise_grid: Grid,
        null_pooled: Float[Tensor, " pooled"],
    ) -> KeyValues:
        """Keys and values of `r` references of one size per sample, each seeing only itself, at sigma 0, in their places.

        Returns r * n tokens per sample, reference by reference.
        """
        num_references = tokens.shape[1]
        kept = self.reference_kv(rearrange(tokens, "b r n c -> (b r) n c"), grid, null_pooled)
        offsets = reference_offsets(noise_grid, [grid] * num_references)
        ids = torch.cat([grid_ids(grid, offset, tokens.device) for offset in offsets])
        keys = [rearrange(key, "(b r) n h d -> b (r n) h d", r=num_references) for key in kept.keys]
        values = [rearrange(value, "(b r) n h d -> b (r n) h d", r=num_references) for value in kept.values]
        return self.placed(KeyValues(keys=tuple(keys), values=tuple(values)), ids)

    def reference_kv(
        self, tokens: Float[Tensor, "b n c"], grid: Grid, null_pooled: Float[Tensor, " pooled"]
    ) -> KeyValues:
        """Keys and values of references before they are placed, so that they serve any place in any prompt.

        Rotary attention within a reference depends on differences of positions only.
        """
        call = AttentionCall(writing=True)
        tokens = self._with_positions(tokens, grid)
        nothing = tokens.new_zeros(len(tokens), 0, self.transformer.config.joint_attention_dim)
        self._forward(tokens, nothing, null_pooled, tokens.new_zeros(1), grid_ids(grid, device=tokens.device), call)
        return call.key_values()

    def placed(self, kept: KeyValues, ids: Float[Tensor, "tokens 3"]) -> KeyValues:
        """Kept keys turned to their rotary positions."""
        rotation = self.transformer.pos_embed(ids)
        keys = tuple(apply_rotary_emb(key, rotation, sequence_dim=1) for key in kept.keys)
        return KeyValues(keys=keys, values=kept.values)  # type: ignore[arg-type]

    def denoise_with_kv(
        self,
        tokens: Float[Tensor, "b n c"],
        sigma: Float[Tensor, " times"],
        pooled: Float[Tensor, "b pooled"],
        grid: Grid,
        kept: KeyValues | None = None,
        bias: Float[Tensor, "b kept"] | Bool[Tensor, "b kept"] | None = None,
        guidance: float | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Velocity of noise tokens that see themselves and the kept keys (bool: True = seen; float: added to logits)."""
        if bias is not None:
            seen = torch.ones if bias.dtype == torch.bool else torch.zeros
            bias = torch.cat([seen(tokens.shape[:2], dtype=bias.dtype, device=bias.device), bias], dim=1)
        call = AttentionCall(kept=kept, bias=bias)
        ids = grid_ids(grid, device=tokens.device)
        nothing = tokens.new_zeros(len(tokens), 0, self.transformer.config.joint_attention_dim)
        return self._forward(self._with_positions(tokens, grid), nothing, pooled, sigma, ids, call, guidance)

    def _with_positions(self, tokens: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n wider"]:
        surplus = self.transformer.config.in_channels - tokens.shape[-1]
        if not surplus:
            return tokens
        features = position_features(*grid, surplus).to(tokens)
        return torch.cat([tokens, features.expand(len(tokens), -1, -1)], dim=-1)

    def _forward(self, image, text, pooled, sigma, image_ids, call: AttentionCall, guidance: float | None = None):
        """One pass of the stock transformer, its image stream's output."""
        batch = len(image)
        told = CONDITION_GUIDANCE if guidance is None else guidance
        (velocity,) = self.transformer(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled.expand(batch, -1),
            timestep=sigma.expand(batch),
            img_ids=image_ids,
            txt_ids=image_ids.new_zeros(text.shape[1], 3),
            guidance=image.new_full((batch,), told) if self.transformer.config.guidance_embeds else None,
            joint_attention_kwargs={"conditions": call},
            return_dict=False,
        )
        return velocity
