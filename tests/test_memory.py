"""Out of memory: what the message says, and that the pipeline works on as if nothing had been."""

import gc
import weakref

import pytest
import torch
from tiny_pipeline import picture, reasoning_pipeline, seeded_generators, shorten_plans, tiny_pipeline

import subjectgen
from subjectgen.memory import OutOfMemory, told

ON_CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.12 GiB is "
    "free. Including non-PyTorch memory, this process has 22.50 GiB memory in use."
)
IMPOSSIBLE = 2**50  # bytes that no machine gives


def latents(pipe):
    return pipe("a red cat", picture("red"), generator=seeded_generators(0), output_type="latent").images


class TestMessage:
    def test_on_an_accelerator(self):
        words = r"^out of memory while painting: 2\.50 GiB more were asked for, 1\.12 GiB are free\. Use less\.$"
        with pytest.raises(OutOfMemory, match=words), told("painting", "less"):
            raise torch.OutOfMemoryError(ON_CUDA)

    def test_on_the_cpu(self):
        words = r"1048576\.00 GiB more were asked for, [\d.]+ GiB are free"
        with pytest.raises(OutOfMemory, match=words), told("painting", "less"):
            torch.empty(IMPOSSIBLE, dtype=torch.uint8)

    def test_of_an_allocator_with_words_of_its_own(self):
        with pytest.raises(OutOfMemory, match=r"painting: XPU out of memory\. Use less"), told("painting", "less"):
            raise torch.OutOfMemoryError("XPU out of memory.\nAnd more")

    def test_it_is_what_torch_raises(self):
        """Whoever caught torch's error catches this one; the original is its cause."""
        with pytest.raises(torch.OutOfMemoryError) as raised, told("painting", "less"):
            raise torch.OutOfMemoryError(ON_CUDA)
        assert str(raised.value.__cause__) == ON_CUDA

    def test_other_errors_pass(self):
        with pytest.raises(RuntimeError, match=r"^shapes do not fit$"), told("painting", "less"):
            raise RuntimeError("shapes do not fit")

    def test_tensors_of_the_failed_call_are_let_go(self):
        kept = []

        def fail():
            large = torch.empty(3)
            kept.append(weakref.ref(large))
            raise torch.OutOfMemoryError(ON_CUDA)

        with pytest.raises(OutOfMemory) as raised, told("painting", "less"):
            fail()
        gc.collect()
        assert raised.value.__cause__ is not None and kept[0]() is None


def failing(monkeypatch, network, method, calls=1):
    """The first calls of a network's method run out of memory."""
    stock, left = getattr(network, method), [calls]

    def called(*args, **options):
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError(ON_CUDA)
        return stock(*args, **options)

    monkeypatch.setattr(network, method, called)


STATIONS = [("mllm", "forward"), ("aggregator", "forward"), ("transformer", "forward"), ("vae", "encode")]


class TestPainting:
    @pytest.mark.parametrize(("name", "method"), STATIONS)
    @pytest.mark.parametrize("offloaded", [False, True], ids=["in place", "offloaded"])
    def test_the_pipeline_can_be_called_again(self, name, method, offloaded, monkeypatch):
        pipe, expected = tiny_pipeline(), latents(tiny_pipeline())
        failing(monkeypatch, getattr(pipe, name), method)
        if offloaded:
            pipe.enable_model_cpu_offload(device="cpu")
        with pytest.raises(OutOfMemory, match=r"while painting: 2\.50 GiB.*offload='model'.*quantization='int8'"):
            latents(pipe)
        torch.testing.assert_close(latents(pipe), expected, atol=1e-5, rtol=0)

    def test_networks_leave_the_device(self, monkeypatch):
        """As they do after a whole call: the next one begins with an empty device."""
        pipe, freed = tiny_pipeline(), []
        monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(self))
        failing(monkeypatch, pipe.vae, "encode")
        with pytest.raises(OutOfMemory):
            pipe.encode_subjects(picture("red"))
        assert freed == [pipe]
        latents(pipe)
        assert freed == [pipe, pipe]

    def test_only_the_outermost_call_frees(self, monkeypatch):
        """Reasoning reads references, and painting reasons: the MLLM stays in between, also after a failed call."""
        pipe, freed = reasoning_pipeline(), []
        shorten_plans(monkeypatch)
        monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(self))
        failing(monkeypatch, pipe.vae, "encode")
        with pytest.raises(OutOfMemory):
            pipe.reason("a red cat", picture("red"))
        assert len(freed) == 1
        pipe.reason("a red cat", picture("red"))
        assert len(freed) == 2
        pipe("a red cat", picture("red"), reasoning=True)
        assert len(freed) == 3

    def test_a_picture_too_large_for_this_machine(self):
        """Without a stand-in: the CPU's own allocator."""
        pipe = tiny_pipeline()
        with pytest.raises(OutOfMemory, match="a smaller size"):
            pipe("a red cat", height=2**23, width=2**23)
        assert latents(pipe).isfinite().all()


class TestLoading:
    def test_says_what_to_switch_on(self, monkeypatch, tmp_path):
        tiny_pipeline().save_pretrained(tmp_path)

        def fail(*_, **__):
            raise torch.OutOfMemoryError(ON_CUDA)

        monkeypatch.setattr("diffusers.FluxTransformer2DModel.from_pretrained", fail)
        with pytest.raises(OutOfMemory, match=rf"while loading '{tmp_path}': 2\.50 GiB .*Use offload='model'"):
            subjectgen.load(tmp_path)

    def test_moving_onto_the_device_counts(self, monkeypatch, tmp_path):
        tiny_pipeline().save_pretrained(tmp_path)

        def fail(*_, **__):
            raise torch.OutOfMemoryError(ON_CUDA)

        monkeypatch.setattr("subjectgen.SubjectPipeline.to", fail)
        with pytest.raises(OutOfMemory, match=r"while loading .*quantization='int8'"):
            subjectgen.load(tmp_path)
