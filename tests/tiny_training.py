"""A run's folder with tiny random networks in place of trained ones, and a phase without any of them."""

import torch
from diffusers import AutoencoderDC, FluxTransformer2DModel
from PIL import Image
from safetensors.torch import save_file
from tiny import SPECIAL_TOKENS, seeded, tiny_tokenizer
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from subjectgen.data.batches import generator_of
from subjectgen.data.world import SIDE
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.mllm.processor import SubjectProcessor

WIDTH, POOLED, MLLM_WIDTH, IMAGE_TOKENS = 64, 32, 32, 4
HALVES = [0.5] * 3


def tiny_run(folder):
    """What stage 2 goes on from: VAE, MLLM and stage 1 as a finished run leaves them."""
    random_vae().save_pretrained(folder / "vae" / "export")
    random_mllm().save_pretrained(folder / "mllm" / "export" / "mllm")
    images = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=False, image_mean=HALVES, image_std=HALVES
    )
    processor = SubjectProcessor(images, tiny_tokenizer(), image_seq_length=IMAGE_TOKENS)
    processor.save_pretrained(folder / "mllm" / "export" / "processor")
    random_aggregator().save_pretrained(folder / "stage1" / "export" / "aggregator")
    random_transformer().save_pretrained(folder / "stage1" / "export" / "transformer")
    return folder


@seeded
def random_vae():
    """8 pixels per latent, 16 channels: 64 when packed."""
    return AutoencoderDC(
        latent_channels=16,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 8, 16, 16),
        decoder_block_out_channels=(4, 8, 16, 16),
        encoder_layers_per_block=(0, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 1),
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
        scaling_factor=1.0,
    )


@seeded
def random_mllm():
    vision = InternVLVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[SIDE, SIDE],
        patch_size=[32, 32],
    )
    text = Qwen2Config(
        vocab_size=300,
        hidden_size=MLLM_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=SPECIAL_TOKENS.index("<IMG_CONTEXT>"),
            image_seq_length=IMAGE_TOKENS,
        )
    )


@seeded
def random_aggregator():
    return DualLayerAggregator(
        num_layers=3, mllm_width=MLLM_WIDTH, width=WIDTH, pooled_width=POOLED, num_blocks=1, num_refiner_blocks=1
    )


@seeded
def random_transformer():
    return FluxTransformer2DModel(
        in_channels=64 + 16,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=WIDTH // 16,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=POOLED,
        axes_dims_rope=(4, 6, 6),
    )


class Sines:
    """A phase that takes no time: a small net learns sines. `before` is called with the step, ahead of its loss."""

    name, batch_size = "sines", 8

    def __init__(self, before=lambda step: None):
        self.before = before
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 3))
        self.losses, self.weights = [], []

    @property
    def networks(self):
        return [self.model]

    def loss(self, step):
        self.before(step)
        x = torch.randn(8, 4, generator=generator_of(0, step, torch.device("cpu")))
        loss = (self.model(x) - x[:, :3].sin()).square().mean()
        self.losses.append(loss.item())
        self.weights.append(flat(self.model))
        return loss, {"double": 2 * loss.item()}

    def sheet(self):
        return Image.new("RGB", (8, 8))

    def export(self, folder):
        save_file({"weights": flat(self.model)}, folder / "weights.safetensors")


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
