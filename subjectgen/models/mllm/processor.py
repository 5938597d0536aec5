"""The processor of an InternVL-like MLLM where torchvision (which InternVLProcessor's video part needs) is absent."""

from collections.abc import Mapping
from inspect import unwrap
from typing import Any

from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin

# ChatML, one image placeholder per reference; the same messages as a released InternVL3's own template expects.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"""


class SubjectProcessor(ProcessorMixin):
    """Images -> pixel values, text with one placeholder per image -> token ids; attributes as of InternVLProcessor.

    The tokenizer names its tokens `start_image_token`, `context_image_token` and `end_image_token`; every image becomes
    one tile of `image_seq_length` tokens, (image_size / patch_size * downsample_ratio)^2 of the MLLM.
    """

    @unwrap  # transformers reads the names of saved arguments from this function's code object, not from a wrapper's
    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_seq_length: int = 256,
        chat_template: str | None = CHAT_TEMPLATE,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_image_token = self.tokenizer.start_image_token
        self.end_image_token = self.tokenizer.end_image_token
        self.image_token = self.tokenizer.context_image_token
        self.image_token_id = self.tokenizer.context_image_token_id

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The text that stands for one image: called by ProcessorMixin for every placeholder."""
        return self.start_image_token + self.image_token * self.image_seq_length + self.end_image_token

    @property
    def unused_input_names(self) -> list[str]:
        """Outputs of the image processor that no model takes."""
        return ["num_patches"]
