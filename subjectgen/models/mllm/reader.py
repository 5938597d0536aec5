"""What reads with an MLLM, whatever its family."""

from typing import Any

import torch
from transformers import PreTrainedModel


class MllmReader:
    """Reads references and prompts with an MLLM; holds no weights of its own.

    `device` is where the MLLM computes, if that is not where its weights rest (offloading).
    """

    max_prompt_tokens: int  # what the DiT is ready to pay for; the positions of the MLLM may allow less

    def __init__(
        self,
        mllm: PreTrainedModel,
        processor: Any,
        *,
        max_prompt_tokens: int | None = None,
        device: torch.device | None = None,
    ):
        self.mllm: Any = mllm
        self.processor = processor
        self.max_prompt_tokens = max_prompt_tokens or self.max_prompt_tokens
        self.device: torch.device = mllm.device if device is None else device

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return self.text_config.hidden_size

    @property
    def text_config(self) -> Any:
        """Of the language model alone."""
        return self.mllm.config.get_text_config()
