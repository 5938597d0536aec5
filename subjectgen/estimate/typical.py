"""What a picture of a recipe needs before any of its weights is there: its networks are built without them."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from subjectgen import weights
from subjectgen.backbones import denoiser_of
from subjectgen.estimate.counts import SubjectCount, TextCount, Workload, count_stages, plans_of
from subjectgen.estimate.result import Memory, memory_of
from subjectgen.generate.guide import Guidance, needs_negative
from subjectgen.generate.stages import resolve_stages
from subjectgen.models.vae import pixels_per_latent
from subjectgen.pipeline import SubjectPipeline
from subjectgen.request import check_size

WORDS = 64  # tokens of a prompt and of the template around it


class Typical:
    """One picture by a recipe's own settings, with this many references.

    Raises ValueError for more of them than it takes, WeightsError where a shipped model is missing.
    size: pixels, both sides; the recipe's own if left out.
    """

    def __init__(self, recipe: ModuleType, references: int, size: int | None = None):
        self.settings = _settings(recipe)
        self.networks: dict[str, nn.Module] = recipe.skeleton()
        self.size = self.settings["image_size"] if size is None else size
        if not 0 <= references <= self.settings["max_references"]:
            raise ValueError(
                f"{references} references: expected 0 to {self.settings['max_references']}, which this model takes"
            )
        self._work = self._workload(references)

    def memory(self, quantization: str = "none") -> Memory:
        """Of the device, for every way to offload."""
        return memory_of(self.networks, self.settings["conditions"], self._work, quantization=quantization)

    def _workload(self, references: int) -> Workload:
        denoiser = denoiser_of(self.networks["transformer"], self.settings["conditions"])
        per_token = pixels_per_latent(self.networks["vae"]) * denoiser.patch  # type: ignore[arg-type]
        check_size(self.size, self.size, per_token * denoiser.multiple)
        side = self.settings["reference_size"] // per_token
        subject = SubjectCount.of(self.networks["mllm"], [(side, side)] * references, per_token)
        stages = resolve_stages(self.settings["stages"])
        away_from = self.settings.get("negative", "empty_text")
        guidance = Guidance(scale=self.settings["guidance_scale"], negative=away_from)
        prompt, negative = (TextCount(words=words, subject=subject) for words in (WORDS, 0))
        return Workload(
            pictures=1,
            pixels=self.size**2,
            subjects=(subject,),
            texts=(prompt, negative) if needs_negative(stages, guidance) else (prompt,),
            stages=count_stages(
                stages,
                [1] * len(stages),
                plans_of(stages, guidance, subject.identity, negative_differs=True),
                noise=(self.size // per_token) ** 2,
                semantic=prompt.semantic,
                negative=negative.semantic,
                identity=subject.identity,
            ),
        )


def _settings(recipe: ModuleType) -> Mapping[str, Any]:
    """A recipe of public networks says them itself, a model in this repository beside its weights."""
    if hasattr(recipe, "SETTINGS"):
        return recipe.SETTINGS
    folder = weights.find_folder("weights") / recipe.WEIGHTS
    if not folder.is_dir():
        raise weights.WeightsError(f"{folder} is missing. {weights.SHIPPED_HINT}")
    return SubjectPipeline.load_config(folder)  # type: ignore[return-value]
