"""What tests/test_context_parallel.py starts twice: one of two processes that paint each picture together."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import ContextParallelConfig, MagCacheConfig, TaylorSeerCacheConfig
from safetensors.torch import save_file
from test_step_caches import mag_cache, taylor_seer
from tiny_runs import CFG, EVERYTHING, KINDS, MEANING_FIRST, THREE_TERMS

from subjectgen.models.dit.parallel import enable_context_parallel

CASES = {  # guidance, stages, rows of the batch, step cache
    "stages and true CFG": (CFG, MEANING_FIRST, slice(None), None),
    "three terms": (THREE_TERMS, EVERYTHING, slice(None), None),
    "one picture": (CFG, EVERYTHING, slice(0, 1), None),
    "no references": (CFG, EVERYTHING, slice(2, 3), None),
    "TaylorSeer": (CFG, MEANING_FIRST, slice(None), taylor_seer(3)),
    "MagCache": (CFG, MEANING_FIRST, slice(None), mag_cache(9.0)),
}


def latents(kind: str, case: str, split: Callable[[Any], None] = lambda transformer: None) -> torch.Tensor:
    guidance, stages, rows, cache = CASES[case]
    transformer = KINDS[kind].transformer()
    if isinstance(cache, MagCacheConfig):  # the order that is asked for; of TaylorSeer none is
        transformer.enable_cache(cache)
    split(transformer)
    if isinstance(cache, TaylorSeerCacheConfig):
        transformer.enable_cache(cache)
    return KINDS[kind].run(transformer, guidance, stages, rows)


def as_diffusers_does(transformer: Any) -> None:
    """After our processors were installed. It counts accelerators to choose one, and a CPU is none."""
    KINDS["flux joint"].denoiser(transformer)
    with mock.patch("torch.accelerator.device_count", return_value=1):
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results = {
        f"{kind}: {case}": latents(kind, case, lambda transformer: enable_context_parallel(transformer, 2))
        for kind in KINDS
        for case in CASES
    }
    results["by diffusers"] = latents("flux joint", "stages and true CFG", as_diffusers_does)
    save_file(results, Path(sys.argv[1], f"{torch.distributed.get_rank()}.safetensors"))
    torch.distributed.destroy_process_group()
