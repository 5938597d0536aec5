"""What each station of a call holds at its peak beside weights: one formula a network, in bytes.

They follow the tensors that eager PyTorch keeps on CUDA, where attention is fused (no map of scores) and so is
`nn.RMSNorm`; a compiled net needs less. Workspaces of kernels are not in them. `benchmarks/memory.py` compares them
with the networks' own code at true sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import nn

from subjectgen.backbones import reader_of
from subjectgen.estimate.counts import StageEstimate, Workload
from subjectgen.models.aggregation import MLP_RATIO
from subjectgen.models.vae import full_size_channels

FLOAT = 4  # bytes of a float32, in which norms and rotations are computed whatever the dtype


def activations(
    networks: Mapping[str, nn.Module], items: Mapping[str, int], conditions: str, work: Workload
) -> dict[str, int]:
    """Bytes at each station that runs, those that a later station still needs among them.

    items: bytes of a number, by component.
    """
    mllm = Mllm.of(networks["mllm"], items["mllm"])
    aggregator, transformer, vae = (networks.get(name) for name in ("aggregator", "transformer", "vae"))
    hidden = sum(mllm.kept * text.read for text in work.texts)
    held = {"encode": encoding(mllm, work)}
    if aggregator is not None:
        padded = mllm.kept * len(work.texts) * max(text.read for text in work.texts)
        held["encode"] = max(held["encode"], hidden + padded)
        held["fuse"] = hidden + padded + fusing(aggregator, items["aggregator"], work)
    if largest := max(each.pixels for each in work.subjects):
        held["identity"] = hidden + vae_encoding(vae, items["vae"], largest)
    dit = Dit.of(transformer, items["transformer"], conditions)
    held["sample"] = hidden + sampling(dit, work)
    held["to image"] = decoding(vae, items["vae"], work)
    return held


@dataclass(frozen=True, kw_only=True)
class Mllm:
    """Bytes a token, by what holds them."""

    kept: int  # hidden states of all layers that are kept
    kv: int  # keys and values of all layers
    layer: int  # what lives within a layer: the MLP's gate, its value and their product, and five widths
    vision: int  # of an image's token: what the tower hands to the decoder's layers, once more while it is joined
    end: int  # three widths

    @classmethod
    def of(cls, mllm: Any, item: int) -> "Mllm":
        reader, text = reader_of(mllm, None, torch.device("cpu")), mllm.config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        joined = getattr(mllm.config.vision_config, "deepstack_visual_indexes", None)
        return cls(
            kept=reader.num_layers * reader.width * item,
            kv=2 * text.num_hidden_layers * text.num_key_value_heads * head * item,
            layer=(3 * text.intermediate_size + 5 * reader.width) * item,
            vision=0 if joined is None else 2 * (len(joined) + 1) * reader.width * item,
            end=3 * reader.width * item,
        )

    def read(self, tokens: int, slots: int = 0) -> int:
        """While it runs: the layers so far and one more at work, or all of them and the same stacked."""
        within = self.kept + self.kv + self.layer
        return max(tokens * within + slots * self.vision, tokens * (2 * self.kept + self.kv + self.end))

    def prefix(self, slots: int) -> int:
        """What is kept of references until every prompt is read."""
        return slots * (self.kept + self.kv)


def encoding(mllm: Mllm, work: Workload) -> int:
    """References one subject after the other, then texts one after the other, each behind a copy of its prefix."""
    prefixes = [mllm.prefix(each.slots) for each in work.subjects]
    subjects = max(max(mllm.read(each.slots, each.slots), 2 * mllm.prefix(each.slots)) for each in work.subjects)
    texts = max(text.read * (mllm.kept + mllm.kv) + mllm.read(text.words) for text in work.texts)
    before = sum(mllm.kept * text.read for text in work.texts[:-1])
    return max(sum(prefixes) - min(prefixes) + subjects, sum(prefixes) + before + texts)


def fusing(aggregator: Any, item: int, work: Workload) -> int:
    """Attention over layers: 16 times tokens x layers x width, of one kind of token.

    They are the MLP's input and output (2 x 4), query, key and value (3), what is attended, two residuals, two norms.
    """
    layers, width = len(aggregator.layers), aggregator.mllm_shape[1]
    images = sum(text.subject.slots for text in work.texts)
    words = sum(text.words for text in work.texts)
    tokens = {"dual": max(images, words), "shared": images + words}.get(aggregator.mode, 0)
    refined = len(work.texts) * max(text.semantic for text in work.texts) * aggregator.config["width"]
    return (2 * MLP_RATIO + 8) * max(tokens * layers * width, refined) * item


@dataclass(frozen=True, kw_only=True)
class Dit:
    """A DiT by its sizes, in bytes a token."""

    block: int  # within a block, at its peak
    attended: int  # within a block, while it attends to what is kept
    width: int
    kv: int  # keys and values of all blocks
    placed: bool  # references are kept once as they were read, and turned to their places for each pass
    joint: bool  # conditions stand beside the noise in every pass

    @classmethod
    def of(cls, transformer: Any, item: int, conditions: str) -> "Dit":
        """By family: the widths that live at once in a block, at its peak and while it attends.

        FLUX peaks while a single block rotates its keys, with 12 widths and three of float32: input, residual, norm,
        MLP (4), query, key and value (3), the rotated query, pairs of the key; two products and a factor in float32.
        Qwen-Image 2.1 peaks in its MLP, with 9 widths and three of the MLP's: input, residual, norm, what is attended,
        scales and gates of each token and what they are multiplied into; value, gate and their product.
        """
        config = transformer.config
        width = config["num_attention_heads"] * config["attention_head_dim"] * item
        if "num_single_layers" in config:
            blocks, attended, block = config["num_layers"] + config["num_single_layers"], 12, 12 + 3 * FLOAT // item
        else:
            blocks, attended, block = config["num_layers"], 10, 9 + 3 * config["mlp_ratio"]
        return cls(
            block=block * width,
            attended=attended * width,
            width=width,
            kv=2 * blocks * width,
            placed="num_single_layers" in config,
            joint=conditions == "joint",
        )

    def step(self, stage: StageEstimate, pictures: int) -> int:
        """A pass, the one with most conditions: beside the noise, or kept and joined to a block's own."""
        noise, kept = stage.noise_tokens, max(stage.conditions)
        if self.joint:
            return pictures * (noise + kept) * self.block
        return pictures * max(noise * self.block, noise * self.attended + 2 * kept * self.width)

    def subjects(self, work: Workload) -> int:
        """What is kept of references as long as their subject lives; read twice where they are also read alone."""
        alone = not self.placed and any(each.stage.identity and not each.stage.semantic for each in work.stages)
        return 0 if self.joint else (1 + alone) * self.kv * sum(each.identity for each in work.subjects)

    def call(self, work: Workload) -> int:
        """What is kept of each text until the last step; where references stand among words, they are in it again."""
        if self.joint:
            return 0
        return self.kv * sum(text.semantic + (0 if self.placed else text.subject.identity) for text in work.texts)


