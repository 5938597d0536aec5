"""A whole pipeline of the tiny components, 64 px, and some references for it."""

import torch
from PIL import Image
from tiny import tiny_aggregator, tiny_mllm, tiny_processor, tiny_scheduler, tiny_transformer, tiny_vae

from subjectgen import SubjectPipeline
from subjectgen.reasoning import grammar


def tiny_pipeline(**settings):
    pipe = SubjectPipeline(
        mllm=tiny_mllm(),
        processor=tiny_processor(),
        aggregator=tiny_aggregator(),
        transformer=tiny_transformer(),
        vae=tiny_vae(),
        scheduler=tiny_scheduler(),
        **{"reference_size": 32, "image_size": 64, "num_inference_steps": 4, **settings},
    )
    with torch.no_grad():  # conditions that matter, and a null vector that is not nothing
        for name, weight in pipe.transformer.named_parameters():
            weight.mul_(3 if ".attn." in name and "norm" not in name else 1)
        pipe.aggregator.null_pooled.copy_(torch.linspace(-1, 1, len(pipe.aggregator.null_pooled)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reasoning_pipeline(**settings):
    """Its MLLM has room for a plan."""
    pipe = tiny_pipeline(**{"plan_instruction": "", **settings})
    pipe.mllm = tiny_mllm(max_position_embeddings=4096)
    return pipe


def shorten_plans(monkeypatch):
    """Random weights never stop by themselves: let the values of a plan end soon."""
    for name, limit in (("MAX_NAME", 4), ("MAX_COLOUR", 3), ("MAX_COLOURS", 2), ("MAX_WORDS", 3), ("MAX_PROMPT", 12)):
        monkeypatch.setattr(grammar, name, limit)


def picture(colour, size=(40, 30)):
    """A reference: a bright corner on a ground."""
    image = Image.new("RGB", size, colour)
    image.paste((250, 240, 10), (0, 0, size[0] // 2, size[1] // 3))
    return image


def seeded_generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]
