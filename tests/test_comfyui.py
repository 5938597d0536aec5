"""The nodes, run as ComfyUI runs them, on a stub of it: equal to the same call in Python, and well behaved."""

import gc
import json
from pathlib import Path

import comfy.model_patcher
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy import model_management
from comfyui_graphs import run
from PIL import Image
from tiny_pipeline import picture, tiny_pipeline

import subjectgen
from subjectgen.comfyui import managed
from subjectgen.comfyui.all_in_one_node import PaintAtOnce
from subjectgen.comfyui.extension import NODES, comfy_entrypoint
from subjectgen.comfyui.load_node import Load
from subjectgen.comfyui.managed import ManagedPipeline
from subjectgen.comfyui.models import adapter_places, add_folders, model_places, subject_files
from subjectgen.comfyui.pictures import image_from_pictures, references, references_from_sockets, subjects_from_image
from subjectgen.comfyui.sample_node import Sample
from subjectgen.comfyui.stages_node import TWO_TAUS, Stages
from subjectgen.comfyui.steps import PREVIEW_LATENTS, Steps, _small
from subjectgen.comfyui.subject_nodes import EncodeSubjects, LoadSubjects, SaveSubjects, Subject
from subjectgen.generate.stages import STAGE_PRESETS, resolve_stages
from subjectgen.generate.to_image import at_sigma_0
from subjectgen.images import load_image
from subjectgen.load import recipes

WIDGETS = {"negative": "", "width": 0, "height": 0, "steps": 3, "guidance": 0.0, "seed": 5}
PROMPT, GROUND = "image 1 on the left", "a red ground"
OWN = "the model's own"


def image_of(picture: Image.Image) -> torch.Tensor:
    """A picture as ComfyUI's own LoadImage gives it; without its alpha."""
    return torch.from_numpy(np.array(picture.convert("RGB")).astype(np.float32) / 255)[None]


def mask_of(picture: Image.Image) -> torch.Tensor:
    """Its MASK: 1 where it is transparent."""
    if "A" not in picture.getbands():
        return torch.zeros(1, 64, 64)
    return 1 - torch.from_numpy(np.array(picture.getchannel("A")).astype(np.float32) / 255)[None]


