"""The public surface, and the places in diffusers that it relies on."""

import inspect
import pkgutil

import diffusers
import pytest
import transformers
from diffusers.pipelines import pipeline_loading_utils
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
from tiny_pipeline import tiny_pipeline

import subjectgen

PUBLIC = {
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
}


def test_public_names():
    assert set(subjectgen.__all__) == PUBLIC
    assert all(hasattr(subjectgen, name) for name in PUBLIC)


def test_call_has_the_names_of_diffusers():
    flux = set(inspect.signature(diffusers.FluxPipeline.__call__).parameters)
    ours = inspect.signature(subjectgen.SubjectPipeline.__call__).parameters
    own = {"subject_images", "image", "stages", "negative", "guidance", "reasoning", "best_of", "judge"}
    own |= {"reflect", "reflect_sigma"}
    assert set(ours) - own <= flux
    assert list(ours)[1:3] == ["prompt", "subject_images"]
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in ours.values())


def test_estimate_takes_what_decides_the_cost_of_a_call():
    from subjectgen.request import Request

    fields = set(inspect.signature(Request).parameters)
    ours = set(inspect.signature(subjectgen.SubjectPipeline.__call__).parameters)
    assert ours - fields == {
        "self", "image", "reasoning", "judge", "reflect", "reflect_sigma",
        "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs"
    }  # fmt: skip


class TestRegistration:
    """diffusers documents no way to load components of another package by repo id: this is what its loader reads."""

    def test_the_table_is_where_it_was(self):
        assert isinstance(pipeline_loading_utils.LOADABLE_CLASSES, dict), (
            "diffusers moved LOADABLE_CLASSES: see ecosystem"
        )
        assert "subjectgen" in pipeline_loading_utils.LOADABLE_CLASSES
        assert {"ModelMixin", "ProcessorMixin"} <= pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.keys()

    def test_components_are_recorded_under_the_package(self):
        pipe = tiny_pipeline()
        recorded = {name: _fetch_class_library_tuple(part) for name, part in pipe.components.items()}
        assert recorded == {
            "mllm": ("transformers", "InternVLForConditionalGeneration"),
            "processor": ("subjectgen", "SubjectProcessor"),
            "aggregator": ("subjectgen", "DualLayerAggregator"),
            "transformer": ("diffusers", "FluxTransformer2DModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        }

    def test_recorded_classes_and_their_bases_are_at_the_top(self):
        assert subjectgen.ModelMixin is diffusers.ModelMixin
        assert subjectgen.ProcessorMixin is transformers.ProcessorMixin
        assert issubclass(subjectgen.DualLayerAggregator, subjectgen.ModelMixin)
        assert issubclass(subjectgen.SubjectProcessor, subjectgen.ProcessorMixin)

    def test_no_folder_of_components_is_named_like_a_pipeline_of_diffusers(self):
        """Classes in such a folder are recorded under its name and never load; `models/dit` therefore holds none."""
        for component in (subjectgen.DualLayerAggregator, subjectgen.SubjectProcessor):
            folder = component.__module__.split(".")[-2]
            assert not hasattr(diffusers.pipelines, folder), folder


class TestPipelineContract:
    def test_components(self):
        pipe = tiny_pipeline()
        assert list(pipe.components) and set(pipe.components) == {
            "mllm", "processor", "aggregator", "transformer", "vae", "scheduler"
        }  # fmt: skip
        assert isinstance(pipe, diffusers.DiffusionPipeline)

    def test_offload_order_names_every_network(self):
        order = subjectgen.SubjectPipeline.model_cpu_offload_seq.split("->")
        assert sorted(order) == ["aggregator", "mllm", "transformer", "vae"]
        assert order.index("mllm") < order.index("aggregator") < order.index("transformer") < order.index("vae")

    def test_callback_tensors(self):
        assert subjectgen.SubjectPipeline._callback_tensor_inputs == ["latents"]


def test_no_module_is_called_utils():
    names = [module.name for module in pkgutil.walk_packages(subjectgen.__path__, "subjectgen.")]
    assert len(names) > 20
    assert not {"utils", "helpers", "common"} & {part for name in names for part in name.split(".")}


@pytest.mark.parametrize("name", ["flux-internvl3", "mini"])
def test_recipes_that_ship(name):
    from subjectgen.load import recipe, recipes

    assert name in recipes()
    assert callable(recipe(name).load)
