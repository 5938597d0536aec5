"""subjectgen: a picture of your subject, in the scene you describe."""

from diffusers import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from transformers import ProcessorMixin

from subjectgen.adapter import SubjectAdapter
from subjectgen.binding import Binding
from subjectgen.embeds import SubjectEmbeds
from subjectgen.estimate import Estimate
from subjectgen.generate.guide import Guidance
from subjectgen.generate.stages import Stage
from subjectgen.load import load
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.mllm.processor import SubjectProcessor
from subjectgen.output import SubjectPipelineOutput
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.clip_dino import ClipDinoJudge
from subjectgen.reasoning.judges import MllmJudge, Score
from subjectgen.reasoning.plan import Plan, PlanError, PlannedSubject
from subjectgen.reasoning.reflect import Round
from subjectgen.reasoning.tower_judge import TowerJudge
from subjectgen.subject import Subject
from subjectgen.weights import WeightsError

# A saved pipeline names the classes of its components as ["subjectgen", class], and diffusers looks them and their base
# classes up here. Known to a folder and to a repository on the Hub alike, whatever file a class moves to.
LOADABLE_CLASSES.setdefault("subjectgen", {})

__all__ = [
    "Binding",
    "ClipDinoJudge",
    "DualLayerAggregator",
    "Estimate",
    "Guidance",
    "MllmJudge",
    "ModelMixin",
    "Plan",
    "PlanError",
    "PlannedSubject",
    "ProcessorMixin",
    "Round",
    "Score",
    "Stage",
    "Subject",
    "SubjectAdapter",
    "SubjectEmbeds",
    "SubjectPipeline",
    "SubjectPipelineOutput",
    "SubjectProcessor",
    "TowerJudge",
    "WeightsError",
    "load",
]
