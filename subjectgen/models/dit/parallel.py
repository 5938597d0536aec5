"""One picture by several processes, each with a share of every sequence: Ulysses context parallelism of diffusers.

diffusers splits the streams where a net begins, exchanges heads for tokens around each attention, and joins the output.
What is done here: streams of any length are padded to be split, kept keys and values are split like the noise they
stand beside, and biases follow the order in which the processes' keys arrive. Conditions are read whole, by everyone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import ContextParallelConfig
from diffusers.hooks import MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.context_parallel import (
    ContextParallelGatherHook,
    ContextParallelSplitHook,
    apply_context_parallel,
)
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput, ParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from subjectgen.models.dit.kept import StackedKeyValues

ALONG_TOKENS = ContextParallelInput(split_dim=0)
QWEN_IMAGE_2_1_PLAN = {  # diffusers has none; for forwards of the noise alone, which are all that are split here
    "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
    "transformer_blocks.*": {"rotary_emb": ALONG_TOKENS, "target_token_mask": ALONG_TOKENS},
    "norm_out": {"target_token_mask": ALONG_TOKENS},
    "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
}
BY_STEP = (MagCacheConfig, TaylorSeerCacheConfig)  # step caches that decide by counting, so all processes alike


@dataclass(frozen=True)
class Ranks:
    """The processes that make one picture together, and which of them this is."""

    degree: int = 1
    rank: int = 0

    def padding(self, num_tokens: int) -> int:
        """Tokens to add so that all processes get the same number."""
        return -num_tokens % self.degree

    def padded(self, tokens: Tensor, dim: int, *, beside: int = 0, value: float = 0.0) -> Tensor:
        """Tokens with as many behind them as they lack, together with those they stand `beside`."""
        missing = self.padding(beside + tokens.shape[dim])
        return F.pad(tokens, [0, 0] * (tokens.ndim - 1 - dim) + [0, missing], value=value) if missing else tokens

    def kept(self, kept: StackedKeyValues | None) -> StackedKeyValues | None:
        """This process's share of kept keys and values, padded with zeros."""
        if kept is None or self.degree == 1:
            return kept
        keys, values = (self.padded(each, 2).chunk(self.degree, 2)[self.rank] for each in (kept.keys, kept.values))
        return replace(kept, keys=keys, values=values)

    def bias(
        self, bias: Float[Tensor, "b keys"] | None, streams: Sequence[int], like: Tensor
    ) -> Float[Tensor, "b all_keys"] | None:
        """Bias of the keys of streams one after the other -> in the order of their arrival, padding shut out.

        Each process sends its share of every stream; `like` says how many samples there are, where, if there is none.
        """
        if self.degree == 1 or (bias is None and not any(map(self.padding, streams))):
            return bias
        if bias is None:
            bias = torch.zeros(len(like), sum(streams), device=like.device)
        shares = [
            self.padded(stream, 1, value=-torch.inf).chunk(self.degree, 1) for stream in bias.split(list(streams), 1)
        ]
        return torch.cat([share for process in zip(*shares, strict=True) for share in process], dim=1)


def ranks_of(transformer: Any) -> Ranks:
    """Which processes share this transformer's sequences. Raises ValueError for what would give a wrong picture."""
    config = _context_parallel(transformer)
    if config is None:
        return Ranks()
    _check_split(transformer, config)
    _check_cache(transformer)
    return Ranks(config.ulysses_degree or 1, config._ulysses_local_rank)


