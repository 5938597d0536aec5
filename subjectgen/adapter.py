"""SubjectAdapter: all that is trained on top of public networks, in one file: the aggregator and a LoRA of the DiT."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subjectgen import hub
from subjectgen.adapter_config import REPO_ID, AdapterConfig, BaseNetwork
from subjectgen.files import whole_file
from subjectgen.lora import State, check_identity, identity_of, set_identity
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.pipeline import SubjectPipeline
from subjectgen.weights import WeightsError, tensors_hash, whole

FORMAT = "subjectgen.SubjectAdapter/1"
FILE = "adapter.safetensors"
REMEDY = "Download or save it again."


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectAdapter:
    """The trained part of a pipeline, on the CPU: tensors of the aggregator and of the LoRA, and what they fit."""

    config: AdapterConfig
    aggregator_state: State
    lora_state: State

    @classmethod
    def of(cls, pipe: SubjectPipeline) -> "SubjectAdapter":
        """A copy of what a pipeline was trained or equipped with. Raises ValueError if it has no identity LoRA."""
        lora, lora_state = identity_of(pipe.transformer)
        config = AdapterConfig(
            transformer=BaseNetwork.of_transformer(pipe.transformer),
            mllm=BaseNetwork.of_mllm(pipe.mllm),
            aggregator={name: value for name, value in pipe.aggregator.config.items() if not name.startswith("_")},
            lora=lora,
            settings=pipe.parameters,
        )
        return cls(
            config=config, aggregator_state=_copied(pipe.aggregator.state_dict()), lora_state=_copied(lora_state)
        )

    def apply(self, pipe: SubjectPipeline) -> None:
        """Put aggregator, LoRA and settings into a pipeline of the same base, before it is offloaded or compiled.

        Raises WeightsError, and changes nothing, if the adapter was trained on another base.
        """
        self.check(pipe)
        aggregator = self.aggregator(pipe.transformer.device, pipe.transformer.dtype)
        set_identity(pipe, self.config.lora, self.lora_state)
        pipe.register_modules(aggregator=aggregator)
        pipe.register_to_config(**self.config.settings)

    def check(self, pipe: SubjectPipeline) -> None:
        """Raise WeightsError, naming what differs, unless the adapter fits the networks of a pipeline."""
        self.config.transformer.check("transformer", BaseNetwork.of_transformer(pipe.transformer))
        self.config.mllm.check("mllm", BaseNetwork.of_mllm(pipe.mllm))
        self._check_widths(pipe)
        check_identity(pipe.transformer, self.config.lora, self.lora_state)

    def aggregator(self, device: torch.device, dtype: torch.dtype) -> DualLayerAggregator:
        """The trained aggregator, with weights of its own. Raises WeightsError if they are not those of its shape."""
        try:
            with torch.device("meta"):
                aggregator = DualLayerAggregator(**self.config.aggregator)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"the adapter's aggregator cannot be made: {error}. {REMEDY}") from error
        _check_shapes(self.aggregator_state, aggregator)
        state = {name: tensor.to(device, dtype, copy=True) for name, tensor in self.aggregator_state.items()}
        aggregator.load_state_dict(state, assign=True)
        return aggregator.eval()

    @cached_property
    def sha256(self) -> str:
        """Names this adapter for good: its configuration and the names, dtypes, shapes and bytes of its tensors."""
        return hashlib.sha256(f"{self.config.to_json()}\n{tensors_hash(self._tensors())}".encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all; a folder gets an adapter.safetensors. Returns the file."""
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        metadata = {"format": FORMAT, "config": self.config.to_json(), "sha256": self.sha256}
        with whole_file(path) as temporary:
            save_file(self._tensors(), temporary, metadata)
        return path

    @classmethod
    def load(cls, source: str | Path, *, revision: str | None = None, token: str | None = None) -> "SubjectAdapter":
        """Read what `save` wrote: a file, a folder with an adapter.safetensors, or a Hub repo id (cached, offline too).

        Raises FileNotFoundError if there is none, WeightsError if it is damaged or of another format.
        """
        path = _find(str(source), revision, token)
        tensors, metadata = _read(path)
        if metadata.get("format") != FORMAT:
            raise WeightsError(
                f"'{source}' has format {metadata.get('format')!r}: expected {FORMAT!r}. Train an adapter."
            )
        try:
            config = AdapterConfig.from_json(metadata["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"'{source}' has a malformed configuration ({error!r}). {REMEDY}") from error
        adapter = cls(config=config, aggregator_state=_part(tensors, "aggregator."), lora_state=_part(tensors, "lora."))
        if adapter.sha256 != (saved := metadata.get("sha256")):
            raise WeightsError(f"'{source}' is altered: sha256 {adapter.sha256}, expected {saved}. {REMEDY}")
        return adapter

    def push(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload SubjectAdapter",
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload file and model card to a repository; a card that is already there stays. Returns the commit's URL."""
        with TemporaryDirectory() as folder:
            self.save(folder)
            hub.adapter_card(self.config).save(Path(folder) / "README.md")
            return hub.upload(Path(folder), repo_id, commit_message, private, token, create_pr)

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file."""
        aggregator = {f"aggregator.{name}": tensor for name, tensor in self.aggregator_state.items()}
        return aggregator | {f"lora.{name}": tensor for name, tensor in self.lora_state.items()}

    def _check_widths(self, pipe: SubjectPipeline) -> None:
        mllm, transformer = BaseNetwork.of_mllm(pipe.mllm), pipe.transformer.config
        fitting = {
            "num_layers": mllm.num_blocks + 1,
            "mllm_width": mllm.width,
            "width": transformer["joint_attention_dim"],
            "pooled_width": transformer["pooled_projection_dim"],
        }
        given = {name: self.config.aggregator.get(name) for name in fitting}
        if given != fitting:
            raise WeightsError(
                f"the adapter's aggregator has {given}: expected {fitting}. Use the base it was trained on."
            )


def _check_shapes(state: State, aggregator: DualLayerAggregator) -> None:
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    expected = {name: list(tensor.shape) for name, tensor in aggregator.state_dict().items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise WeightsError(
            f"{len(wrong)} tensors of the adapter's aggregator are not of its configuration, the first is {wrong[0]}: "
            f"{found.get(wrong[0])}, expected {expected.get(wrong[0])}. {REMEDY}"
        )


def _copied(state: State) -> dict[str, Tensor]:
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def _part(tensors: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _find(source: str, revision: str | None, token: str | None) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / FILE
    elif not path.exists() and re.fullmatch(REPO_ID, source) and path.suffix != ".safetensors":
        path = hub.fetch(source, [FILE], revision, token) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"'{source}' is no adapter: expected a file written by SubjectAdapter.save(), a folder that holds {FILE}, "
            "or a Hub repo id such as 'someone/an-adapter'"
        )
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"'{path}' cannot be read ({error}): it is corrupt or cut off. {REMEDY}") from error
