"""What a user's `callback_on_step_end` is called with and may give back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from subjectgen.images import shown

Callback = Callable[..., Any]  # gives a mapping of what it changes, or None


def check_tensor_inputs(names: Any, known: Sequence[str]) -> None:
    """Raise ValueError for anything but a list of tensors that a callback may see."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(
            f"callback_on_step_end_tensor_inputs={names!r}: expected a list of names, such as {list(known)}"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs has {unknown}: expected any of {list(known)}")


def changed_by(given: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The latents that a callback gives back, or those that it saw. Raises ValueError for what is none."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"callback_on_step_end gave {shown(given)}: expected None, or a mapping. Return {{'latents': latents}}"
        )
    changed = (given or {}).get("latents", latents)
    if not isinstance(changed, Tensor) or not changed.is_floating_point() or changed.shape != latents.shape:
        raise ValueError(
            f"callback_on_step_end gave latents that are {shown(changed)}: expected {shown(latents)}, as it was called "
            "with"
        )
    return changed