def enable_context_parallel(transformer: Any, ulysses_degree: int) -> None:
    """Let `ulysses_degree` processes make each picture together: the same call in each of them, with the same seeds.

    As `transformer.enable_parallelism`, and also on the CPU and for nets that diffusers has no plan for. For a
    transformer on the device where it computes, after torch.distributed.init_process_group(). Raises ValueError for a
    net that cannot be split so.
    """
    if _context_parallel(transformer) is not None:
        raise ValueError("the transformer is already split over processes: enable it once")
    _check_processes(ulysses_degree)
    config = ContextParallelConfig(ulysses_degree=ulysses_degree)
    _check_split(transformer, config)
    transformer._parallel_config = parallel = ParallelConfig(context_parallel_config=config)
    mesh = init_device_mesh(transformer.device.type, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel.setup(dist.get_rank(), dist.get_world_size(), transformer.device, mesh=mesh)
    for processor in transformer.attn_processors.values():
        processor._parallel_config = parallel
    apply_context_parallel(transformer, config, _plan(transformer))


@contextmanager
def undivided(transformer: Any) -> Iterator[None]:
    """Whole sequences in every process meanwhile.

    The hooks of diffusers stay in their places, with nothing to do: what was compiled with them stays valid.
    """
    hooks = _splitting_hooks(transformer)
    plans = [hook.metadata for hook in hooks]
    for hook, plan in zip(hooks, plans, strict=True):
        hook.metadata = {} if isinstance(plan, dict) else [None] * len(plan)
    try:
        yield
    finally:
        for hook, plan in zip(hooks, plans, strict=True):
            hook.metadata = plan


def _splitting_hooks(transformer: Any) -> list[Any]:
    kinds = (ContextParallelSplitHook, ContextParallelGatherHook)
    return [hook for module in transformer.modules() for hook in _hooks(module) if isinstance(hook, kinds)]


def _hooks(module: Any) -> list[Any]:
    """Those that diffusers registered, from the inside out."""
    return list(module._diffusers_hook.hooks.values()) if hasattr(module, "_diffusers_hook") else []


def _context_parallel(transformer: Any) -> ContextParallelConfig | None:
    parallel = transformer._parallel_config
    return None if parallel is None else parallel.context_parallel_config


def _plan(transformer: Any) -> dict[str, Any]:
    """How diffusers splits a net's streams, by the names of its modules."""
    match type(transformer).__name__:
        case "QwenImage21Transformer2DModel":
            return QWEN_IMAGE_2_1_PLAN
        case _:
            return transformer._cp_plan


def _check_processes(ulysses_degree: int) -> None:
    if not dist.is_initialized():
        raise ValueError(
            "no processes to share a picture: start the script with torchrun, and call "
            "torch.distributed.init_process_group() in it"
        )
    if ulysses_degree != dist.get_world_size():
        raise ValueError(f"ulysses_degree={ulysses_degree}: expected the number of processes, {dist.get_world_size()}")


def _check_split(transformer: Any, config: ContextParallelConfig) -> None:
    heads, degree = transformer.config["num_attention_heads"], config.ulysses_degree
    if (config.ring_degree or 1) > 1:
        raise ValueError(
            f"ring_degree={config.ring_degree}: expected 1, kept keys and biases cannot go round a ring. "
            f"Use ContextParallelConfig(ulysses_degree={config.ring_degree})"
        )
    if config.ulysses_anything:
        raise ValueError(
            "ulysses_anything=True: expected False, which takes sequences of any length here, for they are padded. "
            f"Use ContextParallelConfig(ulysses_degree={degree})"
        )
    if heads % degree:
        raise ValueError(f"ulysses_degree={degree}: expected a divisor of the transformer's {heads} attention heads")
    for backend in {_backend(processor) for processor in transformer.attn_processors.values()}:
        if not _AttentionBackendRegistry._is_context_parallel_available(backend):
            known = ", ".join(sorted(_AttentionBackendRegistry._supports_context_parallel))
            raise ValueError(
                f"attention backend '{backend.value}' cannot be split over processes: expected one of {known}. "
                "Choose it with transformer.set_attention_backend(name)"
            )


def _backend(processor: Any) -> AttentionBackendName:
    backend = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
    return AttentionBackendName(backend)


def _check_cache(transformer: Any) -> None:
    """A cache that looks at the tokens would have one process skip a step in which the others wait for it."""
    cache = transformer._cache_config
    if cache is not None and not isinstance(cache, BY_STEP):
        raise ValueError(
            f"{type(cache).__name__} beside context parallelism: expected a step cache by which all processes skip the "
            f"same steps, {' or '.join(kind.__name__ for kind in BY_STEP)}. "
            "Call transformer.disable_cache() and enable one of these"
        )
    first = next(iter(_hooks(transformer.transformer_blocks[0])), None)
    if isinstance(cache, MagCacheConfig) and isinstance(first, ContextParallelSplitHook):
        raise ValueError(
            "MagCache was enabled after context parallelism, and would keep whole sequences where processes have a "
            "share of them. Call transformer.enable_cache() before you enable context parallelism"
        )
