"""What stands beside the noise in each forward of a stage, from a list of conditions: passed along, or kept once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.weak import WeakIdRef

from subjectgen.models.dit.kept import KeyValues, StackedKeyValues, beside_noise, joined, key_bias, real_tokens
from subjectgen.models.dit.parallel import Ranks, undivided
from subjectgen.models.dit.positions import Grid, image_ids
from subjectgen.types import Condition, IdentityTokens, SemanticTokens

STEP_CACHES = (FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig)

Memo = dict[int, tuple[SemanticTokens, KeyValues]]  # by id; holds the tokens, so that an id stays theirs


@dataclass(frozen=True, kw_only=True)
class Share:
    """The samples of a batch that one forward serves, and what stands beside their noise tokens."""

    rows: Int[Tensor, " b"]
    text: Float[Tensor, "b text width"]
    image: Float[Tensor, "b references channels"]
    image_ids: Float[Tensor, "noise_and_references 3"]
    pooled: Float[Tensor, "b pooled"]
    kept: StackedKeyValues | None = None
    bias: Float[Tensor, "b keys"] | None = None


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """Everything about the conditions of one batch that does not change from step to step."""

    shares: tuple[Share, ...]
    features: Float[Tensor, "1 noise features"]  # of position, for a net with surplus input channels
    name: str


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much each kind of condition counts: 0 = not there, 1 = as it is."""

    semantic: float | int
    identity: float | int

    def __post_init__(self):
        for kind, weight in (("semantic", self.semantic), ("identity", self.identity)):
            if not 0 <= weight <= 1:
                raise ValueError(f"{kind} weight {weight}: expected 0 (not there) to 1 (as it is)")

    def present(self, condition: Condition) -> Condition:
        """The condition without what has no weight or no tokens."""
        has_references = self.identity and condition.identity is not None and condition.identity.tokens
        return Condition(
            semantic=condition.semantic if self.semantic else None,
            identity=condition.identity if has_references else None,
        )


# The functions below take a FluxDenoiser and conditions reduced to what is present at the weights.


def joint_shares(
    denoiser, conditions: Sequence[Condition], grid: Grid, weights: Weights, null_pooled: Float[Tensor, " pooled"]
) -> Iterator[Share]:
    """One share per layout of references, because one forward has one set of positions."""
    layouts: dict[tuple[Any, ...], list[int]] = {}
    for row, condition in enumerate(conditions):
        layouts.setdefault(condition.identity.layout if condition.identity else (), []).append(row)
    for rows in layouts.values():
        members = [conditions[row] for row in rows]
        text, real = _text(denoiser, [member.semantic for member in members], null_pooled)
        image = _references(denoiser, [member.identity for member in members], null_pooled)
        seen = real.new_ones(len(rows), 1)
        noise = (seen.expand(-1, grid[0] * grid[1]), 1.0)
        yield Share(
            rows=torch.tensor(rows, device=text.device),
            text=text,
            image=image,
            image_ids=_image_ids(members[0].identity, grid, text.device),
            pooled=_pooled(members, null_pooled),
            bias=key_bias([(real, weights.semantic), noise, (seen.expand(-1, image.shape[1]), weights.identity)]),
        )


def cached_share(
    denoiser,
    conditions: Sequence[Condition],
    grid: Grid,
    weights: Weights,
    null_pooled: Float[Tensor, " pooled"],
    memo: Memo,
) -> Share:
    """One share for the whole batch: the keys and values of its conditions, padded."""
    semantics = _semantic_memory(denoiser, [condition.semantic for condition in conditions], null_pooled, memo)
    identities = _identity_memory(denoiser, [condition.identity for condition in conditions], grid, null_pooled)
    kinds = ((semantics, weights.semantic), (identities, weights.identity))
    kept, bias = beside_noise(kinds, grid[0] * grid[1])
    config = denoiser.transformer.config
    return Share(
        rows=torch.arange(len(conditions), device=null_pooled.device),
        text=null_pooled.new_zeros(len(conditions), 0, config["joint_attention_dim"]),
        image=null_pooled.new_zeros(len(conditions), 0, config["in_channels"]),
        image_ids=image_ids(grid, (), null_pooled.device),
        pooled=_pooled(conditions, null_pooled),
        kept=kept,
        bias=bias,
    )


def for_process(share: Share, num_noise: int, ranks: Ranks) -> Share:
    """What one of several processes needs of a share: streams that can be split, its part of what is kept."""
    text, image = share.text.shape[1], num_noise + share.image.shape[1]
    kept = 0 if share.kept is None else share.kept.keys.shape[2]
    return replace(
        share,
        text=ranks.padded(share.text, 1),
        image=ranks.padded(share.image, 1, beside=num_noise),
        image_ids=ranks.padded(share.image_ids, 0),
        kept=ranks.kept(share.kept),
        bias=ranks.bias(share.bias, (text, image, kept), like=share.text),
    )


def _text(
    denoiser, semantics: Sequence[SemanticTokens | None], like: Tensor
) -> tuple[Float[Tensor, "b t width"], Bool[Tensor, "b t"]]:
    """Semantic tokens padded into one batch, and which are real."""
    empty = like.new_zeros(0, denoiser.transformer.config["joint_attention_dim"])
    tokens = [empty if semantic is None else semantic.tokens.to(like) for semantic in semantics]
    return pad_sequence(tokens, batch_first=True), real_tokens([len(sample) for sample in tokens], like.device)


