"""The shipped configuration of the tables with tiny networks and budgets, and a model's folder for it."""

from dataclasses import replace

import pytest
from tiny import tiny_tokenizer
from tiny_training import HALVES, IMAGE_TOKENS, random_mllm, random_vae
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from subjectgen.data.world import SIDE
from subjectgen.models.mllm.processor import SubjectProcessor
from subjectgen.reproduce.configuration import SHIPPED, Network, read_configuration

SIZES = {"steps": 3, "batch_size": 2, "num_batches": 3, "num_prompts": 3, "num_inference_steps": 2}
NETWORK = {"width": 32, "head_dim": 16, "num_layers": 1, "num_single_layers": 1, "rope_dims": [4, 6, 6]}


def tiny_model(folder):
    """What rows share: an autoencoder, an MLLM of three hidden states, its processor."""
    images = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=False, image_mean=HALVES, image_std=HALVES
    )
    random_vae().save_pretrained(folder / "vae")
    random_mllm().save_pretrained(folder / "mllm")
    SubjectProcessor(images, tiny_tokenizer(), image_seq_length=IMAGE_TOKENS).save_pretrained(folder / "processor")
    return folder


def tiny_configuration(model, **changes):
    values = {**SIZES, "model": str(model), "network": Network(**NETWORK), **changes}
    return replace(read_configuration(), **values)


def tiny_file(model, path):
    """The same as a file."""
    lines = SHIPPED.read_text().splitlines()
    values = {**{name: str(value) for name, value in {**SIZES, **NETWORK}.items()}, "model": f'"{model}"'}
    for index, line in enumerate(lines):
        name = line.split(" = ")[0]
        if name in values:
            lines[index] = f"{name} = {values.pop(name)}"
    if values:
        pytest.fail(f"not in {SHIPPED}: {', '.join(values)}")
    path.write_text("\n".join(lines))
    return path
