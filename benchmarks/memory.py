"""Memory as `pipe.estimate()` predicts it against memory as the pipeline's own code takes it, at true sizes.

Without a GPU the code runs on tensors that have a shape and no numbers (nothing is downloaded, seconds a row), and what
is alive is counted: fused attention and RMSNorm as on CUDA, no workspaces of kernels. With one, the networks are there
with whatever weights, and `torch.cuda.max_memory_allocated` counts.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import ProcessorMixin, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from subjectgen import SubjectPipeline, SubjectProcessor
from subjectgen.load import recipe
from subjectgen.weights import find_folder

PROMPT = "the leather bag on a wooden table in the sun, with flowers beside it and a window behind"
CASES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (  # model, its settings, arguments of the call
    ("flux-internvl3", {}, {}),
    ("flux-internvl3", {}, {"num_images_per_prompt": 2}),
    ("flux-internvl3", {"conditions": "cached", "stages": "faithful"}, {}),
    ("qwen-image-2.1", {}, {}),
    ("qwen-image-2.1", {}, {"guidance_scale": 4.0}),
    ("qwen-image-2.1", {}, {"stages": "free", "height": 768, "width": 1344}),
)
COUNTS = (0, 1, 2, 4)  # references
GOAL = 0.10
META, CPU = torch.device("meta"), torch.device("cpu")
INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
BIG = 2**16  # numbers of a tensor that is only a shape; what is smaller decides which way the code goes
MIB = 2**20
console = Console()


class Ledger:
    """What is alive of all tensors that are only shapes: each storage once, until nothing holds it."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known.add(id(storage))
        weakref.finalize(storage, self._drop, id(storage), size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def restart(self) -> None:
        self.peak = self.live


class Shaped(Tensor):
    """A tensor on "the CPU" that has a shape and no numbers; so has all that is computed from it."""

    ledger = Ledger()

    @staticmethod
    def __new__(cls, inner: Tensor, counts: bool = True) -> "Shaped":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=CPU, **layout)

    def __init__(self, inner: Tensor, counts: bool = True):
        self.inner = inner  # type: ignore[attr-defined]
        self.ledger.add(inner, counts=counts)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        if "device" in kwargs:
            kwargs = {**kwargs, "device": META}
        given = {id(each.inner): each for each in tree_leaves((args, kwargs)) if isinstance(each, Shaped)}
        args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
        return tree_map_only(
            Tensor, lambda out: given[id(out)] if id(out) in given else cls(out), func(*args, **kwargs)
        )


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks, which have numbers, as the places that they choose: their count is a shape."""
    chosen = ([None] if each is None else each.nonzero().unbind(1) if each.dtype == torch.bool else [each]
              for each in indices)  # fmt: skip
    return [index for indices in chosen for index in indices]


def _on_meta(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Shaped):
        return tensor.inner  # type: ignore[return-value]
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


class BigOnesShaped(TorchDispatchMode):
    """Tensors made from nothing have numbers only if they are small."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = "device" in kwargs and not any(isinstance(each, Tensor) for each in tree_leaves((args, kwargs)))
        if made and "generator" not in kwargs:
            inner = func(*args, **{**kwargs, "device": META})
            if inner.is_floating_point() and inner.numel() >= BIG:
                return Shaped(inner)
        return func(*args, **kwargs)


class FusedAsOnCuda(TorchFunctionMode):
    """Attention and RMSNorm allocate what their kernels on CUDA allocate: their output, and the bias of a mask."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **kwargs)
        return torch.empty_like(args[0]) if func is F.rms_norm else func(*args, **kwargs)


def _attended(query, key, value, attn_mask=None, *_, **__):
    batch, heads, tokens, _ = query.shape
    out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        query.new_empty(attn_mask.shape)  # its bias, until it has attended
    return out


@contextmanager
def as_shapes() -> Iterator[None]:
    """Where there is no GPU, nothing large has numbers."""
    if torch.cuda.is_available():
        yield
    else:
        with FusedAsOnCuda(), BigOnesShaped():
            yield


class Cuda:
    """The allocator's own figures, in place of a Ledger, beyond what is there at the beginning."""

    def __init__(self) -> None:
        self._weights = torch.cuda.memory_allocated()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self._weights

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats()