def cut_out() -> Image.Image:
    """Colours lie under what is transparent, wholly or half."""
    image = picture("red")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, image.width // 2, image.height))
    alpha.paste(100, (0, 0, image.width, image.height // 4))
    image.putalpha(alpha)
    return image


def saved(image: torch.Tensor) -> np.ndarray:
    """What ComfyUI's own SaveImage writes: levels cut off, not rounded."""
    return np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny_pipeline().save_pretrained(folder := tmp_path_factory.mktemp("saved") / "tiny")
    return folder


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """models/ of a ComfyUI that holds the tiny pipeline; nothing is loaded or shown yet."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folders", {"diffusers": [str(tmp_path / "diffusers")]})
    add_folders()
    (tmp_path / "subjectgen").mkdir()
    (tmp_path / "subjectgen" / "tiny").symlink_to(model)
    model_management.current_loaded_models.clear()
    model_management.interrupt_current_processing(False)
    comfy.utils.shown.clear()
    return tmp_path


@pytest.fixture
def pipeline() -> ManagedPipeline:
    with torch.inference_mode():
        (opened,) = Load.execute("tiny", "none", OWN, "none").args
    opened.pipe.set_progress_bar_config(disable=True)
    return opened


def moved(network: torch.nn.Module, _) -> None:
    torch.nn.Module.to(network, "cpu")


def painted(pipeline: ManagedPipeline, *subjects: Image.Image, **given) -> torch.Tensor:
    with torch.inference_mode():
        sockets = {f"subject{k}": image_of(subject) for k, subject in enumerate(subjects)}
        (embeds,) = EncodeSubjects.execute(pipeline, sockets).args if subjects else (None,)
        own = {"prompt": PROMPT if subjects else GROUND, "subjects": embeds, **WIDGETS}
        return Sample.execute(pipeline, **own | given).args[0]


def in_python(model: Path, subjects=None, prompt: str = PROMPT, **given) -> np.ndarray:
    pipe = subjectgen.load(model)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(5), **given}
    return np.stack([np.asarray(image) for image in pipe(prompt, subjects, **options).images])


class TestEqualToPython:
    def test_one_subject(self, pipeline: ManagedPipeline, model: Path):
        red = picture("red")
        assert np.array_equal(saved(painted(pipeline, red)), in_python(model, red))

    def test_without_subjects(self, pipeline: ManagedPipeline, model: Path):
        image = painted(pipeline)
        assert image.shape == (1, 64, 64, 3) and image.dtype == torch.float32
        assert np.array_equal(saved(image), in_python(model, prompt=GROUND))

    def test_all_widgets(self, pipeline: ManagedPipeline, model: Path):
        two = [picture("red"), picture("blue")]
        given = {"width": 96, "height": 64, "steps": 2, "guidance": 3.0, "seed": 2**64 - 1, "negative": "a cat"}
        (stages,) = Stages.execute(TWO_TAUS, 0.9, 0.4).args
        expected = in_python(
            model,
            two,
            width=96,
            height=64,
            num_inference_steps=2,
            guidance_scale=3.0,
            negative_prompt="a cat",
            generator=torch.Generator().manual_seed(2**64 - 1),
            stages=[{"until": 0.9, "identity": 0}, {"until": 0.4}, {"until": 0, "semantic": 0}],
        )
        assert expected.shape == (1, 64, 96, 3)
        assert np.array_equal(saved(painted(pipeline, *two, stages=stages, **given)), expected)

    def test_several_pictures(self, pipeline: ManagedPipeline, model: Path):
        """Each is the one of its own seed, which begins anew after the last."""
        red, last = picture("red"), 2**64 - 1
        three = saved(painted(pipeline, red, seed=last, num_images=3))
        generator = [torch.Generator().manual_seed(seed) for seed in (last, 0, 1)]
        assert np.array_equal(three, in_python(model, red, num_images_per_prompt=3, generator=generator))
        alone = saved(painted(pipeline, red, seed=1))[0].astype(int)
        assert three.shape == (3, 64, 64, 3) and np.abs(three[2] - alone).max() <= 1
        _, of_three, _, of_one = pipeline.patcher.needed[-4:]  # with the encoding before each
        assert of_three > of_one

    def test_all_in_one(self, model: Path):
        red, blue = picture("red"), picture("blue")
        widgets = {"model": "tiny", "adapter": "none", "dtype": OWN, "offload": "none", "prompt": PROMPT, **WIDGETS}
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "red"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "blue"}},
            "3": {"class_type": "SubjectgenPaintAtOnce", "inputs": widgets | {"stages": "free"}},
            "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": ""}},
        }
        graph["3"]["inputs"] |= {"subjects.subject0": ["1", 0], "subjects.subject1": ["2", 0]}
        graph["3"]["inputs"] |= {"quantization": "none", "num_images": 1}
        (image,) = run(graph, {"red": image_of(red), "blue": image_of(blue)})
        assert np.array_equal(saved(image), in_python(model, [red, blue], stages="free"))

    def test_all_in_one_leaves_stages_to_the_model(self):
        widgets = {"model": "tiny", "adapter": "none", "dtype": OWN, "offload": "none", "prompt": PROMPT, **WIDGETS}
        made = PaintAtOnce.execute({"subject0": ["1", 0]}, OWN, **widgets)
        assert [node["class_type"] for node in made.expand.values()] == [
            "SubjectgenLoad", "SubjectgenEncodeSubjects", "SubjectgenSample"
        ]  # fmt: skip

    def test_all_in_one_hands_its_widgets_on(self):
        widgets = {"model": "tiny", "adapter": "none", "dtype": OWN, "offload": "none", "prompt": PROMPT, **WIDGETS}
        made = PaintAtOnce.execute({"subject0": ["1", 0]}, OWN, quantization="int8", num_images=4, **widgets)
        load, _, sample = made.expand.values()
        assert load["inputs"]["quantization"] == "int8" and sample["inputs"]["num_images"] == 4


class TestImages:
    def test_every_level_makes_the_round_trip(self):
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
        colours = Image.fromarray(np.stack([levels, levels.T, 255 - levels], axis=-1))
        image = image_from_pictures([colours, colours])
        assert image.shape == (2, 16, 16, 3)
        assert all(np.array_equal(one, np.asarray(colours)) for one in saved(image))
        assert all(np.array_equal(load_image(each), colours) for each in references(image))

    def test_sockets_and_batches_keep_their_order(self):
        a, b, c, d = (torch.full((1, 2, 3, 3), value) for value in (0.1, 0.2, 0.3, 0.4))
        given = references_from_sockets({"subject3": d, "subject0": torch.cat([a, b]), "subject2": c, "subject1": None})
        assert [float(each[0, 0, 0]) for each in given] == pytest.approx([0.1, 0.2, 0.3, 0.4])
        assert all(each.shape == (3, 2, 3) for each in given)

    def test_what_other_nodes_left_out_of_range_is_cut_off(self):
        (reference,) = references(torch.tensor([[[[-0.01, 0.5, 1.02]]]], dtype=torch.float16))
        assert reference.flatten().tolist() == [0, 0.5, 1]


class TestMemory:
    def test_opened_once(self, pipeline: ManagedPipeline, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(subjectgen, "load", None)
        assert Load.execute("tiny", "none", OWN, "none").args[0] is pipeline

    def test_opened_again_once_nobody_has_it(self, pipeline: ManagedPipeline):
        other = Load.execute("tiny", "none", "bfloat16", "none").args[0]
        assert other is not pipeline and other.pipe.transformer.dtype == torch.bfloat16
        asked = (model_places()["tiny"], None, torch.bfloat16, "none", "none")
        assert asked in managed._opened
        del other
        gc.collect()
        assert asked not in managed._opened

    def test_weights_are_ordinary_tensors(self, pipeline: ManagedPipeline):
        assert not any(weight.is_inference() for weight in pipeline.patcher.model.parameters())
        with torch.inference_mode():
            pipeline.patcher.model.to(torch.float64)
        assert not any(weight.is_inference() for weight in pipeline.patcher.model.parameters())
        assert pipeline.pipe.transformer.dtype == torch.float64
        pipeline.patcher.model.to(torch.float32)

    def test_evicted_and_back(self, pipeline: ManagedPipeline):
        first = painted(pipeline, picture("red"))
        assert model_management.current_loaded_models == [pipeline.patcher]
        assert pipeline.patcher.loaded_size() == pipeline.patcher.model_size() > 0
        model_management.unload_all_models()
        assert pipeline.patcher.loaded_size() == 0
        assert torch.equal(painted(pipeline, picture("red")), first)
        assert model_management.current_loaded_models == [pipeline.patcher]

    def test_quantised(self, pipeline: ManagedPipeline, model: Path):
        """It is moved, counted with its true size, and paints what Python paints."""
        pytest.importorskip("torchao")
        with torch.inference_mode():
            (quantised,) = Load.execute("tiny", "none", OWN, "none", "int8").args
        quantised.pipe.set_progress_bar_config(disable=True)
        image = painted(quantised, picture("red"))
        assert quantised.patcher.loaded_size() == quantised.patcher.model_size() < pipeline.patcher.model_size()
        assert not any(weight.is_inference() for weight in quantised.patcher.model.parameters())
        model_management.unload_all_models()
        for network in (quantised.pipe.mllm, quantised.pipe.transformer):  # as diffusers offloads
            network.register_forward_pre_hook(moved)
        assert torch.equal(painted(quantised, picture("red")), image)
        same = subjectgen.load(model, quantization="int8")
        same.set_progress_bar_config(disable=True)
        (expected,) = same(
            PROMPT, picture("red"), num_inference_steps=3, generator=torch.Generator().manual_seed(5)
        ).images
        assert np.array_equal(saved(image)[0], np.asarray(expected))

    def test_four_bits_are_not_moved_by_comfyui(self):
        with pytest.raises(ValueError, match=r"offload 'model' or 'group'.*'int8'"):
            Load.execute("tiny", "none", OWN, "none", "nf4")

    def test_asks_for_what_the_call_computes(self, pipeline: ManagedPipeline):
        painted(pipeline, width=96, height=96)
        estimate = pipeline.pipe.estimate(GROUND, width=96, height=96, num_inference_steps=3)
        assert pipeline.patcher.needed == [max(estimate.memory.activation_bytes.values())]

    def test_all_or_nothing(self, pipeline: ManagedPipeline):
        assert pipeline.patcher.partially_unload("cpu", 1000) == 0

    def test_novram_is_refused(self, pipeline: ManagedPipeline, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(comfy.model_patcher, "NO_VRAM", True)
        with pytest.raises(ValueError, match="--novram"):
            painted(pipeline)

    def test_offloaded_by_diffusers(self, pipeline: ManagedPipeline):
        offloaded, estimate = ManagedPipeline(pipeline.pipe, "model"), pipeline.pipe.estimate(GROUND)
        offloaded.make_room(estimate)
        assert offloaded.patcher is None and model_management.current_loaded_models == []
        assert model_management.freed[-1] == (estimate.peak_bytes, torch.device("cpu"))

    def test_offload_needs_an_accelerator(self):
        with pytest.raises(ValueError, match="offload='model'"):
            Load.execute("tiny", "none", OWN, "model")


class TestSteps:
    def test_progress_and_previews(self, pipeline: ManagedPipeline):
        image = painted(pipeline, picture("red"))
        assert [(done, steps) for done, steps, _ in comfy.utils.shown] == [(1, 3), (2, 3), (3, 3)]
        kinds, pictures, sizes = zip(*(preview for _, _, preview in comfy.utils.shown), strict=True)
        assert set(kinds) == {"JPEG"} and set(sizes) == {512}
        assert np.array_equal(pictures[-1], saved(image)[0])  # at sigma 0 nothing is left to go

    def test_no_previews_where_they_would_move_networks(self, pipeline: ManagedPipeline):
        painted(ManagedPipeline(pipeline.pipe, "model"))
        assert [preview for _, _, preview in comfy.utils.shown] == [None] * 3

    def test_preview_is_where_a_straight_path_ends(self):
        generator = torch.Generator().manual_seed(0)
        image, noise = torch.randn(2, 1, 4, 5, 6, generator=generator)
        sigmas = torch.tensor([1.0, 0.7, 0.2, 0.0])
        at = [(1 - sigma) * image + sigma * noise for sigma in sigmas]
        for step in (1, 2):
            torch.testing.assert_close(at_sigma_0(sigmas, step, at[step], at[step + 1]), image)

    def test_previews_of_large_pictures_are_small(self):
        for size in ((100, 40), (32, 32), (33, 8)):
            small = _small(torch.ones(1, 4, *size))
            assert max(small.shape[-2:]) <= PREVIEW_LATENTS and torch.all(small == 1)

    def test_interrupted_within_a_step(self, pipeline: ManagedPipeline, monkeypatch: pytest.MonkeyPatch):
        whole = painted(pipeline, picture("red"))
        comfy.utils.shown.clear()

        class Stopped(comfy.utils.ProgressBar):
            def update_absolute(self, *given):
                super().update_absolute(*given)
                model_management.interrupt_current_processing()

        monkeypatch.setattr("subjectgen.comfyui.steps.ProgressBar", Stopped)
        with pytest.raises(model_management.InterruptProcessingException):
            painted(pipeline, picture("red"))
        assert [done for done, _, _ in comfy.utils.shown] == [1]
        monkeypatch.undo()
        assert torch.equal(painted(pipeline, picture("red")), whole)

    def test_callback_gives_back_what_it_was_given(self, pipeline: ManagedPipeline):
        tensors = {"latents": torch.zeros(1, 4, 8, 8)}
        pipeline.pipe._num_timesteps = 2
        assert Steps(previews=False)(pipeline.pipe, 0, None, tensors) is tensors


class TestCutOut:
    """What of an image is the subject."""

    def test_transparency_as_of_the_file(self, pipeline: ManagedPipeline, model: Path):
        """Not a hue of what lies under it."""
        cut = cut_out()
        with torch.inference_mode():
            (subject,) = Subject.execute(image_of(cut), transparency=mask_of(cut)).args
            (embeds,) = EncodeSubjects.execute(pipeline, {"subject0": subject}).args
        image = painted(pipeline, subjects=embeds, prompt=PROMPT)
        assert np.array_equal(saved(image), in_python(model, cut))
        assert not torch.equal(image, painted(pipeline, cut))

    def test_a_file_without_alpha(self):
        """Of which LoadImage's MASK has a size of its own."""
        red = picture("red")
        (subject,) = subjects_from_image(image_of(red), transparency=mask_of(red))
        assert np.array_equal(subject.read()[0], red) and subject.mask is None

    def test_mask_and_name(self, pipeline: ManagedPipeline, model: Path):
        red, white = picture("red"), Image.new("L", picture("red").size)
        white.paste(255, (0, 0, white.width // 2, white.height))
        mask = torch.from_numpy(np.array(white) / 255)[None]
        with torch.inference_mode():
            (subject,) = Subject.execute(image_of(red), mask=mask, name=" red thing ").args
            (embeds,) = EncodeSubjects.execute(pipeline, {"subject0": subject, "subject1": image_of(red)}).args
        assert embeds.names == ("red thing", None)
        same = [subjectgen.Subject(red, name="red thing", mask=white), red]
        image = painted(pipeline, subjects=embeds, prompt="the red thing on teal")
        assert np.array_equal(saved(image), in_python(model, same, prompt="the red thing on teal"))

    def test_of_a_batch(self):
        images, masks = torch.rand(2, 4, 6, 3), torch.zeros(2, 4, 6)
        masks[0, 0], masks[1, :, 0] = 1, 1
        first, second = references_from_sockets({"subject0": subjects_from_image(images, masks)})
        assert torch.equal(first.mask, masks[0] > 0) and torch.equal(second.mask, masks[1] > 0)
        both = subjects_from_image(images, masks[0])  # as some nodes give one
        assert all(torch.equal(each.mask, masks[0] > 0) for each in both)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"mask": torch.zeros(1, 64, 64)}, "mask is 0 everywhere.*LoadImage.*unplug"),
            ({"mask": torch.ones(1, 6, 4)}, "mask: 1 of 4x6 pixels for 2 picture.* of 6x4.*Resize"),
            ({"transparency": torch.ones(3, 4, 6)}, "transparency: 3 of 6x4 pixels for 2 picture"),
            ({"name": "cup"}, "name='cup' for a batch of 2 pictures.*single"),
        ],
    )
    def test_refused(self, given: dict, words: str):
        with pytest.raises(ValueError, match=words):
            subjects_from_image(torch.rand(2, 4, 6, 3), **given)


