"""The MLLM's phases and the aligned aggregator: what is right costs nothing, and each goes on from the one before."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_subjects import cutout_folder
from tiny_training import random_aggregator, random_mllm, random_transformer, tiny_run
from torch.nn import functional as F

from subjectgen.data.batches import batch_of
from subjectgen.data.render import Renderer
from subjectgen.data.sightings import POSES_SEEN, Sighting
from subjectgen.data.subjects import load_subjects
from subjectgen.data.world import COLOURS, PATTERNS, Ground
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.train.align import AlignPhase, relative_error
from subjectgen.train.loop import Budget, Schedule, run
from subjectgen.train.mini import train
from subjectgen.train.mini_mllm import trained
from subjectgen.train.mllm import MllmPhase
from subjectgen.train.sight import SightPhase, losses_of, rightly
from subjectgen.train.subject import SubjectPhase

NEVER = {"checkpoint_minutes": 1e9, "sheet_minutes": 1e9}
NAMES = ("brick", "teapot")
SEEN = (
    Sighting(name="brick", colours=("red",), box=(0, 10, 50, 60), pose="upright", ground=Ground(colour="white")),
    Sighting(
        name="teapot", colours=("blue", "gray"), box=(20, 20, 80, 90), pose="tilted left",
        ground=Ground(colour="teal", pattern="dotted"),
    ),
) * 2  # fmt: skip


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=6, unseen=0)
    return Renderer(load_subjects(cutouts=folder).split(unseen=False))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A pipeline's folder, as far as aligning needs it."""
    folder = tiny_run(tmp_path_factory.mktemp("taught"))
    shutil.copytree(folder / "mllm" / "export" / "processor", folder / "processor")
    random_mllm().save_pretrained(folder / "mllm")
    random_aggregator().save_pretrained(folder / "aggregator")
    random_transformer().save_pretrained(folder / "transformer")
    return folder


def sure(options, values):
    """Logits that leave no doubt."""
    return 50.0 * F.one_hot(torch.tensor([options.index(value) for value in values]), len(options))


def truth():
    """What heads would say that see everything."""
    colours = list(COLOURS)
    listed = torch.tensor([[50.0 if colour in each.colours else -50.0 for colour in colours] for each in SEEN])
    return {
        "name": sure(NAMES, [each.name for each in SEEN]),
        "colours": torch.cat([sure(colours, [each.colours[0] for each in SEEN]), listed], dim=1),
        "pose": sure(POSES_SEEN, [each.pose for each in SEEN]),
        "box": torch.tensor([each.box for each in SEEN]) / 100,
        "ground": sure(colours, [each.ground.colour for each in SEEN]),
        "pattern": sure(PATTERNS, [each.ground.pattern for each in SEEN]),
        "likeness": torch.eye(2).repeat(2, 1),
    }


class TestSight:
    def test_the_truth_costs_nothing(self):
        losses = losses_of(truth(), SEEN, NAMES)
        assert losses.pop("likeness").item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)
        assert all(loss < 1e-6 for loss in losses.values())
        right = rightly(truth(), SEEN)
        assert right["main"].all() and right["posed"].all() and (right["off"] < 1e-6).all()
        assert right["known"].all()

    def test_views_taken_for_another_subject_cost_as_much_as_they_are_sure(self):
        told = truth()
        told["likeness"][:2] = told["likeness"][:2].flip(0)
        loss = losses_of(told, SEEN, NAMES)["likeness"].item()
        assert loss == pytest.approx(math.log1p(math.exp(10)), rel=1e-3)
        assert not rightly(told, SEEN)["known"].any()

    def test_a_batch_is_made_of_pairs(self, renderer, begun):
        phase = SightPhase(renderer, start=begun / "mllm" / "export", batch_size=6)
        pixels, seen = phase.batch((0, 0))
        assert [each.name for each in seen[:3]] == [each.name for each in seen[3:]]
        assert pixels.shape == (6, 3, 128, 128) and not torch.equal(pixels[:3], pixels[3:])
        with pytest.raises(ValueError, match="batch_size=7: expected an even number"):
            SightPhase(renderer, start=begun / "mllm" / "export", batch_size=7)

    @pytest.mark.parametrize("head", ["name", "colours", "pose", "box", "ground", "pattern"])
    def test_each_mistake_costs_in_its_own_loss(self, head):
        told = truth()
        told[head] = told[head].flip(0)
        costs = {name for name, loss in losses_of(told, SEEN, NAMES).items() if loss > 0.1}
        assert costs == {head} | ({"main"} if head == "colours" else set())

    def test_it_learns_and_the_mllm_goes_on_from_there(self, renderer, begun, tmp_path):
        phase = SightPhase(renderer, start=begun / "mllm" / "export", batch_size=8)
        before = phase.mllm.model.vision_tower.state_dict()["embeddings.cls_token"].clone()
        first = phase.loss(0)[0].item()
        phase.loss, loss = lambda step: loss(0), phase.loss
        run(phase, tmp_path, Budget(steps=30), Schedule(rate=5e-3, warmup=3), **NEVER)
        assert loss(0)[0].item() < first / 2
        speaking = MllmPhase(renderer, tmp_path / "sight" / "export", batch_size=2)
        tower = speaking.model.model.vision_tower
        assert not torch.equal(tower.state_dict()["embeddings.cls_token"], before)
        speaking.loss(0)[0].backward()
        assert all(weight.grad is None for weight in tower.parameters())
        assert all(weight.grad is not None for weight in speaking.model.model.multi_modal_projector.parameters())


