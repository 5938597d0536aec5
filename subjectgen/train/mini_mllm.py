"""mini's MLLM: a tiny InternVL with its tokenizer and processor, untrained or as an earlier phase has left it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from subjectgen.data.talks import corpus
from subjectgen.data.world import SIDE
from subjectgen.models.mllm.processor import SubjectProcessor

VOCABULARY = 1024
PATCH = 16  # pixels
IMAGE_TOKENS = (SIDE // PATCH // 2) ** 2  # after the pixel shuffle


def new_tokenizer(names: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the emoji world; any text can be written with it."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus(names), trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
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


def new_processor(names: tuple[str, ...]) -> SubjectProcessor:
    """mini's processor: pictures of 128 px as one tile."""
    size = {"height": SIDE, "width": SIDE}
    half = [0.5, 0.5, 0.5]
    images = GotOcr2ImageProcessorPil(size=size, crop_to_patches=False, image_mean=half, image_std=half)
    return SubjectProcessor(image_processor=images, tokenizer=new_tokenizer(names), image_seq_length=IMAGE_TOKENS)


def new_mllm(processor: SubjectProcessor) -> InternVLForConditionalGeneration:
    """mini's MLLM, untrained: 4 vision and 6 language layers."""
    tokenizer = processor.tokenizer
    vision = {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384,
        "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH], "use_mean_pooling": False,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 576, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    return InternVLForConditionalGeneration(config)


def untrained(names: tuple[str, ...]) -> tuple[SubjectProcessor, InternVLForConditionalGeneration]:
    """What training from nothing begins with."""
    processor = new_processor(names)
    return processor, new_mllm(processor)


def trained(folder: Path) -> tuple[SubjectProcessor, InternVLForConditionalGeneration]:
    """What an earlier training has exported, or a pipeline's folder holds; nothing is fetched from the Hub."""
    model = InternVLForConditionalGeneration.from_pretrained(
        folder / "mllm", dtype=torch.float32, local_files_only=True
    )
    return SubjectProcessor.from_pretrained(folder / "processor", local_files_only=True), model


def export(model: InternVLForConditionalGeneration, processor: SubjectProcessor, folder: Path) -> None:
    """Save model (bfloat16) and processor beside each other."""
    copy = InternVLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder / "mllm")  # type: ignore[arg-type]
    processor.save_pretrained(folder / "processor")
