"""What is told before a call against what the call then does."""

import inspect

import pytest
import torch
from tiny_pipeline import picture, tiny_pipeline
from torch.profiler import ProfilerActivity, profile

from subjectgen import Guidance, Stage, Subject, SubjectPipeline

RED, BLUE = picture("red"), picture("blue")
PROMPTS = ["a red cat", "on the blue ground, a cat and a cat"]
STAGES = [Stage(0.8, identity=0.0), Stage(0.5, guidance=1.0), Stage(0.0, semantic=0.0)]
CASES = {
    "plain": {},
    "guided": {"guidance_scale": 2.0},
    "three terms": {"guidance": Guidance(identity=2.0, text=3.0), "stages": "faithful"},
    "text only": {"subject_images": None, "guidance_scale": 2.0, "stages": "free"},
    "wide": {"height": 48, "width": 96, "num_images_per_prompt": 2, "num_inference_steps": 7},
}


@pytest.fixture(scope="module", params=["cached", "joint"])
def pipe(request):
    return tiny_pipeline(conditions=request.param, stages=STAGES, num_inference_steps=6)


def forwards_of(pipe, monkeypatch, **call):
    """What the transformer is given while noise is denoised: (pictures, image tokens, text tokens) per forward."""
    seen, transformer = [], pipe.transformer.forward

    def forward(**given):
        if given["timestep"].min() > 0:  # at sigma 0 conditions are read
            seen.append((*given["hidden_states"].shape[:2], given["encoder_hidden_states"].shape[1]))
        return transformer(**given)

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    pipe(**call, output_type="latent")
    return seen


def call_of(options):
    return {"prompt": PROMPTS[0], "subject_images": [RED, BLUE], **options}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
