"""What the MLLM sees in painted pictures, against transformers on the whole sequence; tiny random CLIP and DINO."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import seeded, tiny_processor, tiny_tokenizer
from tiny_pipeline import picture, reasoning_pipeline, shorten_plans
from tiny_plans import RED, TALL, a_plan
from tiny_qwen import SYSTEM_AND_USER, reasoning_qwen_pipeline
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen import ClipDinoJudge, MllmJudge, Score, Subject, TowerJudge
from subjectgen.checkpoints import Checkpoint
from subjectgen.masks import read_mask
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.reasoning.decoding import GrammarPicker
from subjectgen.reasoning.questions import departures_answer
from subjectgen.reasoning.view import departures_grammar, views
from subjectgen.weights import WeightsError

PAINTED = picture("blue", size=(64, 64))
QUESTION = "Is this the scene of image 3: red plain? Answer yes or no."


@pytest.fixture(scope="module", params=[reasoning_pipeline, reasoning_qwen_pipeline], ids=["internvl", "qwen3_vl"])
def pipe(request):
    return request.param()


def whole_internvl(pipe, images, question):
    """Logits after the whole conversation in one forward."""
    square = [on_square(image) for image in images]
    text = "<|im_start|>user\n" + "<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n" * len(images)
    text += f"{question}<|im_end|>\n<|im_start|>assistant\n"
    processor = tiny_processor()
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    pixels = processor.image_processor(square, crop_to_patches=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return pipe.mllm(input_ids=ids, pixel_values=pixels).logits[0, -1]


def on_square(image, side=32):
    scale = side / max(image.size)
    scaled = image.resize([round(edge * scale) for edge in image.size], Image.Resampling.LANCZOS)
    paper = Image.new("RGB", (side, side), "white")
    paper.paste(scaled, ((side - scaled.width) // 2, (side - scaled.height) // 2))
    return paper


def whole_qwen(pipe, images, question):
    """So too; the tiny pipeline reads references of 64 x 64 pixels about, both sides multiples of 32."""
    sizes = {RED.size: (64, 64), TALL.size: (32, 96), PAINTED.size: (64, 64)}
    resized = [image.resize(sizes[image.size], Image.Resampling.LANCZOS) for image in images]
    slots = [image.width * image.height // 32**2 for image in resized]
    seen = " ".join(
        f"<image{k}><|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for k, count in enumerate(slots, 1)
    )
    processor = pipe.processor
    text = f"{SYSTEM_AND_USER}{seen}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    inputs = dict(processor.image_processor(resized, return_tensors="pt"))
    with torch.no_grad():
        out = pipe.mllm(input_ids=ids, mm_token_type_ids=(ids == processor.image_token_id).int(), **inputs)
    return out.logits[0, -1]


def whole(pipe, images, question):
    return (whole_qwen if hasattr(pipe.processor, "vision_start_token") else whole_internvl)(pipe, images, question)


def yes_of(pipe, logits):
    """softmax over the first tokens of yes, Yes, no, No."""
    first = [pipe.processor.tokenizer(word)["input_ids"][0] for word in ("yes", "Yes", "no", "No")]
    yes, capital_yes, no, capital_no = logits.float()[first].exp().tolist()
    return (yes + capital_yes) / (yes + capital_yes + no + capital_no)


def view_of(pipe, plan, painted=PAINTED):
    (view,) = views(pipe, plan, [painted])
    return view


class TestView:
    """The picture behind the kept references is what one forward of everything sees."""

    @pytest.mark.parametrize("references", [[], [RED], [RED, TALL]], ids=len)
    def test_the_logits_of_the_whole_sequence(self, pipe, references):
        plan = a_plan(count=len(references), prompt="red", subject_images=references)
        view = view_of(pipe, plan)
        expected = whole(pipe, [*references, PAINTED], QUESTION)
        assert view.number == len(references) + 1
        logits = view.reader.first_logits(["Is it?", QUESTION], view.prefix)  # a shorter one beside it
        assert torch.allclose(logits[1], expected, atol=1e-4) and not torch.allclose(logits[0], expected, atol=1e-2)
        assert view.yes(["Is it?", QUESTION])[1] == pytest.approx(yes_of(pipe, expected), abs=1e-5)
        assert not torch.allclose(whole(pipe, [*references, picture("white", (64, 64))], QUESTION), expected, atol=1e-2)

    def test_references_are_those_that_were_read_while_reasoning(self, pipe, monkeypatch):
        plan = a_plan(subject_images=[RED, TALL])
        fresh = view_of(pipe, plan)
        kept = a_plan(subject_images=[RED, TALL], embeds=pipe.encode_subjects([RED, TALL]))
        keys = kept.embeds.prefix.keys.clone()
        images, read = [], type(fresh.reader).read_references
        monkeypatch.setattr(
            type(fresh.reader),
            "read_references",
            lambda self, new, *a, **o: images.append(len(new)) or read(self, new, *a, **o),
        )
        again = [each.yes([QUESTION]) for each in views(pipe, kept, [PAINTED, PAINTED])]
        assert images == [1, 1] and again == [fresh.yes([QUESTION])] * 2
        assert torch.equal(kept.embeds.prefix.keys, keys)

    def test_all_that_is_kept_of_the_whole(self, pipe):
        """Hidden states too: what was read in two parts is what is read at once."""
        plan = a_plan(subject_images=[RED, TALL])
        further = view_of(pipe, plan).prefix
        once = pipe.encode_subjects([RED, TALL, PAINTED]).prefix
        for name in ("states", "keys", "values"):
            assert torch.allclose(getattr(further, name), getattr(once, name), atol=1e-4), name
        assert torch.equal(further.is_image, once.is_image)
        assert (further.position, further.num_references) == (once.position, 3)

    def test_a_mask_stays_where_it_is(self):
        """Of an InternVL, tokens outside a mask are dropped; those of a further image are not."""
        reader, _ = (pipe := reasoning_pipeline()).adapters()
        half = torch.zeros(32, 32, dtype=torch.bool)
        half[:, :16] = True
        masked = reader.read_references([on_square(RED)], [read_mask(half, (32, 32))])
        further = reader.read_references([on_square(TALL)], behind=masked)
        assert (masked.num_dropped, further.num_dropped, further.states.shape[1]) == (2, 2, 6)
        assert pipe.mllm is reader.mllm

    def test_a_template_that_counts_images(self, processor, mllm):
        """Another text before the first image: what was kept of it would be wrong."""
        template = processor.chat_template.replace(
            "{%- for message in messages -%}",
            "{%- for message in messages -%}{{ message['content'] | length }} parts<|im_end|>",
            1,
        )
        counting = tiny_processor()
        counting.chat_template = template
        reader = InternVLReader(mllm, counting)
        with pytest.raises(ValueError, match="further image behind the others"):
            reader.read_references([RED], behind=reader.read_references([RED]))


class TestDepartures:
    ANSWERS = (
        "nothing", "subject", "scene", "view", "pose", "subject, scene", "subject, view", "subject, pose",
        "scene, view", "scene, pose", "view, pose", "subject, scene, view", "subject, scene, pose",
        "subject, view, pose", "scene, view, pose", "subject, scene, view, pose",
    )  # fmt: skip

    def test_every_answer_in_order(self):
        grammar = departures_grammar(("subject", "scene", "view", "pose"))
        (wrong,) = re.findall("^wrong: (.+)$", grammar, flags=re.MULTILINE)
        assert set(re.findall('"([^"]+)"', wrong)) == set(self.ANSWERS)

    @pytest.mark.parametrize("departs", [(), ("scene",), ("subject", "pose")])
    def test_what_is_trained_on_is_an_answer(self, departs):
        """Token by token, as it is written."""
        tokenizer = tiny_tokenizer()
        picker = GrammarPicker(tokenizer, departures_grammar(("subject", "scene", "view", "pose")))
        answer = departures_answer("red plain", "2 of image 1 top left small", departs)
        wanted, said = tokenizer(answer, add_special_tokens=False)["input_ids"], []
        while len(said) < len(wanted):
            logits = torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(wanted[len(said)]), 1.0)
            said += picker(logits, at_most=1)
        assert said == wanted

    def test_the_likeliest_of_the_first_tokens(self, pipe, monkeypatch):
        """Asked in the words of training, behind all references; here without what is seen, which is long."""
        asked = (
            "What are scene and view of image 3, and what departs from this plan? scene: red plain; "
            "view: 1 of image 1 top; pose: image 1 upright; changes: ground; keeps: shape"
        )
        answers = " | ".join(f'"{answer}"' for answer in self.ANSWERS)
        monkeypatch.setattr("subjectgen.reasoning.view.departures_grammar", lambda _: f"start: {answers}")
        plan = a_plan(subject_images=[RED, TALL])
        logits, tokenizer = whole(pipe, [RED, TALL, PAINTED], asked), pipe.processor.tokenizer
        texts = {token: text for token in range(len(tokenizer)) if (text := tokenizer.decode([token]))}
        allowed = [k for k, text in texts.items() if any(answer.startswith(text) for answer in self.ANSWERS)]
        said = ", ".join(instructed(pipe, plan).departures(plan)) or "nothing"
        assert said in self.ANSWERS and said.startswith(texts[max(allowed, key=lambda token: float(logits[token]))])

    def test_without_references_no_subject_departs(self, pipe, monkeypatch):
        grammars = []
        monkeypatch.setattr(
            "subjectgen.reasoning.view.departures_grammar",
            lambda respects: grammars.append(respects) or 'start: "nothing"',
        )
        assert instructed(pipe, a_plan(count=0, prompt="red")).departures(a_plan(count=0, prompt="red")) == ()
        assert grammars == [("scene", "view", "pose")]

    def test_an_answer_of_several(self, pipe, monkeypatch):
        monkeypatch.setattr("subjectgen.reasoning.view.departures_grammar", lambda _: 'start: "scene, pose"')
        plan = a_plan(subject_images=[RED, TALL])
        assert instructed(pipe, plan).departures(plan) == ("scene", "pose")

    @pytest.mark.parametrize(
        ("scene", "view", "departs"),
        [
            ("red plain", "1 of image 1 top", ()),
            ("red", "1 of image 1 top", ("scene",)),
            ("red plain", "1 of image 1 top left", ("view",)),
            ("blue plain", "2 of image 1 top", ("scene", "view")),
        ],
    )
    def test_who_speaks_in_plans_is_taken_by_its_words(self, pipe, monkeypatch, scene, view, departs):
        """Whatever it says departs."""
        said = f"scene: {scene}; view: {view}; departs: pose"
        monkeypatch.setattr("subjectgen.reasoning.view.departures_grammar", lambda _: f'start: "{said}"')
        plan = a_plan(subject_images=[RED, TALL])
        assert view_of(pipe, plan).departures(plan) == departs and instructed(pipe, plan).departures(plan) == ("pose",)

    def test_an_instructed_mllm_does_not_speak_in_plans(self):
        plan = a_plan(subject_images=[RED, TALL])
        assert not view_of(reasoning_pipeline(plan_instruction="Plan it."), plan).speaks_in_plans


def instructed(pipe, plan):
    """The same eye, of an MLLM that was told how to plan and never taught."""
    return replace(view_of(pipe, plan), speaks_in_plans=False)


class TestMllmJudge:
    def test_the_product_of_its_answers(self, pipe):
        """Asked in the words of training: of each subject that the prompt speaks of, and of the plan's decisions."""
        plan = a_plan(count=3, prompt="image 3 beside image 1", subject_images=[RED, TALL, RED])
        (score,) = MllmJudge(pipe)([PAINTED], plan, None)

        def yes(question):
            return yes_of(pipe, whole(pipe, [RED, TALL, RED, PAINTED], f"{question} Answer yes or no."))

        subjects = [yes("Does image 4 show the cat of image 1?"), yes("Does image 4 show the mug of image 3?")]
        decisions = [
            yes("Is this the scene of image 4: red plain?"),
            yes("Is this the view of image 4: 1 of image 1 top?"),
            yes("Is this the pose in image 4: image 1 upright?"),
        ]
        assert score.subject == pytest.approx(math.prod(subjects), rel=1e-3)
        assert score.prompt == pytest.approx(math.prod(decisions), rel=1e-3)
        assert score.total == pytest.approx(math.prod(subjects + decisions), rel=1e-3)

    def test_without_references_there_is_no_subject(self, pipe):
        (score,) = MllmJudge(pipe)([PAINTED], a_plan(count=0, prompt="red"), [])
        assert score.subject is None and score.total == score.prompt

    def test_subjects_that_were_encoded_before(self, pipe):
        encoded = a_plan(subject_images=[pipe.encode_subjects([Subject(RED, name="fox"), TALL])], prompt="the fox")
        (score,) = MllmJudge(pipe)([PAINTED], encoded, None)
        (expected,) = MllmJudge(pipe)([PAINTED], a_plan(subject_images=[RED, TALL], prompt="image 1"), None)
        assert score == expected

    def test_a_prompt_is_no_plan(self, pipe):
        with pytest.raises(ValueError, match=r"'a red cat' is a prompt: expected a Plan of pipe.reason"):
            MllmJudge(pipe)([PAINTED], "a red cat", [RED])