class TestSubjects:
    def test_saved_and_loaded(self, pipeline: ManagedPipeline, models: Path):
        with torch.inference_mode():
            (embeds,) = EncodeSubjects.execute(pipeline, {"subject0": image_of(picture("red"))}).args
            file = SaveSubjects.execute(embeds, "mine/red").ui["subjects"][0]
            again = SaveSubjects.execute(embeds, "mine/red").ui["subjects"][0]
        assert [file, again] == ["mine/red_00001_.safetensors", "mine/red_00002_.safetensors"] == subject_files()
        assert (models / "subjectgen" / "subjects" / file).is_file()
        with torch.inference_mode():
            (loaded,) = LoadSubjects.execute(file).args
        assert torch.equal(painted(pipeline, subjects=loaded, prompt=PROMPT), painted(pipeline, picture("red")))

    def test_read_again_when_it_changed(self, pipeline: ManagedPipeline, models: Path):
        pipeline.pipe.encode_subjects(picture("red")).save(file := models / "subjectgen" / "subjects" / "a.safetensors")
        before = LoadSubjects.fingerprint_inputs("a.safetensors")
        assert LoadSubjects.fingerprint_inputs("a.safetensors") == before
        pipeline.pipe.encode_subjects([picture("red"), picture("blue")]).save(file)
        assert LoadSubjects.fingerprint_inputs("a.safetensors") != before

    def test_too_many(self, pipeline: ManagedPipeline):
        with pytest.raises(ValueError, match="4 references"):
            EncodeSubjects.execute(pipeline, {f"subject{k}": image_of(picture("red")) for k in range(4)})


