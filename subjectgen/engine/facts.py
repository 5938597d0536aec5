"""What callers of an engine know of its model without touching a pipeline."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from subjectgen.engine.work import Painting
from subjectgen.extras import installed_version
from subjectgen.generate.stages import STAGE_PRESETS, resolve_stages
from subjectgen.request import Limits
from subjectgen.weights import model_hash

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model's name, a hash of its weights, and what it takes."""

    name: str
    hash: str
    limits: Limits

    @classmethod
    def of(cls, pipe: "SubjectPipeline", name: str) -> "ModelFacts":
        return cls(name=name, hash=model_hash(pipe.components), limits=pipe.limits)

    def recipe(self, painting: Painting) -> dict[str, str]:
        """How a picture was made, for its PNG; beside the subjects, which have names of their caller's."""
        given = {name: getattr(painting, name) for name in ("negative_prompt", "guidance_scale")}
        return {
            "prompt": painting.prompt,
            **{name: str(value) for name, value in given.items() if value not in (None, "")},
            "stages": _named(self.limits.stages if painting.stages is None else painting.stages),
            "steps": str(painting.num_inference_steps or self.limits.num_inference_steps),
            "seed": str(painting.seed),
            "model": self.name,
            "model_hash": self.hash,
            "Software": f"subjectgen {installed_version('subjectgen')}",
        }


def _named(stages: Any) -> str:
    """The name of a preset, or JSON."""
    resolved = resolve_stages(stages)
    by_stages = {preset: name for name, preset in STAGE_PRESETS.items()}
    return by_stages.get(resolved) or json.dumps([asdict(stage) for stage in resolved])
