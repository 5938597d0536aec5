"""Tiny components with random weights, the same at every call: small enough to check against plain loops."""

from functools import wraps

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.mllm.processor import SubjectProcessor

IMAGE_SIZE, IMAGE_TOKENS = 32, 4  # what the tiny MLLM sees of a reference
NUM_LAYERS, WIDTH, POOLED = 4, 32, 16  # hidden states per token (embedding and three decoder layers)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]


def seeded(build):
    """Random weights that depend on nothing but the test, in eval mode."""

    @wraps(build)
    def built(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs).eval()

    return built


def tiny_tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    bpe.train_from_iterator(["a red cat on the blue ground", "\n\n"] * 10, trainer)  # "\n\n" becomes one token
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def tiny_processor():
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_to_patches=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return SubjectProcessor(image_processor, tiny_tokenizer(), image_seq_length=IMAGE_TOKENS)


@seeded
def tiny_mllm(max_position_embeddings=256):
    vision = InternVLVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.2,
    )
    text = Qwen2Config(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS - 1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.2,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=SPECIAL_TOKENS.index("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
    )
    return InternVLForConditionalGeneration(config)


@seeded
def tiny_aggregator(mode="dual", **kwargs):
    return DualLayerAggregator(
        num_layers=NUM_LAYERS, mllm_width=WIDTH, width=32, pooled_width=POOLED, mode=mode, **kwargs
    )


@seeded
def tiny_transformer(in_channels=16, guidance_embeds=False):
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )


@seeded
def tiny_vae():
    """8 pixels per latent, 4 channels: 16 when packed."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        shift_factor=0.1,
        scaling_factor=0.5,
    )


def tiny_scheduler():
    return FlowMatchEulerDiscreteScheduler(shift=2.5)
