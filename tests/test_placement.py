"""Placing a pipeline: what works on a CPU changes no picture, what this machine cannot do is refused before loading."""

import sys
from importlib.util import find_spec

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from tiny_pipeline import tiny_pipeline

import subjectgen
from subjectgen.attention import working_backends
from subjectgen.placement import OFFLOADS, best_device, check_placement, place


def without(package):
    return pytest.mark.skipif(find_spec(package) is not None, reason=f"{package} is installed")


PROMPT = "a red cat on the blue ground"
NO_ACCELERATOR = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


def painted(pipe):
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe(PROMPT, **options).images


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(sys.modules["subjectgen.load"], "_opener", lambda model: pytest.fail("loading has begun"))


@pytest.fixture
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_backend_is_that_of_every_block_and_changes_no_picture(pipe):
    expected = painted(pipe)
    place(pipe, attention_backend="_native_math")
    backends = {processor._attention_backend for processor in pipe.transformer.attn_processors.values()}
    assert backends == {AttentionBackendName._NATIVE_MATH}
    assert (painted(pipe) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("telepathy", "diffusers knows no such backend"),
        pytest.param("xformers", "missing package", marks=without("xformers")),
        pytest.param("flash", "install `flash-attn", marks=without("flash_attn")),
        pytest.param("sage_hub", "`kernels` package", marks=without("kernels")),
        ("_native_cudnn", "."),
    ],
)
@NO_ACCELERATOR
def test_a_backend_that_cannot_run_here_is_refused_before_anything_is_loaded(backend, reason, nothing_is_loaded):
    with pytest.raises(ValueError, match=rf"attention_backend='{backend}' on device='cpu': .*{reason}") as refused:
        subjectgen.load("mini", attention_backend=backend)
    works = str(refused.value).split("works there: ")[1].split(", ")
    assert {"native", "_native_math"} <= set(works) and backend not in works


def test_backends_said_to_work_do(pipe):
    expected = painted(pipe)
    for backend in working_backends(torch.device("cpu")):
        if backend != "flex":  # compiles itself at its first use, which takes long
            place(pipe, attention_backend=backend)
            assert (painted(pipe) - expected).abs().max() < 1e-4, backend


def test_compiled_blocks_are_those_of_the_dit(pipe, monkeypatch):
    calls = []
    monkeypatch.setattr(type(pipe.transformer), "compile_repeated_blocks", lambda self, **how: calls.append(how))
    place(pipe)
    assert not calls
    place(pipe, compile=True)
    assert calls == [{"fullgraph": True, "dynamic": True}]


@pytest.mark.parametrize(
    ("offload", "method"),
    [
        ("model", "enable_model_cpu_offload"),
        ("group", "enable_group_offload"),
        ("sequential", "enable_sequential_cpu_offload"),
    ],
)
def test_offloading_is_that_of_diffusers(pipe, offload, method, monkeypatch):
    calls = []
    monkeypatch.setattr("subjectgen.placement.check_placement", lambda *_, **__: None)
    monkeypatch.setattr(type(pipe), method, lambda self, **how: calls.append(how))
    place(pipe, "cuda", offload=offload)
    (how,) = calls
    assert torch.device("cuda") in {torch.device(value) for key, value in how.items() if key.endswith("device")}


def test_group_offload_paints_the_same(pipe):
    """The one way of offloading whose device may be the CPU itself."""
    pytest.importorskip("diffusers", minversion="0.41")  # before, diffusers asked for an accelerator all the same
    expected = painted(tiny_pipeline())
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert (painted(pipe) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("offload", OFFLOADS[1:])
def test_nothing_to_offload_from(offload):
    with pytest.raises(ValueError, match=rf"offload='{offload}' with device='cpu'.*device='cuda'"):
        subjectgen.load("mini", offload=offload)


def test_unknown_offload():
    with pytest.raises(ValueError, match=r"offload='disk': expected one of none, model, group, sequential"):
        check_placement("cpu", "disk")


@NO_ACCELERATOR
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_no_such_device_is_said_before_anything_is_loaded(device, nothing_is_loaded):
    with pytest.raises(ValueError, match=rf"device='{device}': this machine has no accelerator"):
        subjectgen.load("mini", device=device)


@pytest.mark.parametrize("device", [None, "gpu", 0.5])
def test_what_is_no_device_is_said_before_anything_is_loaded(device, nothing_is_loaded):
    with pytest.raises(ValueError, match=rf"device={device!r}: expected a torch\.device .*'cuda'.*Leave device out"):
        subjectgen.load("mini", device=device)


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_layers_that_move_are_not_compiled(offload, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    with pytest.raises(ValueError, match=rf"compile=True with offload='{offload}'.*'none' or 'model'"):
        check_placement("cuda", offload, compile=True)
    check_placement("cuda", "model", compile=True)


@pytest.mark.slow
def test_compiled_blocks_paint_the_same(pipe, unchecked):
    expected = painted(pipe)
    place(pipe, compile=True)
    assert (painted(pipe) - expected).abs().max() < 1e-4


class TestATorchBuiltForCudaWithoutADriver:
    """As that of PyPI on a machine without a GPU: torch names what it was built for, unless asked whether it works."""

    @pytest.fixture(autouse=True)
    def build(self, monkeypatch):
        def current(check_available=False):
            return None if check_available else torch.device("cuda")

        monkeypatch.setattr(torch.accelerator, "current_accelerator", current)

    def test_the_cpu_is_the_best_device(self):
        assert best_device() == torch.device("cpu")

    def test_cuda_is_refused(self):
        with pytest.raises(ValueError, match=r"device='cuda': this machine has no accelerator"):
            check_placement("cuda", "none")


def test_an_accelerator_is_the_best_device(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert best_device() == torch.device("mps")