class TestAlign:
    def test_the_teacher_itself_is_aligned(self, renderer, taught):
        phase = AlignPhase(renderer, taught, taught, batch_size=2)
        assert phase.loss(0)[0] < 1e-6

    def test_another_mllm_is_brought_nearer(self, renderer, taught, begun, tmp_path):
        """The aggregator alone learns; what is exported holds the teacher's DiT."""
        phase = self.misaligned(renderer, begun, taught)
        first = phase.loss(0)[0].item()
        phase.sheet, loss = lambda: Image.new("RGB", (8, 8)), phase.loss
        phase.loss = lambda step: loss(0)
        run(phase, tmp_path, Budget(steps=30), Schedule(rate=3e-3, warmup=5), **NEVER)
        assert loss(0)[0].item() < first / 2
        export = tmp_path / "align" / "export"
        exported = DualLayerAggregator.from_pretrained(export / "aggregator").state_dict()
        assert not all(map(torch.equal, exported.values(), random_aggregator().state_dict().values()))
        kept, given = (
            load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors") for folder in (export, taught)
        )
        assert all(torch.equal(kept[name], given[name].bfloat16()) for name in given)

    def test_other_tokens_are_refused(self, renderer, begun, taught):
        phase = AlignPhase(renderer, begun, taught, batch_size=2)
        phase.reader.processor.tokenizer.add_tokens(["<new>"])
        with pytest.raises(ValueError, match=r"tokenizer .* is not that of .*expected the same tokens"):
            phase.check()

    def test_units_of_the_error(self):
        taught = torch.randn(50, 3)
        assert relative_error(taught.mean(0).expand(50, 3), taught) == pytest.approx(1)
        assert relative_error(taught, taught) == 0

    def misaligned(self, renderer, begun, taught):
        """The student reads with other weights."""
        phase = AlignPhase(renderer, begun, taught, batch_size=2)
        torch.manual_seed(5)
        for weight in phase.mllm.parameters():
            weight.data += 0.3 * weight.data.std().nan_to_num() * torch.randn_like(weight)
        return phase


class TestOrder:
    def test_words_come_after_sight(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train --phase sight .*first"):
            train("mllm", tmp_path, steps=1)

    def test_stage_2_goes_on_from_stage_1_or_an_aligned_aggregator(self, begun, tmp_path):
        (tmp_path / "mllm" / "export").mkdir(parents=True)
        (tmp_path / "vae" / "export").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=r"train --phase stage1 .*first"):
            train("stage2", tmp_path, steps=1)

    def test_align_needs_a_pipeline_and_stage_2_takes_none(self, begun):
        with pytest.raises(ValueError, match=r"align without --init-from: expected the pipeline"):
            train("align", begun, steps=1)
        with pytest.raises(
            ValueError, match=r"--init-from 'x' with --phase stage2: expected --phase sight, mllm, align"
        ):
            train("stage2", begun, steps=1, start=Path("x"))

    @pytest.mark.parametrize("phase", ["sight", "mllm", "align"])
    def test_a_folder_that_is_no_pipeline_is_refused_before_the_hub_is_asked(self, begun, phase, monkeypatch):
        """`nope/mllm` would be somebody's repository."""
        monkeypatch.setattr("huggingface_hub.file_download.http_get", pytest.fail)
        with pytest.raises(
            FileNotFoundError, match=r"--init-from 'nope' has no folder mllm, processor.*Check the path"
        ):
            train(phase, begun, steps=1, start=Path("nope"))
        with pytest.raises(OSError):
            trained(Path("nope"))

    def test_align_needs_what_paints_too(self, begun, tmp_path):
        shutil.copytree(begun / "mllm" / "export", tmp_path / "reader")
        with pytest.raises(FileNotFoundError, match=r"has no folder aggregator, transformer: expected a pipeline's"):
            train("align", begun, steps=1, start=tmp_path / "reader")


def test_what_a_mask_leaves_out_is_neither_seen_nor_read(renderer, begun):
    phase = SubjectPhase(renderer, begun, "stage2", batch_size=2)
    batch = batch_of(renderer, 0, 0, 2, count=1)
    batch.masks.fill_(False)[..., :64, :64] = True
    every = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        _, seen, _ = phase.conditions(batch, every, every)
    assert seen[:, -64:].view(2, 8, 8)[:, :4, :4].all() and seen[:, -64:].sum() == 2 * 16
    inside = seen[:, -64:]
    tokens = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    others = torch.where(inside[:, None, :, None], tokens, -tokens)

    def keys(tokens):
        with torch.no_grad():
            null = phase.aggregator.null_pooled
            return phase.denoiser.identity_kv(tokens, (8, 8), (8, 8), null, inside[:, None]).keys

    for one, two in zip(keys(tokens), keys(others), strict=True):
        torch.testing.assert_close(one[inside], two[inside], atol=1e-5, rtol=0)
        assert not torch.allclose(one, two, atol=1e-3)