def sampling(dit: Dit, work: Workload) -> int:
    """The largest of all steps and, if conditions are cached, of what happens before the first step of a stage.

    Then keys and values of all pictures are stacked, pass by pass, beside those of the stage before.
    """
    base, before, peak = dit.subjects(work) + dit.call(work), 0, 0
    placed = dit.subjects(work) if dit.placed else 0
    for stage in work.stages:
        if stage.steps == 0:
            continue
        stacks = 0 if dit.joint else dit.kv * work.pictures * sum(stage.conditions)
        peak = max(peak, base + before + stacks + placed, base + stacks + dit.step(stage, work.pictures))
        before = stacks
    return peak


def vae_encoding(vae: Any, item: int, pixels: int) -> int:
    """References one by one; maps of the first width at full size, live at once in the first block.

    AutoencoderKL: 5. AutoencoderKLQwenImage21: 7 and two of float32. AutoencoderDC: 2 and two of float32, at half size.
    """
    if isinstance(vae, AutoencoderKL):
        return pixels * vae.config["block_out_channels"][0] * 5 * item
    if isinstance(vae, AutoencoderDC):
        return pixels // 4 * vae.config["encoder_block_out_channels"][1] * (2 * item + 2 * FLOAT)
    return pixels * vae.config["base_dim"] * (7 * item + 2 * FLOAT)


def decoding(vae: Any, item: int, work: Workload) -> int:
    """All pictures at once; maps live at once in the last block.

    AutoencoderKL: 3 of the widest full-size map. AutoencoderDC: 3 and two of float32, at half size.
    AutoencoderKLQwenImage21: 18 of the last width and two of float32, for it keeps a copy of each convolution's input
    for a next frame.
    """
    pixels = work.pictures * work.pixels
    if isinstance(vae, AutoencoderKL):
        return pixels * full_size_channels(vae) * 3 * item
    if isinstance(vae, AutoencoderDC):
        return pixels // 4 * vae.config["decoder_block_out_channels"][1] * (3 * item + 2 * FLOAT)
    return pixels * full_size_channels(vae) * (18 * item + 2 * FLOAT)
