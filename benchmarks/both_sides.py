"""One DiT with random weights, driven by this library and by diffusers' own pipeline for the very same tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    QwenImage21Pipeline,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21AttnProcessor
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from subjectgen.backbones import denoiser_of
from subjectgen.generate.guide import Guidance, Velocity, guided
from subjectgen.generate.sample import sample, schedule
from subjectgen.generate.stages import Stage
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.qwen_image_2_1 import PER_SLOT
from subjectgen.types import Condition, IdentityTokens, SemanticTokens

PIXELS_PER_TOKEN = 16  # of both families
WORDS = 64  # tokens of a prompt
Note = Callable[..., Any]  # called after every step


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture of `size` px with some references of `pixels` px; all square."""

    size: int
    references: int = 0
    pixels: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        side = self.size // PIXELS_PER_TOKEN
        return side, side

    @property
    def reference_grid(self) -> tuple[int, int]:
        side = self.pixels // PIXELS_PER_TOKEN
        return side, side

    @property
    def num_noise(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_identity(self) -> int:
        return self.references * self.reference_grid[0] * self.reference_grid[1]


class BothSides:
    """A DiT, and what both drive it with. Conditions are random: neither MLLM nor VAE is timed."""

    recipe: str
    modes: tuple[str, ...]
    guidances: dict[str, Guidance]  # the kinds that are compared
    shift: dict[str, Any]  # of the scheduler
    tiny: dict[str, Any]  # how the transformer's configuration differs at toy size
    stock_processor: type  # of diffusers, for the attention

    def __init__(self, skeleton: Any, device: torch.device, dtype: torch.dtype, tiny: bool = False):
        config = {name: value for name, value in skeleton.config.items() if not name.startswith("_")}
        config |= self.tiny if tiny else {}
        with torch.device("meta"):
            self.skeleton: Any = type(skeleton).from_config(config)  # to count its operations
        self.transformer: Any = random_network(type(skeleton), config, device, dtype)

    def _null_pooled(self) -> Tensor:
        raise NotImplementedError

    @classmethod
    def scheduler(cls) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **cls.shift)

    def noise(self, case: Case) -> Tensor:
        return self._random(case.num_noise, self.transformer.config["in_channels"], seed=0)[None]

    def condition(self, case: Case, seed: int = 1) -> Condition:
        """Semantic tokens by the seed; the references are always the same, but read anew."""
        grids = (case.reference_grid,) * case.references
        channels = self.transformer.config["in_channels"]
        tokens = tuple(self._random(rows * columns, channels, seed=50 + k) for k, (rows, columns) in enumerate(grids))
        return Condition(semantic=self._semantic(case, seed), identity=IdentityTokens(tokens=tokens, grids=grids))

    def velocity_for(self, case: Case, mode: str, guidance: Guidance) -> Callable[[Stage], Velocity]:
        """Ours, as the pipeline builds it. Conditions are read when it is asked for a stage."""
        condition = self.condition(case)
        negative = Condition(semantic=self._semantic(case, seed=2), identity=condition.identity)
        denoiser = denoiser_of(self.transformer, mode)
        return guided(denoiser, [condition], [negative], guidance, case.grid, self._null_pooled())

    def ours(
        self, case: Case, steps: int, stages: Sequence[Stage], velocity_for: Callable[[Stage], Velocity], note: Note
    ) -> Tensor:
        """Latent tokens by our own loop."""
        scheduler = self.scheduler()
        schedule(scheduler, steps, case.num_noise, self.transformer.device)

        def after_step(_step: int, _timestep: Tensor, tokens: Tensor) -> Tensor:
            note()
            return tokens

        return sample(self.noise(case), scheduler, stages, velocity_for, after_step=after_step)

    def theirs(self, case: Case, steps: int, guidance: Guidance, note: Note) -> Tensor:
        """Latent tokens by diffusers' pipeline."""
        self.transformer.set_attn_processor(self.stock_processor())
        pipe, options = self._pipeline(case, guidance)
        pipe.set_progress_bar_config(disable=True)

        def on_step_end(*_: Any) -> dict[str, Any]:
            note()
            return {}

        return pipe(
            height=case.size,
            width=case.size,
            num_inference_steps=steps,
            latents=self.noise(case),
            output_type="latent",
            callback_on_step_end=on_step_end,
            **options,
        ).images

    def _semantic(self, case: Case, seed: int) -> SemanticTokens:
        raise NotImplementedError

    def _pipeline(self, case: Case, guidance: Guidance) -> tuple[Any, dict[str, Any]]:
        """diffusers' pipeline, and what it is called with."""
        raise NotImplementedError

    def _random(self, *shape: int, seed: int) -> Tensor:
        device = self.transformer.device
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=device, dtype=self.transformer.dtype)


