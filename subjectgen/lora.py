"""LoRA of a FLUX transformer, strictly matched: the identity's, which is trained here, and a user's own beside it."""

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from subjectgen.extras import require
from subjectgen.hub import loading
from subjectgen.weights import WeightsError

IDENTITY = "identity"  # the trained LoRA, among others
EXTRA = "flux"
PREFIX = "transformer"  # of a transformer's keys in a file that may hold those of text encoders too
PEFT_CONFIG, PEFT_WEIGHTS, PEFT_PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
PLAIN = ("bias", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora")
SHOWN = 4  # names in a message

State = Mapping[str, Tensor]
Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What beside its weights makes a LoRA: W + alpha / rank * B A, in every layer whose name ends in a target."""

    rank: int
    alpha: int | float
    targets: tuple[str, ...]

    def for_peft(self) -> dict[str, Any]:
        """The same as arguments of peft's LoraConfig."""
        return {"r": self.rank, "lora_alpha": self.alpha, "target_modules": list(self.targets)}


@dataclass(frozen=True, kw_only=True)
class MatchedKeys:
    """How many keys of a LoRA this transformer has a place for; the rest are of text encoders. Print it."""

    matched: int
    given: int

    def __str__(self) -> str:
        return f"{self.matched} of {self.given} keys matched"


def add_identity(transformer: FluxTransformer2DModel, settings: LoraSettings) -> None:
    """Add an untrained identity LoRA: B is zero, so nothing changes yet."""
    require(EXTRA, "peft")
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(**settings.for_peft()), adapter_name=IDENTITY)


def identity_of(transformer: FluxTransformer2DModel) -> tuple[LoraSettings, State]:
    """Settings and weights of the identity LoRA, as peft names them. Raises ValueError where there is none."""
    require(EXTRA, "peft")
    from peft import LoraConfig, get_peft_model_state_dict

    config = _configs(transformer).get(IDENTITY)
    if config is None:
        raise ValueError(f"the transformer has no LoRA named '{IDENTITY}': expected one that was trained or applied")
    odd = [name for name in PLAIN if getattr(config, name) != getattr(LoraConfig(), name)]
    odd += ["target_modules"] if isinstance(config.target_modules, str) else []
    if odd:
        raise ValueError(
            f"the LoRA '{IDENTITY}' sets {', '.join(odd)}: expected rank, alpha and a list of target modules only. "
            "Train it without"
        )
    settings = LoraSettings(rank=config.r, alpha=config.lora_alpha, targets=tuple(sorted(config.target_modules)))
    return settings, get_peft_model_state_dict(transformer, adapter_name=IDENTITY)


def check_identity(transformer: FluxTransformer2DModel, settings: LoraSettings, state: State) -> None:
    """Raise WeightsError unless every tensor belongs to a layer of the transformer, in pairs, at this rank."""
    layers = _layers(transformer)
    expected = _shapes(layers, {_layer_of(key) for key in state} & layers.keys(), settings.rank)
    _check_keys("the adapter's LoRA", transformer, state.keys(), expected.keys())
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise WeightsError(
            f"the adapter's LoRA lacks {_examples(missing)}: expected A and B of each layer. Train it again."
        )
    wrong = sorted(key for key in state if tuple(state[key].shape) != expected[key])
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of {len(state)} tensors of the adapter's LoRA have another shape, the first is {wrong[0]}: "
            f"{list(state[wrong[0]].shape)}, expected {list(expected[wrong[0]])} at rank {settings.rank}. "
            "Use the base it was trained on."
        )


def set_identity(pipe: DiffusionPipeline, settings: LoraSettings, state: State) -> None:
    """Load a checked identity LoRA in place of the one that may be there; it acts beside those that are active."""
    require(EXTRA, "peft")
    transformer: FluxTransformer2DModel = pipe.transformer
    others = [name for name in active_loras(transformer) if name != IDENTITY]
    if IDENTITY in _configs(transformer):
        transformer.delete_adapters(IDENTITY)
    _load(pipe, state, IDENTITY, others, prefix=None, metadata=settings.for_peft())