class ByteLevelQwenProcessor(Qwen3VLProcessor):
    """What stands for Qwen3-VL's processor without its files: its images, and tokens of a tokenizer that is at hand."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any):
        self.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def main(
    references: Annotated[
        list[int] | None, typer.Option(help="How many; more than once for several. 0, 1, 2, 4.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of one recipe only.")] = None,
) -> None:
    """Predict and measure every call; exit code 1 if a peak is off by more than 10 %. Weights are left out of all."""
    errors = []
    for name, settings, call in CASES:
        if model in (None, name):
            pipe = pipeline(name, **settings)
            console.print(f"\n{name} {settings or ''} {call or ''}", highlight=False)
            errors += [compared(pipe, count, call) for count in references or COUNTS]
    worst = max(map(abs, errors))
    console.print(f"\nlargest error of a peak: {100 * worst:.1f} % (goal {100 * GOAL:.0f} %)", highlight=False)
    raise typer.Exit(0 if worst <= GOAL else 1)


def compared(pipe: SubjectPipeline, count: int, call: Mapping[str, Any]) -> float:
    """Print predicted and measured MiB of each station; the error of the largest."""
    arguments = {"prompt": PROMPT, "subject_images": pictures(count), "num_inference_steps": 4, **call}
    told = pipe.estimate(**arguments).memory.activation_bytes
    found = measured(pipe, **arguments)
    cells = [f"{station} {told[station] / MIB:.0f} : {size / MIB:.0f}" for station, size in found.items()]
    top = max(found, key=lambda station: found[station])
    error = told[top] / found[top] - 1
    line = f"  {count} references, predicted : measured MiB  {'   '.join(cells)}   peak {100 * error:+.1f} %"
    console.print(line, highlight=False, soft_wrap=True)
    return error


def pictures(count: int) -> list[Image.Image] | None:
    """References that all differ: equal ones are read once."""
    return [Image.new("RGB", (700, 700), (40 * k, 0, 0)) for k in range(count)] or None


def pipeline(name: str, **settings: Any) -> SubjectPipeline:
    """A recipe's networks at true size, on the GPU with any weights or as shapes, and what stands for its processor."""
    module = recipe(name)
    networks = {part: prepared(network) for part, network in module.skeleton().items()}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    processor = processor_for(networks["mllm"])
    pipe = SubjectPipeline(**networks, processor=processor, scheduler=scheduler, **{**module.SETTINGS, **settings})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prepared(network: nn.Module) -> nn.Module:
    """What a skeleton needs to run: memory on the GPU, or weights that are shapes; tables that are no weights."""
    if hasattr(network, "pos_embed") and hasattr(network.pos_embed, "rope_params"):  # plain tensors, made on meta
        stock: Any = network.pos_embed
        network.pos_embed = type(stock)(stock.theta, stock.axes_dim)
    if torch.cuda.is_available():
        return network.to_empty(device="cuda").eval()
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            compared = name == "null_pooled"  # by its numbers, of which there must be some
            value = torch.zeros_like(weight, device=CPU) if compared else Shaped(weight.detach(), counts=False)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, Shaped(buffer, counts=False))
    return network.eval()


def processor_for(mllm: Any) -> Any:
    """mini's tokenizer, and images as this MLLM takes them."""
    processor = SubjectProcessor.from_pretrained(find_folder("weights") / "mini" / "processor")
    if hasattr(mllm.config, "image_seq_length"):
        height, width = mllm.config.vision_config.image_size
        processor.image_seq_length = mllm.config.image_seq_length
        processor.image_processor.size = {"height": height, "width": width}
        mllm.config.image_token_id = processor.image_token_id
        return processor
    names = ("vision_start", "vision_end", "image_pad", "im_start", "im_end")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    images = Qwen2VLImageProcessorPil(patch_size=16, temporal_patch_size=2, merge_size=2, max_pixels=2**24)
    processor = ByteLevelQwenProcessor(images, processor.tokenizer)
    mllm.config.image_token_id = processor.image_token_id
    return processor


def measured(pipe: SubjectPipeline, **call: Any) -> dict[str, int]:
    """Bytes at the peak of each station, weights apart."""
    meter, peaks, station = Cuda() if torch.cuda.is_available() else Shaped.ledger, {}, ["start"]

    def enter(name: str, *_: Any) -> None:
        peaks[station[0]] = max(peaks.get(station[0], 0), meter.peak)
        station[0] = name
        meter.restart()

    meter.restart()
    with told_where(pipe, enter), as_shapes():
        pipe(**call, output_type="pt")
    enter("end")
    del peaks["start"]
    return peaks


@contextmanager
def told_where(pipe: SubjectPipeline, enter: Callable[..., None]) -> Iterator[None]:
    """`enter` is called with the name of a station whenever its network is."""
    networks = {"encode": pipe.mllm, "fuse": pipe.aggregator, "sample": pipe.transformer}
    networks |= {"identity": pipe.vae.encoder, "to image": pipe.vae.decoder}
    hooks = [
        network.register_forward_pre_hook(partial(enter, station))
        for station, network in networks.items()
        if network is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    typer.run(main)