class Flux(BothSides):
    """FLUX.1-dev: diffusers' FluxPipeline, and FluxKontextPipeline where there are references."""

    recipe = "flux-internvl3"
    modes = ("joint", "cached")
    guidances = {"true CFG": Guidance(scale=2.5, embedded=1.0), "embedded": Guidance(embedded=3.5)}  # noqa: RUF012
    shift = {"base_shift": 0.5, "max_shift": 1.15}  # noqa: RUF012
    tiny = {  # noqa: RUF012
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    }
    stock_processor = FluxAttnProcessor
    per_reference = 256  # semantic tokens: InternVL3 reads every reference at 448 px

    @classmethod
    def num_semantic(cls, case: Case) -> int:
        return WORDS + case.references * cls.per_reference

    @classmethod
    def readings(cls, case: Case, num_prompts: int) -> list[tuple[int, int]]:
        """Image and text tokens of each forward that reads conditions to be kept."""
        per_image = case.num_identity // max(case.references, 1)
        return [(per_image, 0)] * case.references + [(0, cls.num_semantic(case))] * num_prompts

    def _semantic(self, case: Case, seed: int) -> SemanticTokens:
        config = self.transformer.config
        tokens = self._random(self.num_semantic(case), config["joint_attention_dim"], seed=seed)
        return SemanticTokens(tokens=tokens, pooled=self._random(config["pooled_projection_dim"], seed=seed))

    def _null_pooled(self) -> Tensor:
        return self._random(self.transformer.config["pooled_projection_dim"], seed=3)

    def _pipeline(self, case: Case, guidance: Guidance) -> tuple[Any, dict[str, Any]]:
        condition: Any = self.condition(case)
        negative = self._semantic(case, seed=2)
        options: dict[str, Any] = {
            "prompt_embeds": condition.semantic.tokens[None],
            "pooled_prompt_embeds": condition.semantic.pooled[None],
            "guidance_scale": guidance.embedded,
        }
        if guidance.scale != 1:
            options |= {
                "negative_prompt_embeds": negative.tokens[None],
                "negative_pooled_prompt_embeds": negative.pooled[None],
                "true_cfg_scale": guidance.scale,
            }
        if case.references:  # one above the other: Kontext takes one picture, of any shape
            rows, columns = case.reference_grid
            image = FluxDenoiser.unpack(torch.cat(condition.identity.tokens)[None], case.references * rows, columns)
            options |= {"image": image, "max_area": case.size**2, "_auto_resize": False}
        parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        kind = FluxKontextPipeline if case.references else FluxPipeline
        return kind(scheduler=self.scheduler(), transformer=self.transformer, **parts), options


class Qwen(BothSides):
    """Qwen-Image 2.1: diffusers' QwenImage21Pipeline, with its own cache of the conditions."""

    recipe = "qwen-image-2.1"
    modes = ("cached",)
    guidances = {"true CFG": Guidance(scale=2.5), "none": Guidance()}  # noqa: RUF012
    shift = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}  # noqa: RUF012
    tiny = {  # noqa: RUF012
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    }
    stock_processor = QwenImage21AttnProcessor

    @staticmethod
    def num_semantic(case: Case) -> int:
        """Words only: in one sequence with the references, these stand where the MLLM saw them."""
        return WORDS

    @staticmethod
    def readings(case: Case, num_prompts: int) -> list[tuple[int, int]]:
        """Image and text tokens of each forward that reads conditions to be kept."""
        return [(case.num_identity, WORDS)] * num_prompts

    def _semantic(self, case: Case, seed: int) -> SemanticTokens:
        slots = torch.ones(case.num_identity // PER_SLOT, dtype=torch.bool, device=self.transformer.device)
        words = slots.new_zeros(WORDS // 2)
        is_image, width = torch.cat([words, slots, words]), self.transformer.config["context_in_dim"]
        first = self._random(len(words) + len(slots), width, seed=40)  # no prompt changes what is before it
        tokens = torch.cat([first, self._random(len(words), width, seed=seed)])
        return SemanticTokens(tokens=tokens, pooled=tokens.new_zeros(0), is_image=is_image)

    def _null_pooled(self) -> Tensor:
        return self._random(0, seed=3)

    def _pipeline(self, case: Case, guidance: Guidance) -> tuple[Any, dict[str, Any]]:
        condition: Any = self.condition(case)
        negative = self._semantic(case, seed=2)
        options: dict[str, Any] = {"prompt": "prompt"}
        if guidance.scale != 1:
            options |= {"negative_prompt": "negative", "true_cfg_scale": guidance.scale}
        if case.references:
            blank = Image.new("RGBA", (case.pixels, case.pixels))
            options |= {"image": [blank] * case.references, "output_resolution": case.pixels}
        semantic = {"prompt": condition.semantic, "negative": negative}
        return ReadQwenPipeline.of(self.scheduler(), self.transformer, semantic, condition.identity), options


class NoProcessor:
    """What QwenImage21Pipeline asks of a processor before there is any prompt."""

    def __init__(self):
        self.tokenizer = self

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0]]

    def encode(self, _: str) -> list[int]:
        return [0]


class ReadQwenPipeline(QwenImage21Pipeline):
    """With its encoders' work done: of public calls, none takes embeddings and references together."""

    @classmethod
    def of(cls, scheduler, transformer, semantic: dict[str, SemanticTokens], identity: IdentityTokens):
        """For one call with these prompts and references."""
        pipe = cls(scheduler, None, None, NoProcessor(), transformer)  # type: ignore[arg-type]
        pipe._semantic = semantic
        pipe._latents = iter(zip(identity.tokens, identity.grids, strict=True))
        return pipe

    def encode_prompt(self, prompt: str, **_: Any):  # type: ignore[override]
        semantic = self._semantic[prompt]
        return semantic.tokens[None], None, semantic.is_image[None]

    def _encode_vae_image(self, image: Tensor, generator: Any) -> Tensor:
        tokens, (rows, columns) = next(self._latents)
        return rearrange(tokens, "(h w) c -> 1 c 1 h w", h=rows, w=columns)


def random_network(kind: Any, config: Any, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network on the device, with weights that keep activations near one: drawn there, nothing passes the CPU."""
    with init_empty_weights():
        network = kind.from_config(config)
    for name, weight in list(network.named_parameters()):
        value = torch.empty(weight.shape, device=device, dtype=dtype)
        torch.nn.init.normal_(value, std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1)
        set_module_tensor_to_device(network, name, device, value=value, clear_cache=False)
    return network.to(device).eval().requires_grad_(False)