class TestSteps:
    def test_forwards_are_steps_times_passes(self, pipe, monkeypatch, options):
        told = pipe.estimate(**call_of(options))
        assert sum(each.forwards for each in told.stages) == len(forwards_of(pipe, monkeypatch, **call_of(options)))
        steps = options.get("num_inference_steps", 6)
        assert sum(each.steps for each in told.stages) == steps
        assert [each.stage.until for each in told.stages][-1] == 0

    def test_noise_tokens(self, pipe, options):
        tokens = {each.noise_tokens for each in pipe.estimate(**call_of(options)).stages}
        assert tokens == {options.get("height", 64) * options.get("width", 64) // 16**2}


def test_tokens_are_those_the_transformer_is_given(monkeypatch):
    pipe = tiny_pipeline(conditions="joint", stages=STAGES, num_inference_steps=6)
    told = pipe.estimate(**call_of({}))
    given = [(image, text) for _, image, text in forwards_of(pipe, monkeypatch, **call_of({}))]
    expected = [
        (each.noise_tokens + each.identity_tokens, each.semantic_tokens)
        for each in told.stages
        for _ in range(each.forwards)
    ]
    assert given == expected


def test_references_of_the_largest_prompt():
    told = tiny_pipeline().estimate(PROMPTS, [[], [RED, BLUE]], num_images_per_prompt=3, stages="faithful")
    assert (told.pictures, told.references) == (6, 2)
    assert told.stages[0].identity_tokens == 2 * (32 // 16) ** 2


def test_embeds_cost_as_their_images_but_for_encoding_them(pipe):
    embeds = pipe.estimate(PROMPTS[0], pipe.encode_subjects([RED, BLUE]))
    images = pipe.estimate(PROMPTS[0], [RED, BLUE])
    assert embeds.stages == images.stages
    costs = dict(images.memory.activation_bytes)
    assert costs.pop("identity") > 0
    assert embeds.memory.activation_bytes == costs


def test_nothing_runs_and_nothing_changes(pipe, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network ran")

    for network in (pipe.mllm, pipe.aggregator, pipe.transformer, pipe.vae):
        monkeypatch.setattr(network, "forward", refuse)
    state, timesteps = torch.random.get_rng_state(), pipe.scheduler.timesteps
    pipe.estimate(PROMPTS[0], RED, num_inference_steps=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pipe.scheduler.timesteps is timesteps


class TestMemory:
    """Formulas and placement apart: tests/test_estimate_memory.py."""

    def test_weights(self, pipe):
        told = pipe.estimate(PROMPTS[0]).memory.weight_bytes
        sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) * 4 for name in told}
        buffers = {name: sum(b.numel() * b.element_size() for b in getattr(pipe, name).buffers()) for name in told}
        assert told == {name: sizes[name] + buffers[name] for name in sizes}
        assert set(told) == {"mllm", "aggregator", "transformer", "vae"}

    def test_half_the_dtype_is_half_the_weights(self, pipe):
        full, half = (pipe.estimate(PROMPTS[0], RED, dtype=dtype).memory for dtype in (None, torch.bfloat16))
        assert half.weight_bytes["transformer"] == full.weight_bytes["transformer"] / 2
        assert half.activation_bytes["encode"] < full.activation_bytes["encode"]

    @pytest.mark.parametrize(("station", "most"), [("sample", 1.4), ("to image", 2.5)])
    def test_activations_are_near_what_is_allocated(self, station, most):
        """On the CPU, where convolutions reorder what they read and write."""
        pipe = tiny_pipeline(conditions="joint", stages="faithful")
        call = {"prompt": PROMPTS[0], "subject_images": [RED], "height": 512, "width": 512, "num_inference_steps": 1}
        told = pipe.estimate(**call).memory.activation_bytes[station]
        kind = {"sample": "latent", "to image": "pt"}[station]
        assert 0.7 * told < allocated(lambda: pipe(**call, output_type=kind)) < most * told

    def test_grow_with_the_picture_and_the_batch(self, pipe):
        small, large = (pipe.estimate(PROMPTS[0], height=side, width=side).memory for side in (64, 128))
        many = pipe.estimate(PROMPTS[0], height=64, width=64, num_images_per_prompt=3).memory
        kept = small.activation_bytes["encode"]  # hidden states, which do not grow
        assert large.activation_bytes["to image"] > 3 * small.activation_bytes["to image"]
        assert small.activation_bytes["sample"] < many.activation_bytes["sample"] + kept
        assert many.activation_bytes["to image"] > 2 * small.activation_bytes["to image"]


def allocated(run):
    """The most bytes that `run` holds at once, by one thread: on a CPU attention has a workspace for each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    finally:
        torch.set_num_threads(threads)
    events = profiler.profiler.kineto_results.events()
    changes = [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns()) if event.name() == "[memory]"]
    return int(torch.tensor(changes).cumsum(0).max())


class TestShown:
    def test_prints_every_stage_and_the_needs(self, pipe):
        text = str(pipe.estimate(PROMPTS[0], RED, guidance_scale=2.0))
        for line in (
            "until 0.8",
            "until 0.5",
            "until 0",
            "peak memory",
            "offload='none'",
            "'sequential': ",
            "up to 3 references of 32 px",
        ):
            assert line in text
        assert pipe.config["conditions"] in text

    def test_what_phrases_are_bound_to_is_printed(self, pipe):
        told = pipe.estimate(["the fox beside image 2", "a red ground"], [Subject(RED, name="fox"), BLUE])
        lines = str(told).splitlines()
        assert "in prompt 1: 'fox' is image 1, 'image 2' is image 2" in lines
        assert "in prompt 2: no phrase stands for a reference" in lines

    def test_is_frozen(self, pipe):
        with pytest.raises(AttributeError):
            pipe.estimate(PROMPTS[0]).pictures = 2


def test_refuses_what_the_call_refuses(pipe):
    with pytest.raises(ValueError, match="stages='mild'"):
        pipe.estimate(PROMPTS[0], stages="mild")
    with pytest.raises(ValueError, match="offload='disk': expected one of none, model"):
        pipe.estimate(PROMPTS[0], offload="disk")
    with pytest.raises(ValueError, match="quantization='int2': expected one of none, int8"):
        pipe.estimate(PROMPTS[0], quantization="int2")
    with pytest.raises(TypeError, match="heigth"):
        pipe.estimate(PROMPTS[0], heigth=64)


def test_image_is_another_name_for_the_references():
    pipe = tiny_pipeline()
    assert pipe.estimate(PROMPTS[0], image=RED) == pipe.estimate(PROMPTS[0], RED) != pipe.estimate(PROMPTS[0])
    with pytest.raises(ValueError, match="both subject_images and image"):
        pipe.estimate(PROMPTS[0], RED, image=RED)


def test_the_name_of_a_dtype_is_none():
    with pytest.raises(ValueError, match=r"dtype='float16': expected a torch\.dtype"):
        tiny_pipeline().estimate(PROMPTS[0], dtype="float16")


class TestAllThatACallTakes:
    UNCOUNTED = {  # noqa: RUF012
        "reasoning": True,
        "judge": len,
        "reflect": 1,
        "reflect_sigma": 0.5,
        "return_dict": False,
        "callback_on_step_end": len,
        "callback_on_step_end_tensor_inputs": ("prompt",),
    }

    @pytest.mark.parametrize(("name", "value"), UNCOUNTED.items())
    def test_what_cannot_be_counted_is_refused_by_name(self, name, value):
        with pytest.raises(ValueError, match=rf"^{name}=.*estimate the plan of pipe\.reason\(\) and each round"):
            tiny_pipeline().estimate(PROMPTS[0], RED, **{name: value})

    def test_the_rest_is_counted_and_left_out_changes_nothing(self):
        """Every argument of a call with the value that it has anyhow."""
        pipe, arguments = tiny_pipeline(), inspect.signature(SubjectPipeline.__call__).parameters.values()
        own = {each.name: each.default for each in arguments if each.kind is each.KEYWORD_ONLY}
        assert own.keys() > self.UNCOUNTED.keys()
        assert pipe.estimate(PROMPTS[0], RED, **own) == pipe.estimate(PROMPTS[0], RED)

    def test_candidates_are_counted(self):
        pipe = tiny_pipeline()
        assert pipe.estimate(PROMPTS[0], RED, best_of=3) == pipe.estimate(PROMPTS[0], RED, num_images_per_prompt=3)