def _image_ids(identity: IdentityTokens | None, grid: Grid, device: torch.device) -> Float[Tensor, "tokens 3"]:
    """Rotary ids of the noise and of the references' tokens."""
    if identity is None:
        return image_ids(grid, (), device)
    return image_ids(grid, identity.grids, device, identity.counted)


def _references(denoiser, identities: Sequence[IdentityTokens | None], like: Tensor) -> Float[Tensor, "b n c"]:
    """Identity tokens that count, as the net takes them, of samples whose references have the same layout."""
    present = [identity for identity in identities if identity is not None]
    if not present:
        return like.new_zeros(len(identities), 0, denoiser.transformer.config["in_channels"])
    slots = zip(*(identity.tokens for identity in present), strict=True)
    batches = [torch.stack(slot).to(like) for slot in slots]
    whole = torch.cat([denoiser.with_positions(*pair) for pair in zip(batches, present[0].grids, strict=True)], dim=1)
    return whole[:, torch.cat(present[0].counted).to(whole.device)]


def _pooled(conditions: Sequence[Condition], null_pooled: Float[Tensor, " pooled"]) -> Float[Tensor, "b pooled"]:
    pooled = [null_pooled if each.semantic is None else each.semantic.pooled.to(null_pooled) for each in conditions]
    return torch.stack(pooled)


def _semantic_memory(
    denoiser, semantics: Sequence[SemanticTokens | None], null_pooled: Tensor, memo: Memo
) -> list[KeyValues | None]:
    """What is kept of each sample's semantic tokens; those not in `memo` are read in one batch."""
    unread = list({id(each): each for each in semantics if each is not None and id(each) not in memo}.values())
    if unread:
        text, real = _text(denoiser, unread, null_pooled)
        with reading(denoiser.transformer):
            batch = denoiser.semantic_kv(text, None if real.all() else real, null_pooled)
        memo.update({id(each): (each, batch.sample(row, len(each.tokens))) for row, each in enumerate(unread)})
    return [None if each is None else memo[id(each)][1] for each in semantics]


def _identity_memory(
    denoiser, identities: Sequence[IdentityTokens | None], noise_grid: Grid, null_pooled: Tensor
) -> list[KeyValues | None]:
    """What is kept of each sample's references, in their places; a reference is read once in its subject's life."""
    state, placed = weights_state(denoiser.transformer, null_pooled), {}
    for identity in identities:
        if identity is not None and id(identity) not in placed:
            if identity.kv.get("state") != state:
                identity.kv.update(state=state, references=_read_references(denoiser, identity, null_pooled))
            kept = joined(identity.kv["references"])
            placed[id(identity)] = denoiser.placed(kept, identity.grids, noise_grid, identity.counted)
    return [None if identity is None else placed[id(identity)] for identity in identities]


def _read_references(denoiser, identity: IdentityTokens, null_pooled: Tensor) -> list[KeyValues]:
    kept = []
    for tokens, grid, counted in zip(identity.tokens, identity.grids, identity.counted, strict=True):
        with reading(denoiser.transformer):
            kept.append(denoiser.reference_kv(tokens[None].to(null_pooled), grid, null_pooled, counted))
    return kept


@contextmanager
def reading(transformer) -> Iterator[None]:
    """Conditions are read once, each of another length: never compiled, split, or a step of a step cache."""
    restart_step_caches(transformer)
    with torch.compiler.set_stance("force_eager"), transformer.cache_context("reading"), undivided(transformer):
        yield


def restart_step_caches(transformer) -> None:
    """Drop what step caches of diffusers keep: it serves no other stage, call or reading.

    Raises ValueError for a cache that takes the passes of a step, or the reading of conditions, for steps.
    """
    if not transformer.is_cache_enabled:
        return
    if not isinstance(transformer._cache_config, STEP_CACHES):
        known = ", ".join(kind.__name__ for kind in STEP_CACHES)
        name = type(transformer._cache_config).__name__
        raise ValueError(
            f"{name}: expected a step cache that tells passes apart, one of {known}. "
            "Call transformer.disable_cache() and enable one of these"
        )
    transformer._reset_stateful_cache()


def weights_state(transformer, null_pooled: Float[Tensor, " pooled"]) -> tuple[Any, ...]:
    """Changes whenever what conditions are read with does: weights, LoRA, the pooled vector of no prompt."""
    weights = [0 if weight.is_inference() else weight._version for weight in transformer.parameters()]
    adapters = [
        (tuple(module.scaling.items()), tuple(module.active_adapters), module.disable_adapters, _loras_of(module))
        for module in transformer.modules()
        if hasattr(module, "active_adapters") and hasattr(module, "scaling")
    ]
    pooled = (null_pooled.dtype, null_pooled.device, tuple(null_pooled.tolist()))
    return id(transformer), pooled, len(weights), sum(weights), tuple(adapters)


def _loras_of(module) -> tuple[WeakIdRef, ...]:
    """Equal as long as the weights of its adapters are the same objects: others of that name are not."""
    return tuple(WeakIdRef(weight) for name, weight in module.named_parameters() if "lora_" in name)
