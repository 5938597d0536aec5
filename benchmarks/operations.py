"""How many floating-point operations steps and images take, counted on the meta device: exact, and without a GPU."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from both_sides import BothSides, Case
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from subjectgen.backbones import denoiser_of
from subjectgen.generate.guide import Guidance, plan
from subjectgen.generate.sample import schedule
from subjectgen.generate.stages import STAGE_PRESETS, Stage, split_steps
from subjectgen.models.dit.kept import StackedKeyValues
from subjectgen.models.dit.prefix import PrefixCall
from subjectgen.models.dit.processor import AttentionCall

META = torch.device("meta")
STEPS = 28  # of an image
PRESETS = ("faithful", "paper")
Kind = tuple[float, float]  # weights of the semantic and the identity tokens in a stage


@cache
def operations(transformer: nn.Module, num_image: int, num_text: int = 0, num_kept: int = 0) -> int:
    """Of one forward over image tokens (noise, and references beside it), text tokens, and kept keys and values.

    The transformer is on the meta device. A multiplication with its addition is two operations.
    """
    denoiser = denoiser_of(transformer, "cached")  # its processors take kept keys and values, or none
    for processor in denoiser._processors:
        processor.to(META)
    forward = _flux if type(transformer).__name__ == "FluxTransformer2DModel" else _qwen
    with FlopCounterMode(display=False) as counter, META, torch.no_grad():
        forward(transformer, num_image, num_text, _kept(transformer, num_kept))
    return counter.get_total_flops()


def _kept(transformer: Any, num_tokens: int) -> StackedKeyValues | None:
    config, blocks = transformer.config, len(transformer.attn_processors)
    shape = (blocks, 1, num_tokens, config["num_attention_heads"], config["attention_head_dim"])
    keys = torch.empty(shape, dtype=transformer.dtype)
    return StackedKeyValues(keys=keys, values=keys) if num_tokens else None


def _flux(transformer: Any, num_image: int, num_text: int, kept: StackedKeyValues | None) -> None:
    config = transformer.config
    transformer(
        hidden_states=torch.empty(1, num_image, config["in_channels"], dtype=transformer.dtype),
        encoder_hidden_states=torch.empty(1, num_text, config["joint_attention_dim"], dtype=transformer.dtype),
        pooled_projections=torch.empty(1, config["pooled_projection_dim"], dtype=transformer.dtype),
        timestep=torch.empty(1),
        guidance=torch.empty(1) if config["guidance_embeds"] else None,
        img_ids=torch.empty(num_image, 3),
        txt_ids=torch.empty(num_text, 3),
        joint_attention_kwargs={"conditions": AttentionCall(kept=kept)},
    )


def _qwen(transformer: Any, num_image: int, num_text: int, kept: StackedKeyValues | None) -> None:
    """Part by part: the forward of the whole net looks into its masks, which the meta device cannot."""
    config = transformer.config
    rotation = torch.empty(num_image + num_text, config["attention_head_dim"] // 2, dtype=torch.complex64)
    call = PrefixCall(turn=rotation[None], kept=kept)
    image = transformer.img_in(torch.empty(1, num_image, config["in_channels"], dtype=transformer.dtype))
    text = transformer.txt_in(torch.empty(1, num_text, config["context_in_dim"], dtype=transformer.dtype))
    times = transformer.time_text_embed(torch.empty(1, dtype=transformer.dtype), image)
    modulation, tokens = transformer.modulation(times), torch.cat([text, image], dim=1)
    for block in transformer.transformer_blocks:
        tokens = block(hidden_states=tokens, modulation=modulation, rotary_emb=rotation, layer_cache=call)
    transformer.proj_out(transformer.norm_out(tokens, times))


def step_operations(kind: Any, transformer: nn.Module, case: Case, mode: str, semantic: float, identity: float) -> int:
    """Of one pass of a stage with these weights, conditions "joint" or kept."""
    text = kind.num_semantic(case) if semantic else 0
    references = case.num_identity if identity else 0
    if mode == "joint":
        return operations(transformer, case.num_noise + references, text)
    return operations(transformer, case.num_noise, num_kept=text + references)


def reading_operations(kind: Any, transformer: nn.Module, case: Case, mode: str, num_prompts: int) -> int:
    """Of reading the conditions that are kept, before the first step."""
    if mode == "joint":
        return 0
    return sum(operations(transformer, *tokens) for tokens in kind.readings(case, num_prompts))


def stages_of(case: Case, preset: str) -> list[Stage]:
    """A preset's stages for this many references."""
    return [stage if case.references else stage.without_references for stage in STAGE_PRESETS[preset]]


def stage_steps(sides: BothSides | type[Any], case: Case, preset: str) -> list[tuple[Kind, int]]:
    """The stages of a preset by their weights, and how many of an image's steps are theirs."""
    sigmas = schedule(sides.scheduler(), STEPS, case.num_noise).tolist()
    stages = stages_of(case, preset)
    return [((s.semantic, s.identity), n) for s, n in zip(stages, split_steps(stages, sigmas), strict=True)]


def passes(stage: Kind, guidance: Guidance, case: Case) -> int:
    """Forwards of a step of ours: none is paid for that equals another."""
    return len(plan(Stage(0.0, *stage), guidance, has_references=case.references > 0))


def image_operations(kind: type[Any], skeleton: nn.Module, case: Case, mode: str, preset: str, how: Guidance) -> int:
    """Of a whole image of ours; of diffusers' in the first mode with the preset "faithful"."""
    steps = sum(
        count * passes(stage, how, case) * step_operations(kind, skeleton, case, mode, *stage)
        for stage, count in stage_steps(kind, case, preset)
    )
    return steps + reading_operations(kind, skeleton, case, mode, num_prompts=1 if how.scale == 1 else 2)


def count_table(kind: type[Any], skeleton: nn.Module, cases: Sequence[Case]) -> Iterator[str]:
    """Operations of a step of one pass, and by how many times ours takes fewer for an image."""
    none = step_operations(kind, skeleton, Case(size=cases[0].size), kind.modes[0], 1.0, 1.0)
    ways = [(mode, preset, name) for name in kind.guidances for mode in kind.modes for preset in PRESETS]
    ways = [way for way in ways if way[:2] != (kind.modes[0], "faithful")]
    yield f"{kind.recipe}: a step without references takes {none / 1e12:.1f} TFLOP; {STEPS} steps, {cases[0].size} px"
    yield ""
    steps = (f"{mode}: a step, of one without" for mode in kind.modes)
    yield from header("references", *steps, *(f"diffusers : {', '.join(way)}" for way in ways))
    for case in cases:
        stock = {
            name: image_operations(kind, skeleton, case, kind.modes[0], "faithful", how)
            for name, how in kind.guidances.items()
        }
        steps = (step_operations(kind, skeleton, case, mode, 1.0, 1.0) / none for mode in kind.modes)
        images = (
            stock[name] / image_operations(kind, skeleton, case, mode, preset, kind.guidances[name])
            for mode, preset, name in ways
        )
        yield line(written(case), *(f"{times:.2f} x" for times in (*steps, *images)))


def written(case: Case) -> str:
    return f"{case.references} of {case.pixels} px" if case.references else "none"


def header(*names: str) -> Iterator[str]:
    yield line(*names)
    yield "|--|" + "--:|" * (len(names) - 1)


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
