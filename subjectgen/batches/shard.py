"""Which part of a batch this process does."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `number`, from 1, of `count` nearly equal ones."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`2/8`, the second of eight. Raises ValueError."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--shard '{text}': expected i/n with i from 1 to n, e.g. 2/8 for the second of eight.")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def launched(cls) -> "Shard":
        """As torchrun says; all of it without torchrun."""
        return cls(int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def manifest(self) -> str:
        """The name of the manifest that this part writes."""
        return "manifest.jsonl" if self.count == 1 else f"manifest-{self.number}-of-{self.count}.jsonl"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Neighbours stay together: of rows that are grouped, few groups are torn apart."""
        first, end = (len(items) * k // self.count for k in (self.number - 1, self.number))
        return items[first:end]