class TestScore:
    def test_total(self):
        assert Score(subject=0.5, prompt=0.25).total == 0.125
        assert Score(prompt=0.25).total == 0.25 and Score(subject=3).total == 3
        assert str(Score(subject=0.5, prompt=0.25)) == "0.125 (subject 0.5, prompt 0.25)"

    @pytest.mark.parametrize(
        ("parts", "words"),
        [({}, "neither"), ({"prompt": -1}, "prompt=-1"), ({"subject": math.nan}, "nan"), ({"prompt": "high"}, "high")],
    )
    def test_refused(self, parts, words):
        with pytest.raises(ValueError, match=words):
            Score(**parts)


@seeded
def tiny_clip():
    text = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 20, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
        model.text_projection.weight.neg_()  # so that these pictures and words have something in common
    return model


@seeded
def tiny_dino():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    return Dinov2Model(Dinov2Config(**sizes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    clip, dino = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("dino")
    tiny_clip().save_pretrained(clip)
    tiny_tokenizer().save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(clip)
    tiny_dino().save_pretrained(dino)
    return {"clip": Checkpoint(repo=str(clip)), "dino": Checkpoint(repo=str(dino))}


@pytest.fixture(scope="module")
def judge(folders):
    return ClipDinoJudge.from_pretrained(**folders)


class TestTowerJudge:
    """Against what transformers says of the images alone."""

    @staticmethod
    def view(pipe, image):
        if hasattr(pipe.processor, "vision_start_token"):
            resized = image.resize({(30, 60): (32, 96)}.get(image.size, (64, 64)), Image.Resampling.LANCZOS)
            inputs = dict(pipe.processor.image_processor([resized], return_tensors="pt"))
        else:
            inputs = pipe.processor.image_processor([on_square(image)], crop_to_patches=False, return_tensors="pt")
            inputs = {"pixel_values": inputs["pixel_values"]}
        with torch.no_grad():
            return pipe.mllm.get_image_features(**inputs).pooler_output[0].double().numpy()

    @staticmethod
    def f1(picture, reference):
        """Token by token."""

        def cosine(a, b):
            return max(a @ b / math.sqrt((a @ a) * (b @ b)), 0.0)

        def nearest(some, others):
            return np.mean([max(cosine(a, b) for b in others) for a in some])

        precision, recall = nearest(picture, reference), nearest(reference, picture)
        return 2 / (1 / precision + 1 / recall)

    def test_subject_is_the_mean_f1_of_matched_tokens(self, pipe):
        painted, red, tall = (self.view(pipe, image) for image in (PAINTED, RED, TALL))
        scores = TowerJudge(pipe)([PAINTED, RED], "image 1 on teal", [RED, TALL])
        expected = [(self.f1(a, red) + self.f1(a, tall)) / 2 for a in (painted, red)]
        assert [score.subject for score in scores] == pytest.approx(expected, abs=1e-5)
        assert scores[0].subject != pytest.approx(scores[1].subject, abs=1e-4)
        assert [score.prompt for score in scores] == [None, None]

    def test_it_chooses_without_a_plan(self, pipe):
        """The candidate that is kept is the one it finds nearest, and nobody had to reason."""
        more = pipe.limits.max_references + 1
        generator = torch.Generator().manual_seed(3)
        out = pipe("image 1 on teal", RED, best_of=more, judge=TowerJudge(pipe), generator=generator)
        (scores,) = out.scores
        assert out.plans is None and out.kept == [max(range(more), key=lambda k: scores[k].subject)]
        assert TowerJudge(pipe)(out.images, "", [RED])[0].subject == pytest.approx(
            scores[out.kept[0]].subject, abs=1e-5
        )

    @pytest.mark.parametrize(
        ("references", "words"), [(None, "encoded before, without pictures"), ([], "there are none")]
    )
    def test_nothing_to_compare_with(self, pipe, references, words):
        remedy = r": expected subject_images.*judge=MllmJudge\(pipe\).*function of your own"
        with pytest.raises(ValueError, match=words + remedy):
            TowerJudge(pipe)([PAINTED], "red", references)

    def test_that_is_known_before_anything_is_painted(self, pipe, monkeypatch):
        encoded = pipe.encode_subjects([RED])
        monkeypatch.setattr(type(pipe), "_paint", lambda *_: pytest.fail("painted"))
        with pytest.raises(ValueError, match="encoded before"):
            pipe("image 1", encoded, best_of=2, judge=TowerJudge(pipe))
        with pytest.raises(ValueError, match="there are none"):
            pipe("red", best_of=2, judge=TowerJudge(pipe))

    def test_the_remedy_that_it_names(self, pipe, monkeypatch):
        """The other judge scores both: without references, and from what was encoded."""
        shorten_plans(monkeypatch)
        for references in (None, pipe.encode_subjects([RED])):
            out = pipe("red", references, best_of=2, judge=MllmJudge(pipe), num_inference_steps=1)
            assert len(out.scores[0]) == 2

    def test_no_pictures(self, pipe):
        assert TowerJudge(pipe)([], "red", [RED]) == []


class TestClipDinoJudge:
    def test_prompt_is_the_cosine_of_clip(self, judge):
        scores = judge([PAINTED, RED], "a red cat", [])
        clip, seen = tiny_clip(), CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
        ids = tiny_tokenizer()("a red cat", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scale = clip.logit_scale.exp()
            out = clip(input_ids=ids, **seen([PAINTED, RED], return_tensors="pt"))
        expected = (out.logits_per_image[:, 0] / scale).clamp(min=0).tolist()
        assert [score.prompt for score in scores] == pytest.approx(expected, abs=1e-5)
        assert expected[0] != pytest.approx(expected[1], abs=1e-3)
        assert [score.subject for score in scores] == [None, None]

    def test_subject_is_the_cosine_of_class_tokens(self, judge):
        """Shorter side 256, middle 224 x 224, ImageNet's normalisation."""

        def token(image):
            scale = 256 / min(image.size)
            large = image.resize([round(edge * scale) for edge in image.size], Image.Resampling.BICUBIC)
            left, top = (large.width - 224) // 2, (large.height - 224) // 2
            crop = large.crop((left, top, left + 224, top + 224))
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            with torch.no_grad():
                return tiny_dino()(((pixels - mean[:, None, None]) / std[:, None, None])[None]).last_hidden_state[0, 0]

        def cosine(first, second):
            return float(F.cosine_similarity(token(first), token(second), dim=0).clamp(min=0))

        (score, same) = judge([PAINTED, RED], "a red cat", [RED, TALL])
        assert score.subject == pytest.approx((cosine(PAINTED, RED) + cosine(PAINTED, TALL)) / 2, abs=1e-3)
        assert same.subject == pytest.approx((1 + cosine(RED, TALL)) / 2, abs=1e-3)

    def test_a_plan_is_read_in_names(self, judge):
        (of_plan,) = judge([PAINTED], a_plan(prompt="Image 2 on a cat"), [])
        (of_words,) = judge([PAINTED], "hat on a cat", [])
        assert of_plan == of_words != judge([PAINTED], "cat on a cat", [])[0]

    def test_a_long_prompt_is_cut(self, judge):
        assert judge([PAINTED], "red " * 99, []) == judge([PAINTED], "red " * 200, [])

    def test_encoded_subjects_have_no_pictures(self, judge):
        with pytest.raises(ValueError, match=r"encoded before: expected images"):
            judge([PAINTED], "a red cat", None)

    def test_no_such_folder(self, folders, tmp_path):
        with pytest.raises(WeightsError, match=r"none' has no config.json, model.safetensors"):
            ClipDinoJudge.from_pretrained(dino=Checkpoint(repo=str(tmp_path / "none")), clip=folders["clip"])