class TestStages:
    @pytest.mark.parametrize("preset", STAGE_PRESETS)
    def test_presets(self, preset: str):
        assert Stages.execute(preset, 0.5, 0.4).args == (preset,)

    def test_two_taus_are_the_papers(self):
        assert resolve_stages(Stages.execute(TWO_TAUS, 0.95, 0.85).args[0]) == STAGE_PRESETS["paper"]

    def test_taus_in_the_wrong_order(self, pipeline: ManagedPipeline):
        with pytest.raises(ValueError, match="falling"):
            painted(pipeline, stages=Stages.execute(TWO_TAUS, 0.5, 0.6).args[0])


class TestFolders:
    def test_models(self, models: Path, model: Path):
        (models / "diffusers").mkdir()
        (models / "diffusers" / "mine").symlink_to(model)
        (models / "diffusers" / "other").mkdir()
        (models / "diffusers" / "other" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
        for name, text in (("torn", '{"_class'), ("list", "[]")):
            (models / "diffusers" / name).mkdir()
            (models / "diffusers" / name / "model_index.json").write_text(text)
        found = model_places()
        assert found.keys() == {"tiny", "mine", *recipes()} and found["mini"] == "mini"
        assert found["tiny"] == str(models / "subjectgen" / "tiny")

    def test_adapters(self, models: Path):
        (models / "subjectgen" / "shoes.safetensors").touch()
        assert adapter_places() == {"none": None, "shoes.safetensors": str(models / "subjectgen" / "shoes.safetensors")}

    def test_users_own_folder(self, models: Path, model: Path):
        folder_paths.folders.clear()
        folder_paths.folders |= {"diffusers": [], "subjectgen": [str(model.parent)]}
        add_folders()
        assert model_places()["tiny"] == str(model)  # which ComfyUI prefers to ours

    def test_an_adapter_that_is_of_no_use(self, models: Path):
        (models / "subjectgen" / "shoes.safetensors").touch()
        with pytest.raises(ValueError, match="leave it out"):
            Load.execute("tiny", "shoes.safetensors", OWN, "none")


def test_what_comfyui_asks_for():
    import asyncio

    del folder_paths.folders["subjectgen"], folder_paths.folders["subjectgen_subjects"]
    extension = asyncio.run(comfy_entrypoint())
    assert {"subjectgen", "subjectgen_subjects"} <= folder_paths.folders.keys()  # before any schema is asked for
    assert asyncio.run(extension.get_node_list()) == NODES
    schemas = [node.define_schema() for node in NODES]
    assert len({schema.node_id for schema in schemas}) == 8
    assert all(schema.category == "subjectgen" and schema.description and schema.display_name for schema in schemas)
