"""Metrics on closed cases, and against what tiny networks of their classes say when they are called by hand."""

import hashlib
import math
import shlex
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from mock_hub import running
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_metrics import save_clip, save_orientation, tiny_clip, tiny_dino, tiny_dinov2, tiny_head
from tiny_pipeline import picture
from transformers import CLIPModel, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen.checkpoints import Checkpoint, folder_of, network_of, version_of
from subjectgen.cli.metrics import JudgeOptions, open_metrics
from subjectgen.evaluate.metrics.metric import BATCH
from subjectgen.evaluate.metrics.patches import (
    Patches,
    PatchRecall,
    attended,
    most_in_place,
    mutual_nearest,
    recall,
)
from subjectgen.evaluate.metrics.pose import (
    COMMIT,
    DINOV2_LARGE,
    PICKLE,
    Pose,
    PoseDifference,
    mean_differences,
    pose_of,
    turn,
)
from subjectgen.evaluate.metrics.similarity import DINO, ClipSimilarity, DinoSimilarity, mean_cosine
from subjectgen.likeness import CLIP, DINOV2, PICKSCORE, PICKSCORE_PROCESSOR, Clip, Dino
from subjectgen.reasoning.clip_dino import ClipDinoJudge
from subjectgen.weights import WeightsError

RED, TALL, WIDE = picture("red"), picture("blue", (30, 50)), picture("green", (70, 40))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))
NO_JUDGE = JudgeOptions()
NUM_LOGITS = 360 + 180 + 360 + 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("dino", "clip", "orientation")}
    tiny_dino().save_pretrained(folders["dino"])
    save_clip(folders["clip"])
    save_orientation(folders["orientation"], NUM_LOGITS)
    return folders


@pytest.fixture(scope="module")
def dino(folders):
    return DinoSimilarity.from_pretrained(checkpoint=Checkpoint(repo=str(folders["dino"])))


@pytest.fixture(scope="module")
def clip(folders):
    return ClipSimilarity.from_pretrained(checkpoint=Checkpoint(repo=str(folders["clip"])))


@pytest.fixture(scope="module")
def patches(folders):
    return PatchRecall.from_pretrained(checkpoint=Checkpoint(repo=str(folders["dino"])))


@pytest.fixture(scope="module")
def pose(folders):
    folder = folders["orientation"]
    return PoseDifference.from_pretrained(folder, backbone=Checkpoint(repo=str(folder / "dinov2")))


