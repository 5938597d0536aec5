"""Networks of the classes that metrics look with, tiny and random, saved to folders as the Hub's are."""

from collections import OrderedDict

from safetensors.torch import load_file, save_file
from tiny import seeded, tiny_tokenizer
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ViTConfig,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE, PATCH = 64, 16  # a grid of 4 x 4
EYES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}


@seeded
def tiny_dino():
    return ViTModel(ViTConfig(**EYES, intermediate_size=32, image_size=SIDE, patch_size=PATCH), add_pooling_layer=False)


@seeded
def tiny_clip():
    text = {**EYES, "vocab_size": 300, "intermediate_size": 32, "max_position_embeddings": 20, "eos_token_id": 2}
    vision = {**EYES, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for weight in model.parameters():
        weight.data.mul_(4 if weight.ndim > 1 else 1)  # so that pictures and words differ by more than rounding
    return model


@seeded
def tiny_dinov2():
    return Dinov2Model(Dinov2Config(**EYES, image_size=56, patch_size=14))


@seeded
def tiny_head(num_logits):
    """Written out, as the published code has it."""
    first = nn.Sequential(nn.Linear(16, num_logits), nn.BatchNorm1d(num_logits), nn.ReLU())
    second = nn.Sequential(nn.Linear(num_logits, num_logits), nn.BatchNorm1d(num_logits))
    first[0].weight.data.mul_(9)  # so that pictures are turned otherwise
    for norm in (first[1], second[1]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(OrderedDict(net1=first, net2=second))


def save_clip(folder):
    tiny_clip().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def save_orientation(folder, num_logits):
    """A backbone with its configuration; all weights in one file, by their published names."""
    tiny_dinov2().save_pretrained(folder / "dinov2")
    backbone = load_file(folder / "dinov2" / "model.safetensors")  # save_pretrained writes the names of transformers 4
    weights = {f"dinov2.{name}": tensor for name, tensor in backbone.items()}
    weights |= {f"down_sampler.{name}": tensor for name, tensor in tiny_head(num_logits).state_dict().items()}
    save_file(weights, folder / "model.safetensors")


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}"
)


@seeded
def tiny_chat_model():
    """A LLaVA: of all chat models with images the one whose processor asks for nothing but Pillow."""
    vision = CLIPVisionConfig(**EYES, intermediate_size=32, image_size=28, patch_size=14)
    text = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        max_position_embeddings=2048,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=5, image_seq_length=4)
    )


def save_chat_model(folder):
    tiny_chat_model().save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    tokenizer = tiny_tokenizer()
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<IMG_CONTEXT>",
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
