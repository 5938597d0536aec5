"""Picking one token after another so that the text fits a grammar."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast


class GrammarPicker:
    """Picks each next token among those that a grammar allows: the likeliest, or a draw at a temperature above 0.

    Where it allows one text only, that is written without asking the MLLM.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        grammar: str,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        self._matcher = _matcher(tokenizer, grammar).deep_copy()
        self._temperature, self._generator = temperature, generator

    @property
    def finished(self) -> bool:
        """Whether the text is whole, so that nothing may follow."""
        return self._matcher.is_stopped()

    def __call__(self, logits: Float[Tensor, " vocabulary"], at_most: int) -> list[int]:
        """The next token, given the MLLM's logits, and those that the grammar then forces; it moves on."""
        allowed = self._allowed()
        logits = logits[: len(allowed)].float().cpu()  # an embedding may have more rows than there are tokens
        token = self._picked(logits.masked_fill(~allowed, -torch.inf))
        self._move_on([token])
        forced = self._matcher.compute_ff_tokens()[: at_most - 1]
        self._move_on(forced)
        return [token, *forced]

    def _move_on(self, tokens: list[int]) -> None:
        if not self._matcher.consume_tokens(tokens):
            raise RuntimeError(f"llguidance refuses tokens {tokens}: {self._matcher.get_error()}")

    def _allowed(self) -> Bool[Tensor, " tokens"]:
        return torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()

    def _picked(self, logits: Float[Tensor, " tokens"]) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        below = logits.double() - logits.max()  # before it is divided: at the lowest temperatures logits overflow
        chances = (below / self._temperature).float().softmax(-1)
        if self._generator is not None:
            chances = chances.to(self._generator.device)
        return int(torch.multinomial(chances, 1, generator=self._generator))


@lru_cache(maxsize=16)
def _matcher(tokenizer: PreTrainedTokenizerFast, grammar: str) -> LLMatcher:
    """At the start of the grammar: read once, however many texts it is for."""
    return LLMatcher(_vocabulary(tokenizer), LLMatcher.grammar_from_lark(grammar))


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> LLTokenizer:
    """Made once for each tokenizer: a second for those of large MLLMs."""
    return from_tokenizer(tokenizer)
