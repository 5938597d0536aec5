"""Two processes that share every sequence paint what one paints alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_qwen
import torch
from context_parallel_run import CASES, latents
from diffusers import ContextParallelConfig, FirstBlockCacheConfig
from diffusers.hooks import apply_context_parallel
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from safetensors.torch import load_file
from test_step_caches import mag_cache
from tiny_flux import GRID, NULL, noise, semantic, tiny_flux
from tiny_runs import KINDS

from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.kept import StackedKeyValues
from subjectgen.models.dit.parallel import QWEN_IMAGE_2_1_PLAN, Ranks, enable_context_parallel
from subjectgen.models.dit.qwen_image_2_1 import QwenImage21Denoiser
from subjectgen.types import Condition

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """The latents of every case, by each of two processes."""
    folder = tmp_path_factory.mktemp("painted")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(HERE / "context_parallel_run.py"), str(folder)]
    subprocess.run(command, check=True, env=environment, timeout=240)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(painted, kind, case):
    alone = latents(kind, case)
    for process in painted:
        assert torch.allclose(process[f"{kind}: {case}"], alone, atol=1e-5)


@pytest.mark.slow
def test_diffusers_own_call_does_it_too(painted):
    assert torch.equal(painted[0]["by diffusers"], painted[0]["flux joint: stages and true CFG"])


def test_processes_get_every_key_once_and_biases_follow_them():
    """Against a plain loop: process by process, its share of each stream, padding shut out."""
    keys = torch.arange(7.0).view(1, 1, 7, 1, 1)
    bias = torch.arange(12.0)[None]
    processes = [Ranks(3, rank) for rank in range(3)]
    shares = [ranks.kept(StackedKeyValues(keys=keys, values=keys)).keys.flatten().tolist() for ranks in processes]
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 0, 0]]
    never = -torch.inf
    expected = [[0, 1, 5, 6, 7], [2, 3, 8, 9, 10], [4, never, 11, never, never]]
    assert processes[1].bias(bias, (5, 7), like=bias).view(3, 5).tolist() == expected
    assert processes[1].bias(None, (6, 3), like=bias) is None and Ranks().bias(bias, (5, 7), like=bias) is bias


def split(transformer, **config):
    """As one of several processes, of which no other runs: enough for what is refused before anything is computed."""
    parallel = ContextParallelConfig(**{"ulysses_degree": 2, **config})
    parallel._ulysses_local_rank = 0
    transformer._parallel_config = ParallelConfig(context_parallel_config=parallel)
    set_backend(transformer, AttentionBackendName.NATIVE)
    return transformer


def set_backend(transformer, backend):
    """Of this transformer alone: set_attention_backend() also sets that of all others."""
    for processor in transformer.attn_processors.values():
        processor._attention_backend = backend


def prepare(transformer):
    return FluxDenoiser(transformer).prepare([Condition(semantic=semantic(7, 1))], GRID, 1.0, 1.0, NULL)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"ring_degree": 2, "ulysses_degree": 1}, "ring_degree=2: expected 1"),
        ({"ulysses_anything": True}, "ulysses_anything=True: expected False"),
        ({"ulysses_degree": 4}, "ulysses_degree=4: expected a divisor of the transformer's 2 attention heads"),
    ],
)
def test_what_would_paint_a_wrong_picture_is_refused(config, says):
    with pytest.raises(ValueError, match=says):
        prepare(split(tiny_flux(), **config))


def test_a_backend_that_sees_its_own_share_only_is_refused():
    transformer = split(tiny_flux())
    set_backend(transformer, AttentionBackendName._NATIVE_MATH)
    with pytest.raises(ValueError, match="backend '_native_math' cannot be split"):
        prepare(transformer)


def test_a_cache_that_decides_by_what_it_sees_is_refused():
    transformer = split(tiny_flux())
    transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="FirstBlockCacheConfig beside context parallelism"):
        prepare(transformer)


def test_mag_cache_of_whole_sequences_is_refused():
    transformer = split(tiny_qwen.tiny_qwen_transformer())
    apply_context_parallel(transformer, transformer._parallel_config.context_parallel_config, QWEN_IMAGE_2_1_PLAN)
    transformer.enable_cache(mag_cache(1.0))
    with pytest.raises(ValueError, match="MagCache was enabled after context parallelism"):
        QwenImage21Denoiser(transformer).prepare([Condition()], (4, 6), 1.0, 1.0, torch.zeros(0))


def test_tokens_that_cannot_be_shared_are_refused():
    transformer = split(tiny_qwen.tiny_qwen_transformer(num_attention_heads=3), ulysses_degree=3)
    with pytest.raises(ValueError, match=r"2 x 2 tokens over 3 processes: expected a multiple of 3"):
        QwenImage21Denoiser(transformer).prepare([Condition()], (2, 2), 1.0, 1.0, torch.zeros(0))


def test_enabling_is_refused_alone_and_twice_and_training_at_all():
    with pytest.raises(ValueError, match="start the script with torchrun"):
        enable_context_parallel(tiny_flux(), 2)
    transformer = split(tiny_flux())
    with pytest.raises(ValueError, match="enable it once"):
        enable_context_parallel(transformer, 2)
    with pytest.raises(ValueError, match="denoise_with_kv over several processes"):
        FluxDenoiser(transformer).denoise_with_kv(noise(), torch.tensor([0.5]), NULL[None], GRID)