def load_lora(
    pipe: DiffusionPipeline,
    source: str | Path | State,
    name: str,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> MatchedKeys:
    """Load a LoRA of your own under `name`; it acts at once, beside the others. Weigh them with `set_adapters`.

    The transformer may be quantised. Returns how many keys matched: all that are not of a text encoder.

    source: a safetensors file, a folder, a Hub repo id or a state dict, in any layout diffusers knows, or a folder
        written by peft. `weight_name` picks a file of a folder or repository.

    Raises ValueError for a name that is taken, WeightsError for a LoRA of which any key does not match.
    """
    require(EXTRA, "peft")
    transformer: FluxTransformer2DModel = pipe.transformer
    if name == IDENTITY or name in _configs(transformer):
        raise ValueError(f"name={name!r} is taken by a LoRA of this transformer or of subjectgen: choose another")
    what = "this LoRA" if isinstance(source, Mapping) else str(source)
    active = active_loras(transformer)
    with loading(what):
        state, alphas, metadata = _read(source, weight_name=weight_name, revision=revision, token=token)
    prefix = PREFIX if any(key.startswith(f"{PREFIX}.") for key in state) else None
    own, layers = _without_prefix(what, state, prefix), _layers(transformer)
    matched = [key for key, tensor in own.items() if _fits(key, tensor, layers.get(_layer_of(key)))]
    _check_keys(f"'{what}'", transformer, own.keys(), matched)
    with loading(what):
        _load(pipe, state, name, active, prefix=prefix, network_alphas=alphas, metadata=metadata)
    return MatchedKeys(matched=len(matched), given=len(state))


def active_loras(transformer: FluxTransformer2DModel) -> list[str]:
    """Names of the LoRA that act now."""
    if not _configs(transformer):
        return []
    active = transformer.active_adapters()
    return [active] if isinstance(active, str) else list(active)


def _load(pipe: DiffusionPipeline, state: State, name: str, active: list[str], **options: Any) -> None:
    """By diffusers' own loader; then it acts beside those that are active."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # more than one is meant
        pipe.transformer.load_lora_adapter(dict(state), adapter_name=name, _pipeline=pipe, **options)
    pipe.transformer.set_adapter([*active, name])


def _configs(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    return getattr(transformer, "peft_config", {})


def _layers(transformer: FluxTransformer2DModel) -> dict[str, nn.Module]:
    """Linear layers by name, plain, quantised or with LoRA."""
    return {name: module for name, module in transformer.named_modules() if hasattr(module, "in_features")}


def _layer_of(key: str) -> str:
    """transformer_blocks.0.attn.to_q.lora_A.weight => transformer_blocks.0.attn.to_q"""
    return re.split(r"\.lora[._]", key)[0]


def _shapes(layers: Mapping[str, Any], names: Collection[str], rank: int) -> dict[str, Shape]:
    """What a plain LoRA of these layers consists of."""
    down = {f"{name}.lora_A.weight": (rank, layers[name].in_features) for name in names}
    return down | {f"{name}.lora_B.weight": (layers[name].out_features, rank) for name in names}


def _fits(key: str, tensor: Tensor, layer: Any) -> bool:
    """Whether a tensor, of any rank, can belong to a layer."""
    if layer is None:
        return False
    if key.endswith(".lora_A.weight"):
        return tensor.shape[1] == layer.in_features
    return not key.endswith(".lora_B.weight") or tensor.shape[0] == layer.out_features


def _check_keys(what: str, transformer: nn.Module, keys: Collection[str], matched: Collection[str]) -> None:
    unmatched = sorted(set(keys) - set(matched))
    if keys and not unmatched:
        return
    raise WeightsError(
        f"{what}: {len(keys) - len(unmatched)} of {len(keys)} LoRA keys match this {type(transformer).__name__}"
        f"{'; not matched: ' if unmatched else ''}{_examples(unmatched)}. Use a LoRA made for this transformer."
    )


def _examples(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _read(source: Any, **where: Any) -> tuple[State, dict[str, Any] | None, dict[str, Any] | None]:
    """A LoRA as (tensors, alphas by key, arguments of LoraConfig), whatever layout it has."""
    if isinstance(source, (str, Path)) and Path(source, PEFT_CONFIG).is_file():
        from peft import LoraConfig

        tensors = load_file(Path(source, PEFT_WEIGHTS))
        own = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
        return own, None, LoraConfig.from_pretrained(str(source)).to_dict()
    state, alphas, metadata = FluxLoraLoaderMixin.lora_state_dict(
        dict(source) if isinstance(source, Mapping) else str(source),
        return_alphas=True,
        return_lora_metadata=True,
        use_safetensors=True,
        **where,
    )
    return state, alphas or None, metadata


def _without_prefix(what: str, state: State, prefix: str | None) -> State:
    """The transformer's part by the names it uses; says that the rest is left out."""
    if prefix is None:
        return state
    own = {key.removeprefix(f"{prefix}."): tensor for key, tensor in state.items() if key.startswith(f"{prefix}.")}
    if len(own) < len(state):
        warnings.warn(
            f"{what}: {len(state) - len(own)} of {len(state)} keys are left out: they belong to text encoders, which "
            "this pipeline has not",
            stacklevel=3,
        )
    return own
