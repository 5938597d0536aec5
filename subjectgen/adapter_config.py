"""What a SubjectAdapter was trained on and for, as its file says it."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from transformers import PreTrainedModel

from subjectgen.generate.stages import resolve_stages
from subjectgen.lora import LoraSettings
from subjectgen.pipeline import CONDITIONS
from subjectgen.weights import WeightsError

REPO_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True, kw_only=True)
class BaseNetwork:
    """A public network that an adapter was trained on."""

    repo: str  # on the Hub; empty if it was loaded from a folder
    class_name: str
    num_blocks: int
    width: int

    def __str__(self) -> str:
        return f"{self.class_name} of {self.num_blocks} blocks, width {self.width}"

    @classmethod
    def of_transformer(cls, transformer: ModelMixin) -> "BaseNetwork":
        config = transformer.config
        return cls(
            repo=_repo_id(config.get("_name_or_path")),
            class_name=type(transformer).__name__,
            num_blocks=config["num_layers"] + config.get("num_single_layers", 0),
            width=config["num_attention_heads"] * config["attention_head_dim"],
        )

    @classmethod
    def of_mllm(cls, mllm: PreTrainedModel) -> "BaseNetwork":
        text = mllm.config.get_text_config()
        return cls(
            repo=_repo_id(mllm.config.name_or_path),
            class_name=type(mllm).__name__,
            num_blocks=text.num_hidden_layers,
            width=text.hidden_size,
        )

    def check(self, name: str, found: "BaseNetwork") -> None:
        """Raise WeightsError unless a pipeline's network is this one; a copy from elsewhere is as good."""
        if replace(found, repo=self.repo) != self:
            origin = f" ({self.repo})" if self.repo else ""
            raise WeightsError(
                f"this pipeline's {name} is a {found}: expected the {self}{origin} that the adapter was trained on. "
                "Load that one, or another adapter."
            )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What an adapter was trained on and for. Raises ValueError for settings no pipeline has."""

    transformer: BaseNetwork
    mllm: BaseNetwork
    aggregator: Mapping[str, Any]  # arguments of DualLayerAggregator
    lora: LoraSettings
    settings: Mapping[str, Any]  # of the pipeline: conditions, stages, guidance_scale, license, sizes in pixels

    def __post_init__(self):
        resolve_stages(self.settings["stages"])
        if self.settings["conditions"] not in CONDITIONS:
            raise ValueError(f"conditions={self.settings['conditions']!r}: expected one of {', '.join(CONDITIONS)}")

    @classmethod
    def from_json(cls, text: str) -> "AdapterConfig":
        parts = json.loads(text)
        return cls(
            transformer=BaseNetwork(**parts["transformer"]),
            mllm=BaseNetwork(**parts["mllm"]),
            aggregator=parts["aggregator"],
            lora=LoraSettings(**{**parts["lora"], "targets": tuple(parts["lora"]["targets"])}),
            settings=parts["settings"],
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def _repo_id(name: str | None) -> str:
    """What a network was loaded from, if that is of use elsewhere: no path of this machine."""
    return name if name and re.fullmatch(REPO_ID, name) and not Path(name).exists() else ""