def middle(image, large, side):
    """The protocol by Pillow: the shorter side `large`, the middle `side` x `side`, ImageNet's normalisation."""
    scale = large / min(image.size)
    resized = image.resize([int(edge * scale) for edge in image.size], Image.Resampling.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    pixels = torch.from_numpy(np.array(resized.crop((left, top, left + side, top + side)))).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


def test_they_are_opened_by_name(folders, dino, clip, patches):
    """From folders, as the command line gives them: each says what it says when it is opened by its class."""
    found = open_metrics([f"dino={folders['dino']}", f"clip={folders['clip']}", f"patches={folders['dino']}"], NO_JUDGE)
    asked = ([RED, TALL], [[WIDE], [RED, WIDE]], ["a cat", "a dog"])
    assert [each(*asked) for each in found] == [each(*asked) for each in (dino, clip, patches)]
    assert [each.checkpoints for each in found] == [each.checkpoints for each in (dino, clip, patches)]


class TestDino:
    def test_identical_is_one(self, dino):
        assert dino([RED, TALL], [[RED], [TALL, TALL]], ["", ""]) == [{"dino_i": pytest.approx(1, abs=1e-5)}] * 2

    @torch.no_grad()
    def test_cosine_of_class_tokens(self, dino):
        """Of 64 pixels the larger square has 73."""
        token, other, third = (tiny_dino()(middle(each, 73, 64)).last_hidden_state[0, 0] for each in (RED, TALL, WIDE))
        near, far = F.cosine_similarity(token, other, 0), F.cosine_similarity(token, third, 0)
        assert abs(float(near - far)) > 1e-3
        scores = dino([RED, RED, RED], [[TALL], [WIDE], [TALL, WIDE]], ["", "", ""])
        expected = [float(near), float(far), float(near + far) / 2]
        assert [each["dino_i"] for each in scores] == pytest.approx(expected, abs=1e-4)

    def test_orthogonal_is_zero(self):
        rows = torch.eye(3)
        assert mean_cosine(rows[0], [rows[1]]) == 0
        assert mean_cosine(rows[0], [rows[0], rows[1], -rows[0], rows[2]]) == 0
        assert mean_cosine(rows[0], [torch.tensor([0.6, 0.8, 0]), rows[0]]) == pytest.approx(0.8)

    def test_more_than_a_batch(self, dino):
        scores = dino([RED, TALL] * BATCH, [[WIDE]] * 2 * BATCH, [""] * 2 * BATCH)
        alone = [dino([each], [[WIDE]], [""])[0]["dino_i"] for each in (RED, TALL)]
        assert [each["dino_i"] for each in scores] == pytest.approx(alone * BATCH, abs=1e-5)

    def test_nothing_to_score(self, dino):
        assert dino([], [], []) == []

    def test_without_reference(self, dino):
        with pytest.raises(ValueError, match=r"picture 1 \('a cat'\) has no reference"):
            dino([RED, RED], [[RED], []], ["a dog", "a cat"])

    def test_lengths_differ(self, dino):
        with pytest.raises(ValueError, match="2 pictures, 1 lists of references and 2 prompts"):
            dino([RED, RED], [[RED]], ["", ""])


class TestClip:
    def test_identical_is_one(self, clip):
        assert clip([RED], [[RED]], ["a cat"])[0]["clip_i"] == pytest.approx(1, abs=1e-5)

    @torch.no_grad()
    def test_what_clip_itself_says(self, clip):
        """Its logits are scaled cosines; prompts of different lengths are padded together."""
        model, prompts = tiny_clip(), ["a red cat", "a red cat on the blue ground"]
        images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
        pixels = images([RED, TALL, WIDE], return_tensors="pt")["pixel_values"]
        said = [model(pixel_values=pixels, **tiny_tokenizer()([each], return_tensors="pt")) for each in prompts]
        obeyed = [float(out.logits_per_image[k, 0] / model.logit_scale.exp()) for k, out in enumerate(said)]
        seen = said[0].image_embeds
        kept = [float(seen[0] @ seen[2]), float(seen[1] @ seen[2] + seen[1] @ seen[0]) / 2]
        scores = clip([RED, TALL], [[WIDE], [WIDE, RED]], prompts)
        assert [each["clip_t"] for each in scores] == pytest.approx(obeyed, abs=1e-5)
        assert [each["clip_i"] for each in scores] == pytest.approx(kept, abs=1e-5)
        assert abs(obeyed[0] - obeyed[1]) > 1e-3

    @torch.no_grad()
    def test_processor_of_another(self, tmp_path):
        """The network in one folder, its tokenizer and image processor in another, which has no network."""
        images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
        tiny_clip().save_pretrained(tmp_path / "network")
        for part in (tiny_tokenizer(), images):
            part.save_pretrained(tmp_path / "processor")
        network, processor = (Checkpoint(repo=str(tmp_path / name)) for name in ("network", "processor"))
        ids, model = tiny_tokenizer()(["a red cat"], return_tensors="pt"), tiny_clip()
        logits = model(**images([RED, TALL], return_tensors="pt"), **ids).logits_per_image[:, 0]
        cosines = Clip.from_pretrained("cpu", network, processor)([RED, TALL], "a red cat")
        assert torch.allclose(cosines, logits / model.logit_scale.exp(), atol=1e-5)
        with pytest.raises(WeightsError, match=r"network' has no preprocessor_config.json, tokenizer\*.json"):
            Clip.from_pretrained("cpu", network)

    def test_a_long_prompt_is_cut(self, clip):
        assert clip([RED], [[RED]], ["red " * 99]) == clip([RED], [[RED]], ["red " * 200])


def in_grid(rows, columns, side=14):
    """A row of the identity for each of some places of a grid of patches, in their order."""
    return torch.eye(side * side).reshape(side, side, -1)[rows][:, columns].reshape(len(rows) * len(columns), -1)


def square(features, attention=None):
    return Patches(features=features, attention=torch.ones(len(features)) if attention is None else attention)


ALL = list(range(14))
PASTE = in_grid(ALL, ALL)


class TestPatchRecall:
    def test_identical_is_one(self, patches):
        assert patches([NOISE], [[NOISE, NOISE]], [""]) == [{"patch_recall": 1}]

    @torch.no_grad()
    def test_what_is_seen(self, patches):
        """Patches without the class token, and what it attends to in the last layer."""
        (seen,) = patches._patches([WIDE])
        out = tiny_dino()(middle(WIDE, 73, 64))
        assert torch.allclose(seen.features, F.normalize(out.last_hidden_state[0, 1:], dim=-1), atol=1e-4)
        assert seen.features.shape == (16, 16) and seen.attention.shape == (16,)
        eager = ViTModel(tiny_dino().config, add_pooling_layer=False)
        eager.load_state_dict(tiny_dino().state_dict())
        eager.set_attn_implementation("eager")
        paid = eager.eval()(middle(WIDE, 73, 64), output_attentions=True).attentions[1][0, :, 0, 1:].mean(0)
        assert torch.allclose(seen.attention, paid, atol=1e-5)

    def test_orthogonal_is_zero(self):
        """No patch is nearer than another; of equals the first are taken, which are not the subject's."""
        attention = torch.zeros(196)
        attention[98:] = 1
        here, there = torch.eye(392)[:196], torch.eye(392)[196:]
        assert recall(square(here, attention), square(there)) == 0

    def test_pasted_elsewhere(self):
        """Three columns to the right, over an unknown ground: 11 of 14 columns are left, all in one arrangement."""
        width = 196 + 14 * 3
        moved = torch.zeros(14, 14, width)
        moved[:, 3:, :196] = PASTE.reshape(14, 14, -1)[:, :11]
        moved[:, :3, 196:] = torch.eye(42).reshape(14, 3, 42)
        here = torch.cat([PASTE, torch.zeros(196, 42)], dim=1)
        everything = Patches(features=here, attention=torch.ones(196))
        found, where = mutual_nearest(everything.features, moved.reshape(196, -1))
        pairs = {
            (int(f), int(w))
            for f, w in zip(found, where, strict=True)
            if float(here[f] @ moved.reshape(196, -1)[w]) > 0
        }
        assert pairs == {(r * 14 + c, r * 14 + c + 3) for r in range(14) for c in range(11)}
        places = everything.places
        assert most_in_place(places[[f for f, _ in pairs]], places[[w for _, w in pairs]]) == 14 * 11

    def test_half_the_size(self):
        """Every second patch of a reference in a quarter of the picture."""
        here = torch.cartesian_prod(torch.arange(0, 14, 2), torch.arange(0, 14, 2)).float()
        assert most_in_place(here, here / 2 + 5) == 49

    def test_mirrored(self):
        """A mirrored grid keeps no arrangement but that of a column, and of those beside it within a patch at half."""
        here = square(PASTE).places
        there = torch.stack([here[:, 0], 13 - here[:, 1]], dim=1)
        assert most_in_place(here, there) == 14

    def test_scattered(self):
        here = square(PASTE).places
        there = here[torch.randperm(196, generator=torch.Generator().manual_seed(0))]
        assert most_in_place(here, there) < 20

    def test_none(self):
        assert most_in_place(torch.zeros(0, 2), torch.zeros(0, 2)) == 0

    def test_subject_by_attention(self):
        """.4 and .2 hold .6, what comes after is not needed."""
        attention = torch.tensor([0.1, 0.8, 0.2, 0.4, 0.5])  # of 2
        assert attended(attention).tolist() == [False, True, False, False, True]
        assert attended(torch.tensor([1.0, 1, 1, 1, 1])).sum() == 3

    def test_only_the_subject_counts(self):
        """The ground is copied, the subject, one row, is not."""
        attention = torch.zeros(196)
        attention[:14] = 1
        features = PASTE.clone()
        features[:14] = PASTE[:14].flip(0)  # the row is mirrored
        score = recall(square(PASTE, attention), square(features))
        assert score == pytest.approx(1 / 9)  # 60 % of 14 are 9 patches


class TestPose:
    def test_identical_is_zero(self, pose):
        (scores,) = pose([RED], [[RED]], [""])
        assert scores["azimuth_difference"] == scores["polar_difference"] == 0

    @torch.no_grad()
    def test_the_published_network(self, pose):
        """Backbone, head and angles by hand; weights as published: names of transformers 4, one file."""
        backbone, head = tiny_dinov2(), tiny_head(NUM_LOGITS).eval()

        def angles(image):
            logits = head(backbone(middle(image, 256, 224)).last_hidden_state[:, 0])[0]
            return int(logits[:360].argmax()), int(logits[360:540].argmax()) - 90, float(logits[-2:].softmax(0)[0])

        (scores,) = pose([RED], [[NOISE]], [""])
        (azimuth, polar, sure), (other, other_polar, other_sure) = angles(RED), angles(NOISE)
        assert scores["azimuth_difference"] == min((azimuth - other) % 360, (other - azimuth) % 360)
        assert scores["polar_difference"] == abs(polar - other_polar)
        assert scores["pose_confidence"] == pytest.approx(min(sure, other_sure), abs=1e-5)
        assert (azimuth, polar) != (other, other_polar)

    def test_converted_as_the_error_says(self, folders, pose, tmp_path):
        """A pickle is not read; after the second of the two commands its safetensors are."""
        (tmp_path / PICKLE).parent.mkdir()
        torch.save(load_file(folders["orientation"] / "model.safetensors"), tmp_path / PICKLE)
        backbone = Checkpoint(repo=str(folders["orientation"] / "dinov2"))
        with pytest.raises(WeightsError, match=r"has no model.safetensors: .*never reads") as error:
            PoseDifference.from_pretrained(tmp_path, backbone=backbone)
        download, convert = (shlex.split(line) for line in str(error.value).splitlines()[-2:])
        assert download[:4] == ["hf", "download", "Viglong/Orient-Anything", PICKLE] and COMMIT in download
        assert convert[:2] == ["python", "-c"]
        exec(convert[2])
        read = PoseDifference.from_pretrained(tmp_path, backbone=backbone)
        assert read([RED], [[TALL]], [""]) == pose([RED], [[TALL]], [""])

    def test_angles(self):
        logits = torch.zeros(NUM_LOGITS)
        logits[350] = logits[360 + 75] = 1
        logits[-2:] = torch.tensor([math.log(3), 0])
        pose = pose_of(logits)
        assert (pose.azimuth, pose.polar, pose.confidence) == (350, -15, pytest.approx(0.75))

    @pytest.mark.parametrize("angles", [(350.0, 20.0, 30), (0.0, 180.0, 180), (90.0, 90.0, 0), (10.0, 200.0, 170)])
    def test_the_short_way_round(self, angles):
        first, second, degrees = angles
        assert turn(first, second) == turn(second, first) == degrees

    def test_mean_over_references(self):
        here = Pose(azimuth=10.0, polar=0.0, confidence=0.9)
        others = [Pose(azimuth=350.0, polar=5.0, confidence=0.5), Pose(azimuth=50.0, polar=-25.0, confidence=1.0)]
        expected = {"azimuth_difference": 30, "polar_difference": 15, "pose_confidence": pytest.approx(0.7)}
        assert mean_differences(here, others) == expected

    def test_another_head(self, folders, tmp_path):
        weights = {"dinov2.x": torch.zeros(1), "down_sampler.net1.0.bias": torch.zeros(3)}
        save_file(weights, tmp_path / "model.safetensors")
        backbone = Checkpoint(repo=str(folders["orientation"] / "dinov2"))
        with pytest.raises(WeightsError, match=rf"'{tmp_path}' lacks embeddings.cls_token.*of the Dinov2Model"):
            PoseDifference.from_pretrained(tmp_path, backbone=backbone)


class TestCheckpoints:
    @pytest.mark.parametrize("checkpoint", [DINO, DINOV2, DINOV2_LARGE, CLIP, PICKSCORE, PICKSCORE_PROCESSOR])
    def test_pinned(self, checkpoint):
        assert len(checkpoint.revision) == 40 and str(checkpoint) == f"{checkpoint.repo}@{checkpoint.revision}"

    def test_a_folder_of_other_weights_is_another(self, tmp_path):
        """Scores by them are not taken for scores by those that were there before."""
        names = []
        for size in (1, 2):
            save_file({"x": torch.zeros(size)}, tmp_path / "model.safetensors")
            names.append(version_of(Checkpoint(repo=str(tmp_path))))
        assert names[0] != names[1] and version_of(DINO) == str(DINO)

    def test_metrics_name_them(self, folders, dino, clip, patches, pose):
        names = [metric.checkpoints for metric in (dino, clip, patches, pose)]
        given = [folders[name] for name in ("dino", "clip", "dino", "orientation")]
        hashes = [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16] for folder in given]
        assert names == [(f"{folder}@sha256:{each}",) for folder, each in zip(given, hashes, strict=True)]
        keys = [metric([RED], [[RED]], ["a cat"])[0].keys() for metric in (dino, clip, patches, pose)]
        assert [tuple(each) for each in keys] == [metric.names for metric in (dino, clip, patches, pose)]

    @pytest.mark.parametrize("kind", [DinoSimilarity, ClipSimilarity, PatchRecall, Dino, Clip, ClipDinoJudge])
    def test_offline(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(WeightsError, match=r"not on this machine.*hf download \S+ --revision [0-9a-f]{40} --incl"):
            kind.from_pretrained()

    def test_downloaded(self, folders, tmp_path, monkeypatch):
        with running() as hub:
            names = ("config.json", "model.safetensors")
            hub.repos["them/eyes"] = {name: (folders["dino"] / name).read_bytes() for name in names}
            get = partial(snapshot_download, endpoint=hub.url, cache_dir=tmp_path)
            monkeypatch.setattr("subjectgen.checkpoints.snapshot_download", get)
            there = Checkpoint(repo="them/eyes", revision=hub.sha("them/eyes"))
            fetched = network_of(ViTModel, there, add_pooling_layer=False)
            assert folder_of(there, names).name == there.revision
        assert all(torch.equal(*pair) for pair in zip(fetched.parameters(), tiny_dino().parameters(), strict=True))

    def test_a_weight_is_missing(self, folders, tmp_path):
        weights = load_file(folders["dino"] / "model.safetensors")
        del weights["layernorm.bias"]
        save_file(weights, tmp_path / "model.safetensors")
        tiny_dino().config.save_pretrained(tmp_path)
        with pytest.raises(WeightsError, match=r"lacks layernorm.bias: expected all weights of the ViTModel"):
            DinoSimilarity.from_pretrained(checkpoint=Checkpoint(repo=str(tmp_path)))

    def test_no_such_file(self, tmp_path):
        with pytest.raises(WeightsError, match=r"has no config.json, model.safetensors in .*Give the folder"):
            network_of(CLIPModel, Checkpoint(repo=str(tmp_path)))

    def test_pickles_are_refused(self, tmp_path):
        tiny_dino().config.save_pretrained(tmp_path)
        torch.save(tiny_dino().state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(WeightsError, match=r"has no model.safetensors in"):
            DinoSimilarity.from_pretrained(checkpoint=Checkpoint(repo=str(tmp_path)))
