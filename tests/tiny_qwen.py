"""Tiny components of Qwen-Image 2.1 with random weights, of the same classes as the released ones."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import seeded
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from subjectgen.pipeline import SubjectPipeline
from subjectgen.types import IdentityTokens, SemanticTokens

diffusers = pytest.importorskip("diffusers", minversion="0.41")  # else whatever imports this file is skipped

CHANNELS, CONTEXT = 8, 16


@seeded
def tiny_qwen_transformer(depth=2, **changes):
    return diffusers.QwenImage21Transformer2DModel(
        **{
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": depth,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "context_in_dim": CONTEXT,
            "axes_dims_rope": (4, 6, 6),
            **changes,
        }
    )


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(runs, seed=0):
    """Runs of words and of image slots, turn by turn: (5, 2, 3) is five words, two slots, three words."""
    kinds = [torch.full((count,), turn % 2 == 1) for turn, count in enumerate(runs)]
    is_image = torch.cat(kinds)
    return SemanticTokens(tokens=random(len(is_image), CONTEXT, seed=seed), pooled=torch.zeros(0), is_image=is_image)


def references(*grids, seed=10):
    tokens = tuple(random(rows * columns, CHANNELS, seed=seed + k) for k, (rows, columns) in enumerate(grids))
    return IdentityTokens(tokens=tokens, grids=grids)


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SYSTEM_AND_USER = (
    "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n<|im_start|>user\n"  # as released
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)


class TinyQwenProcessor(Qwen3VLProcessor):
    """Qwen3VLProcessor without films: its video processor needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        for name in ("image_pad", "video_pad", "vision_start", "vision_end"):
            attribute = name.removesuffix("_pad") + "_token"
            setattr(self, attribute, f"<|{name}|>")
            setattr(self, attribute + "_id", tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tiny_qwen_processor():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant system image a red cat on the blue ground"] * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    images = Qwen2VLImageProcessorPil(
        patch_size=16, temporal_patch_size=2, merge_size=2, min_pixels=32 * 32, max_pixels=512 * 512
    )
    return TinyQwenProcessor(image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE)


@seeded
def tiny_qwen_mllm(processor):
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 16,
        "out_hidden_size": CONTEXT, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = {
        "vocab_size": len(processor.tokenizer), "hidden_size": CONTEXT, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1],
                            "mrope_interleaved": True},
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
    )
    return Qwen3VLForConditionalGeneration(config)


@seeded
def tiny_qwen_vae():
    return diffusers.AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True],
        latents_mean=[0.1 * k for k in range(CHANNELS)],
        latents_std=[1.0 + 0.1 * k for k in range(CHANNELS)],
    )


def lively(mllm):
    """Weights large enough for every token to matter."""
    with torch.no_grad():
        for weight in mllm.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return mllm


def reasoning_qwen_pipeline(**settings):
    """Its MLLM is asked for plans by prompts alone."""
    pipe = tiny_qwen_pipeline(**{"plan_instruction": "", **settings})
    lively(pipe.mllm)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_qwen_components():
    processor = tiny_qwen_processor()
    return {
        "mllm": tiny_qwen_mllm(processor),
        "processor": processor,
        "transformer": tiny_qwen_transformer(),
        "vae": tiny_qwen_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def tiny_qwen_pipeline(**settings):
    return SubjectPipeline(
        **tiny_qwen_components(),
        **{"reference_size": 64, "reference_shape": "own", "image_size": 64, "stages": "faithful",
           "num_inference_steps": 3, **settings},
    )  # fmt: skip
