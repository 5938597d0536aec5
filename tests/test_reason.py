"""Reasoning with tiny random MLLMs of both families: what is written, what is read once, what is painted."""

from io import StringIO

import pytest
import torch
from tiny import tiny_mllm
from tiny_pipeline import picture, reasoning_pipeline, seeded_generators, shorten_plans, tiny_pipeline
from tiny_qwen import SYSTEM_AND_USER, lively, reasoning_qwen_pipeline, tiny_qwen_mllm, tiny_qwen_processor
from tqdm import tqdm
from transformers import GenerationConfig

import subjectgen.images as images_module
import subjectgen.reasoning.reason as reason_module
from subjectgen import MllmJudge, Plan, PlanError, PlannedSubject, Subject, SubjectPipeline
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.models.mllm.qwen3_vl import Qwen3VLReader
from subjectgen.reasoning import grammar
from subjectgen.reasoning.instruction import INSTRUCTION
from subjectgen.reasoning.paint import spoken_of
from subjectgen.request import Request

RED, BLUE, TALL = picture("red"), picture("blue"), picture("green", size=(30, 60))
PROMPT = "a red cat"
NEW_TOKENS = 24
LOST = {"asked": "image 1 and image 2 on red", "view": "image 1 left, image 2 right"}  # but for the prompt


@pytest.fixture(autouse=True)
def short_plans(monkeypatch):
    shorten_plans(monkeypatch)


@pytest.fixture
def whole_boxes(monkeypatch):
    """Every subject fills its picture, so that nothing is cut."""
    monkeypatch.setattr(grammar, "_box_rules", lambda: 'box: "0 0 100 100"')


PIPELINES = {"internvl": reasoning_pipeline, "qwen3_vl": reasoning_qwen_pipeline}


@pytest.fixture(scope="module", params=PIPELINES)
def pipe(request):
    return PIPELINES[request.param]()


@pytest.fixture(scope="module")
def small():
    """For what does not depend on the family."""
    return reasoning_pipeline()


def write_only(monkeypatch, words):
    """A grammar of these words alone, about images that are there or not."""
    monkeypatch.setattr(grammar, "words_of", lambda at_most, without: words)
    monkeypatch.setattr(grammar, "_paintable", lambda num_subjects: ".*")


def a_plan(prompt="image 1 on red", count=1, box=(0, 0, 100, 100), **values):
    subject = PlannedSubject(name="cat", colours=("red",), box=box, pose="upright", ground="white")
    words = dict.fromkeys(("scene", "view", "pose", "changes", "keeps", "asked"), "x")
    return Plan(subjects=(subject,) * count, prompt=prompt, **{**words, **values})


def latents(pipe, prompt, *subjects, **options):
    return pipe(prompt, *subjects, generator=seeded_generators(3), output_type="latent", **options).images


class Likeliest:
    """Token after token, without a grammar; of what is known before, several at once, as if a grammar forced them."""

    finished = False

    def __init__(self, known=()):
        self.known = list(known)

    def __call__(self, logits, at_most):
        token = int(logits.argmax())
        if not self.known:
            return [token]
        count = min(at_most, 1 + self.known[0] % 4)
        tokens, self.known = self.known[:count], self.known[count:]
        assert tokens[0] == token
        return tokens


def answers(reader, prompts, prefixes, pickers, count=NEW_TOKENS):
    written = [[] for _ in prompts]
    for step in reader.answers(prompts, prefixes, pickers, count):
        for number, tokens in step.items():
            written[number] += tokens
    return written


def likeliest(reader, prompt, images, count=NEW_TOKENS):
    return answers(reader, [prompt], [reader.read_references(images)], [Likeliest()], count)[0]


def generated(mllm, ids, **inputs):
    """What transformers' own `generate` writes after the whole sequence."""
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    out = mllm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **inputs)
    return out[0, ids.shape[1] :].tolist()


class TestAnswer:
    """Continuing from the kept prefix is what `generate` does with everything in one sequence."""

    @pytest.mark.parametrize("count", [0, 1, 3])
    @pytest.mark.parametrize("prompt", [PROMPT, "", "\n\n a  cat <|im_end|> "])
    def test_internvl(self, reader, mllm, references, count, prompt):
        text = reader.template(prompt, count)
        layout = reader.token_layout(prompt, count).input_ids
        rest = reader.processor.tokenizer(
            text.rpartition(prompt)[2] if prompt else "<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.cat([layout if prompt else layout_of_nothing(reader, count), torch.tensor(rest["input_ids"])])
        inputs = {"pixel_values": reader.pixel_values(references[:count])} if count else {}
        expected = generated(mllm, ids[None], **inputs)
        assert likeliest(reader, prompt, references[:count]) == expected
        assert len(set(expected)) > 3

    @pytest.mark.parametrize("sizes", [[], [(64, 64)], [(64, 32), (32, 96)]])
    def test_qwen3_vl(self, sizes):
        processor = tiny_qwen_processor()
        mllm = lively(tiny_qwen_mllm(processor))
        images = [picture(colour, size) for colour, size in zip(("red", "blue"), sizes, strict=False)]
        slots = [width * height // 32**2 for width, height in sizes]
        seen = " ".join(
            f"<image{k}><|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for k, count in enumerate(slots, 1)
        )
        text = f"{SYSTEM_AND_USER}{seen}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
        ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
        inputs = {}
        if images:
            inputs = dict(processor.image_processor(images, return_tensors="pt"))
            inputs["mm_token_type_ids"] = (ids == processor.image_token_id).int()
        expected = generated(mllm, ids, **inputs)
        assert likeliest(Qwen3VLReader(mllm, processor), PROMPT, images) == expected
        assert len(set(expected)) > 3

    def test_the_prefix_stays_as_it_is(self, reader, references):
        prefix = reader.read_references(references[:2])
        keys, values = prefix.keys.clone(), prefix.values.clone()
        first, second = (answers(reader, [PROMPT], [prefix], [Likeliest()], 9) for _ in range(2))
        assert first == second and torch.equal(prefix.keys, keys) and torch.equal(prefix.values, values)

    def test_no_room_for_an_answer(self, processor):
        reader = InternVLReader(tiny_mllm(max_position_embeddings=12), processor)
        with pytest.raises(ValueError, match=r"12 positions.*shorter prompt"):
            next(reader.answers([PROMPT * 9], [reader.read_references([])], [Likeliest()], 9))


class TestAnswers:
    """Several side by side: rows of different lengths, that end at different times."""

    PROMPTS = (PROMPT, "a", "something much longer about the subject of the picture", PROMPT)

    def reader_and_prefixes(self, name):
        reader, _ = PIPELINES[name]().adapters()
        lively(reader.mllm)
        images = ([RED], [], [RED, BLUE], [TALL, BLUE, RED])
        sized = [[image.resize((64, 64)) for image in each] for each in images]
        return reader, [reader.read_references(each) for each in sized]

    @pytest.mark.parametrize("name", PIPELINES)
    def test_each_is_the_same_alone(self, name):
        reader, prefixes = self.reader_and_prefixes(name)
        alone = [answers(reader, [p], [x], [Likeliest()])[0] for p, x in zip(self.PROMPTS, prefixes, strict=True)]
        together = answers(reader, self.PROMPTS, prefixes, [Likeliest() for _ in prefixes])
        assert together == alone and len(set(map(tuple, alone))) == 4 and {len(each) for each in alone} == {NEW_TOKENS}

    @pytest.mark.parametrize("name", PIPELINES)
    def test_several_tokens_at_once(self, name):
        """Rows that read one to four tokens a step, and end after different numbers of steps."""
        reader, prefixes = self.reader_and_prefixes(name)
        one_by_one = answers(reader, self.PROMPTS, prefixes, [Likeliest() for _ in prefixes])
        pickers = [Likeliest(tokens) for tokens in one_by_one]
        steps = list(reader.answers(self.PROMPTS, prefixes, pickers, NEW_TOKENS))
        written = [[token for step in steps for token in step.get(row, ())] for row in range(4)]
        assert written == one_by_one and len(steps) < NEW_TOKENS and len({len(step) for step in steps}) > 1


def layout_of_nothing(reader, count):
    """Up to the prompt, where the prompt is empty."""
    return reader.token_layout("a", count).input_ids[:-1]


class TestPlans:
    @pytest.mark.parametrize("images", [[], [RED], [RED, TALL, BLUE]], ids=len)
    def test_random_weights_write_whole_plans(self, pipe, images):
        plan = pipe.reason(PROMPT, images)
        assert len(plan.subjects) == len(images) and plan.asked == PROMPT
        assert plan == pipe.reason(PROMPT, images)
        assert all(len(each.name) <= 4 and each.box[0] < each.box[2] for each in plan.subjects)

    def test_the_plan_depends_on_what_is_seen_and_asked(self, pipe):
        plans = {str(pipe.reason(prompt, image)) for prompt in (PROMPT, "on the blue ground") for image in (RED, TALL)}
        assert len(plans) == 4

    def test_sampling(self, pipe):
        def drawn(seed):
            return pipe.reason(PROMPT, RED, temperature=1.5, generator=torch.Generator().manual_seed(seed))

        first, second = drawn(0), drawn(1)
        assert drawn(0) == first != second

    def test_image_is_another_name_for_the_references(self, small):
        assert small.reason(PROMPT, image=RED) == small.reason(PROMPT, RED) != small.reason(PROMPT)
        with pytest.raises(ValueError, match="both subject_images and image"):
            small.reason(PROMPT, RED, image=RED)

    def test_the_lowest_temperature_is_none(self, small):
        assert small.reason(PROMPT, RED, temperature=1e-40) == small.reason(PROMPT, RED)

    def test_the_instruction_precedes_the_request(self, small, monkeypatch):
        asked, answers = [], InternVLReader.answers
        monkeypatch.setattr(
            InternVLReader, "answers", lambda self, texts, *rest: asked.extend(texts) or answers(self, texts, *rest)
        )
        assert reasoning_pipeline(plan_instruction="Plan it.").reason(PROMPT).asked == PROMPT
        small.reason(PROMPT)
        assert asked == ["Plan it.\n\nRequest: a red cat", PROMPT]

    def test_the_instruction_is_a_saved_setting(self, tmp_path):
        assert tiny_pipeline().config.plan_instruction == INSTRUCTION
        reasoning_pipeline(plan_instruction="Plan\nit.").save_pretrained(tmp_path)
        assert SubjectPipeline.from_pretrained(tmp_path).config.plan_instruction == "Plan\nit."

    def test_the_instruction_shows_the_form_that_is_read(self):
        """Its example is a plan once the explanations between its parts are taken out."""
        parts = [line for line in INSTRUCTION.splitlines() if line.startswith(("<subject>", "<plan>", "<prompt>"))]
        plan = grammar.parse_plan("".join(parts), 1, "")
        assert plan.subjects[0].name == "lady beetle" and plan.prompt.startswith("image 1")


class TestSeveral:
    """A list of prompts is planned side by side."""

    PROMPTS = (PROMPT, "on the blue ground", "a cat that is much larger than the others", PROMPT)
    IMAGES = ([RED], [TALL, BLUE], [], [BLUE])

    def together(self, pipe, **options):
        return pipe.reason(list(self.PROMPTS), list(self.IMAGES), **options)

    def test_each_plan_is_the_same_alone(self, pipe):
        plans = self.together(pipe)
        assert plans == [pipe.reason(*pair) for pair in zip(self.PROMPTS, self.IMAGES, strict=True)]
        assert len(set(map(str, plans))) == 4
        assert [len(plan.subjects) for plan in plans] == [1, 2, 0, 1]

    def test_each_painted_plan_is_the_same(self, small):
        together, alone = self.together(small)[1], small.reason(self.PROMPTS[1], self.IMAGES[1])
        assert torch.allclose(latents(small, together), latents(small, alone), atol=1e-4)

    def test_a_list_of_one(self, small):
        assert small.reason([PROMPT], RED) == [small.reason(PROMPT, RED)]

    def test_one_list_of_images_for_all_prompts_is_read_once(self, pipe, monkeypatch):
        counter = Counter(pipe, monkeypatch)
        first, second = pipe.reason([PROMPT, "another"], [RED, BLUE])
        assert (counter.read, counter.encoded) == (2, 2) and first.embeds is second.embeds
        assert second.asked == "another"

    def test_draws_of_each_are_its_own(self, small):
        def drawn(seeds, start=0):
            prompts, images = list(self.PROMPTS[start:]), list(self.IMAGES[start:])
            return small.reason(prompts, images, temperature=1.5, generator=seeded_generators(*seeds))

        assert drawn([5, 6, 7, 8])[2:] == drawn([7, 8], start=2) != drawn([8, 7], start=2)

    def test_what_is_written_so_far(self, small):
        heard = []
        plans = self.together(small, callback_on_token=lambda pipe, texts: heard.append(texts))
        assert all(len(texts) == 4 and all(texts) for texts in heard)
        assert [text.rpartition("<prompt>")[2] for text in heard[-1]] == [f"{plan.prompt}</prompt>" for plan in plans]

    def test_those_that_fail_are_named_and_the_others_are_kept(self, small, monkeypatch):
        plans, counts = self.counted(small, monkeypatch)
        words = r"3 of 4 prompts came to no plan, prompt 1: .*max_new_tokens.*; prompt 2: .*; prompt 4: "
        with pytest.raises(PlanError, match=words) as refused:
            self.together(small, max_new_tokens=counts[2])
        assert refused.value.plans[2] == plans[2] and counts[2] < min(counts[0], counts[1], counts[3])
        failed = [each for each in refused.value.plans if isinstance(each, PlanError)]
        assert len(failed) == 3 and refused.value.written == failed[0].written and not failed[0].plans
        assert torch.equal(latents(small, refused.value.plans[2]), latents(small, plans[2]))

    def counted(self, pipe, monkeypatch):
        """The plans, and how many tokens each has."""
        counts, stock = [0] * len(self.PROMPTS), InternVLReader.answers

        def counting(reader, *given):
            for step in stock(reader, *given):
                for number, tokens in step.items():
                    counts[number] += len(tokens)
                yield step

        with monkeypatch.context() as patch:
            patch.setattr(InternVLReader, "answers", counting)
            return self.together(pipe), counts

    def test_a_text_that_contradicts_itself(self, small, monkeypatch):
        write_only(monkeypatch, "image 2")
        with pytest.raises(PlanError, match=r"1 of 2 prompts came to no plan, prompt 1: .*speaks of 'image 2'") as e:
            small.reason([PROMPT, PROMPT], [[RED], [RED, BLUE]])
        assert e.value.plans[1].prompt == "image 2" and e.value.written.endswith("<prompt>image 2</prompt>")

    def test_a_call_with_reasoning_names_it_too(self, small, monkeypatch):
        write_only(monkeypatch, "image 2")
        with pytest.raises(PlanError, match=r"1 of 2 prompts came to no plan, prompt 1: ") as e:
            small([PROMPT, PROMPT], [[RED], [RED, BLUE]], reasoning=True)
        assert e.value.plans[1].prompt == "image 2"

    def test_interrupted_between_two_ends(self, small):
        """What was finished by then is kept."""

        def stop(pipeline, texts):
            pipeline._interrupt = any(text.endswith("</prompt>") for text in texts)

        with pytest.raises(PlanError, match=r"3 of 4 .*prompt 1: the plan was interrupted after \d+ tokens") as stopped:
            self.together(small, callback_on_token=stop)
        assert stopped.value.plans[2] == small.reason(self.PROMPTS[2])


class Counter:
    """How many pictures the MLLM's vision tower and the VAE have seen."""

    def __init__(self, pipe, monkeypatch):
        self.read = self.encoded = 0
        read_references = type(pipe.adapters()[0]).read_references
        encode = type(pipe.vae).encode

        def reading(reader, images, *masks):
            self.read += len(images)
            return read_references(reader, images, *masks)

        def encoding(vae, pixels, *rest, **options):
            self.encoded += len(pixels)
            return encode(vae, pixels, *rest, **options)

        monkeypatch.setattr(type(pipe.adapters()[0]), "read_references", reading)
        monkeypatch.setattr(type(pipe.vae), "encode", encoding)


@pytest.mark.usefixtures("whole_boxes")
class TestReadOnce:
    def test_reason_then_paint(self, pipe, monkeypatch):
        counter = Counter(pipe, monkeypatch)
        plan = pipe.reason(PROMPT, [RED, BLUE])
        pipe(plan)
        pipe(plan.replace(prompt="image 2 and image 1"))
        assert (counter.read, counter.encoded) == (2, 2)

    def test_both_in_one_call_for_several_prompts(self, pipe, monkeypatch):
        counter = Counter(pipe, monkeypatch)
        pipe([PROMPT, "on the blue ground"], [RED, BLUE], reasoning=True)
        assert (counter.read, counter.encoded) == (2, 2)

    def test_a_file_is_opened_once(self, pipe, monkeypatch):
        opened, read = [], Subject.read
        monkeypatch.setattr(Subject, "read", lambda *given, **options: opened.append(1) or read(*given, **options))
        pipe.reason(PROMPT, [RED, BLUE])
        assert len(opened) == 2

    def test_the_same_picture_by_two_names(self, pipe, monkeypatch):
        counter = Counter(pipe, monkeypatch)
        named = [[Subject(RED, name="fox")], [Subject(RED, name="hat")], [Subject(RED, name="hat")]]
        plans = pipe(["a fox", "a hat", "no hat"], named, reasoning=True).plans
        assert [plan.embeds.names for plan in plans] == [("fox",), ("hat",), ("hat",)]
        assert plans[1].embeds is plans[2].embeds and counter.read == 1

    def test_subjects_that_were_encoded_before(self, pipe, monkeypatch):
        subject = pipe.encode_subjects([RED, BLUE])
        counter = Counter(pipe, monkeypatch)
        plan = pipe.reason(PROMPT, subject)
        pipe(plan)
        assert (counter.read, counter.encoded) == (0, 0)
        assert plan == pipe.reason(PROMPT, [RED, BLUE])


@pytest.mark.usefixtures("whole_boxes")
class TestPainting:
    def test_a_plan_is_its_prompt_with_its_images(self, pipe):
        plan = pipe.reason(PROMPT, [RED, TALL])
        out = pipe(plan, generator=seeded_generators(3), output_type="latent")
        assert out.plans == [plan]
        assert torch.equal(out.images, latents(pipe, plan.prompt, [RED, TALL]))

    def test_an_edited_plan(self, pipe):
        plan = pipe.reason(PROMPT, [RED, TALL])
        edited = plan.replace(prompt="image 2 on the blue ground, image 1", scene="blue")
        painted = latents(pipe, edited)
        assert torch.equal(painted, latents(pipe, edited.prompt, [RED, TALL]))
        assert not torch.equal(painted, latents(pipe, plan))

    def test_a_plan_from_json_with_its_images_again(self, pipe):
        plan = pipe.reason(PROMPT, [RED, TALL]).replace(prompt="image 1 and image 2")
        again = Plan.from_json(plan.to_json())
        assert torch.equal(latents(pipe, again, [RED, TALL]), latents(pipe, plan))

    def test_another_subject_in_its_place(self, pipe):
        plan = pipe.reason(PROMPT, RED)
        assert torch.equal(latents(pipe, plan, BLUE), latents(pipe, plan.prompt, BLUE))

    def test_references_that_are_not_spoken_of_are_left_out(self, pipe):
        plan = a_plan("Image 3 beside image 1 on red", count=3, subject_images=[RED, BLUE, TALL])
        assert torch.equal(latents(pipe, plan), latents(pipe, "Image 2 beside image 1 on red", [RED, TALL]))

    @pytest.mark.parametrize("prompt", ["images 1 and 3 on red", "image 1, 3 on red", "Images 1 & 3", "image 3 or 1"])
    def test_none_is_left_out_where_several_are_counted_in_one_breath(self, prompt):
        plan = a_plan(prompt, count=3, subject_images=[RED, BLUE, TALL])
        assert spoken_of(plan) == [1, 2, 3]

    def test_a_plan_of_the_mllm_that_cannot_be_painted(self, small, monkeypatch):
        """A box of the paper beside a narrow picture: what was planned is not lost."""
        plan = a_plan("image 1 on red", count=1).replace_subject(1, box=(0, 0, 20, 100))
        monkeypatch.setattr(reason_module, "parse_plan", lambda text, count, asked: plan)
        monkeypatch.setattr(type(small), "_paint", lambda *_: pytest.fail("painted"))
        with pytest.raises(PlanError, match=r"cannot be painted: the plan's box=\(0, 0, 20, 100\)") as refused:
            small(["a", "b"], [[TALL], [RED]], reasoning=True)
        failed, whole = refused.value.plans
        assert Plan.from_json(failed.written) == plan and whole == plan

    def test_a_plan_that_loses_a_subject(self, small):
        plan = a_plan("image 1 on red", count=2, subject_images=[RED, TALL], **LOST)
        words = r"prompt='image 1 on red' leaves out image 2, which asked=.* speak of.*replace\(prompt=.*or ask again"
        with pytest.raises(ValueError, match=words):
            small(plan)
        with pytest.raises(ValueError, match="leaves out image 2"):
            small(Plan.from_json(plan.to_json()), [RED, TALL])
        assert small(plan.replace(prompt="image 1 and image 2 on red"), output_type="latent").plans

    def test_a_plan_that_loses_a_subject_of_the_mllm(self, small, monkeypatch):
        plan = a_plan("image 1 on red", count=2, **{**LOST, "asked": "the mug beside the hat"})
        monkeypatch.setattr(reason_module, "parse_plan", lambda text, count, asked: plan)
        monkeypatch.setattr(type(small), "_paint", lambda *_: pytest.fail("painted"))
        with pytest.raises(PlanError, match=r"the MLLM's plan cannot be painted: .*leaves out image 2") as refused:
            small(plan.asked, [Subject(RED, name="mug"), Subject(TALL, name="hat")], reasoning=True)
        assert Plan.from_json(refused.value.written) == plan

    @pytest.mark.parametrize(
        ("prompt", "asked", "view"),
        [
            ("image 2 on blue", "image 2 on the ground of image 1", "image 2 left"),
            ("image 2 on blue", "the cat", "image 1 left, image 2 right"),
            ("images 1 and 2 on blue", "image 1 and image 2", "image 1 left, image 2 right"),
            ("both cats on blue", "image 1 and image 2", "image 1 left, image 2 right"),
        ],
    )
    def test_none_is_lost_that_is_not_asked_for_in_the_view(self, small, prompt, asked, view):
        plan = a_plan(prompt, count=2, subject_images=[RED, TALL], asked=asked, view=view)
        assert len(small(plan, output_type="latent", num_inference_steps=1).images) == 1

    def test_phrases_are_bound_in_the_plans_own_numbers(self, small):
        """Also where a reference is left out and the others are counted anew."""
        named = [Subject(RED, name="mug"), BLUE, TALL]
        plan = a_plan("Image 3 beside the mug on red", count=3, subject_images=named)
        out = small(plan, output_type="latent", num_inference_steps=1)
        assert [str(each) for each in out.bindings[0]] == ["'Image 3' is image 3", "'mug' is image 1"]
        assert [plan.prompt[slice(*each.span)] for each in out.bindings[0]] == ["Image 3", "mug"]

    def test_none_is_left_out_of_a_prompt_without_numbers(self, pipe):
        plan = a_plan("the cat on red", count=2, subject_images=[RED, BLUE])
        assert torch.equal(latents(pipe, plan), latents(pipe, "the cat on red", [RED, BLUE]))

    def test_reasoning_in_a_call(self, pipe):
        prompts, images = [PROMPT, "on the blue ground"], [[RED], []]
        out = pipe(prompts, images, reasoning=True, generator=seeded_generators(1, 2), output_type="latent")
        plans = [pipe.reason(prompt, own) for prompt, own in zip(prompts, images, strict=True)]
        assert out.plans == plans
        by_hand = pipe(plans, generator=seeded_generators(1, 2), output_type="latent")
        assert torch.equal(out.images, by_hand.images)

    def test_no_plans_without_reasoning(self, small):
        out = small(PROMPT, RED, output_type="latent")
        assert out.plans is None and "plans" not in out

    def test_cost_of_a_plan(self, small):
        plan = a_plan(count=1, subject_images=[RED])
        assert small.estimate(plan) == small.estimate(plan.prompt, [RED])


class TestNegatives:
    """They count references as the plan does, whatever it leaves out."""

    def test_of_a_plan_about_the_second_reference(self, pipe):
        plan = a_plan("image 2 on red", count=2, subject_images=[RED, Subject(TALL, name="hat")])
        by_hand = latents(pipe, "image 1 on red", TALL, negative_prompt="image 1 upside down", guidance_scale=3.0)
        for negative in ("image 2 upside down", ["image 2 upside down"]):
            assert torch.equal(latents(pipe, plan, negative_prompt=negative, guidance_scale=3.0), by_hand)
        named = latents(pipe, plan, negative_prompt="hat upside down", guidance_scale=3.0)
        by_name = latents(
            pipe, "image 1 on red", TALL, negative_prompt="hat of image 1 upside down", guidance_scale=3.0
        )
        assert torch.equal(named, by_name) and not torch.equal(named, by_hand)

    def test_none_is_none(self, small):
        """Not an empty text that is guided by, where the checkpoint guides by something else."""
        plan = a_plan("image 1", count=1, subject_images=[RED])
        for negative in (None, ""):
            same = small._resolve(Request(prompt=plan, negative_prompt=negative))
            assert same.guidance == small._resolve(Request(prompt="image 1", subject_images=RED)).guidance

    def test_each_with_its_plan(self, small):
        plans = [a_plan(f"image {k}", count=2, subject_images=[RED, TALL]) for k in (2, 1)]
        resolved = small._resolve(Request(prompt=plans, negative_prompt=["image 2 small", "a dog"]))
        assert resolved.negative_prompts == ("image 1 small", "a dog")

    def test_encoded_subjects_keep_their_numbers(self, small):
        plan = a_plan("image 2", count=2, subject_images=[small.encode_subjects([RED, TALL])])
        assert small._resolve(Request(prompt=plan, negative_prompt="image 1")).negative_prompts == ("image 1",)

    def test_about_what_the_plan_leaves_out(self, small, monkeypatch):
        monkeypatch.setattr(SubjectPipeline, "adapters", lambda *_: pytest.fail("work has begun"))
        plan = a_plan("image 2 on red", count=2, subject_images=[RED, TALL])
        with pytest.raises(ValueError, match=r"'image 1 small' speaks of image 1, which .*'image 2 on red' leaves out"):
            small(plan, negative_prompt="image 1 small", guidance_scale=3.0)

    def test_the_mllms_plan_is_not_lost_by_it(self, small, monkeypatch):
        plan = a_plan("image 2 on red", count=2)
        monkeypatch.setattr(reason_module, "parse_plan", lambda text, count, asked: plan)
        with pytest.raises(PlanError, match=r"speaks of image 1, which the plan's prompt") as refused:
            small("a", [RED, TALL], negative_prompt="image 1 small", reasoning=True, guidance_scale=3.0)
        assert Plan.from_json(refused.value.written) == plan


@pytest.fixture(scope="module")
def other():
    """Another model: what this one has read means nothing to it."""
    pipe = reasoning_pipeline()
    with torch.no_grad():
        next(pipe.mllm.parameters()).add_(1e-2)
    return pipe


class TestAnotherModel:
    def test_it_paints_from_the_plans_own_pictures(self, small, other, monkeypatch, whole_boxes):
        plan = small.reason(PROMPT, [RED, TALL])
        counter = Counter(other, monkeypatch)
        painted = latents(other, plan)
        assert (counter.read, counter.encoded) == (2, 2) and plan.embeds is not None
        assert torch.equal(painted, latents(other, plan.prompt, [RED, TALL]))

    def test_it_looks_at_them_again(self, small, other, whole_boxes):
        plan = small.reason(PROMPT, [RED, TALL])
        (score,), (expected,) = (
            MllmJudge(other)([RED], each, None) for each in (plan, plan.replace(subject_images=[RED, TALL]))
        )
        assert score == expected

    def test_encoded_subjects_cannot_be_read_again(self, small, other):
        plan = small.reason(PROMPT, small.encode_subjects([RED, TALL]))
        words = r"different model: mllm .*plan.replace\(subject_images=\[...\]\)"
        with pytest.raises(ValueError, match=words):
            other(plan)
        with pytest.raises(ValueError, match=words):
            MllmJudge(other)([RED], plan, None)
        assert len(other(plan.replace(subject_images=[RED, TALL], prompt="a"), output_type="latent").images) == 1


class TestBoxes:
    def test_a_reference_is_cut_to_its_planned_box(self, pipe):
        """RED is 40 x 30: on a square the paper above and below it is an eighth of the side each."""
        square = pipe.config.reference_shape == "square"
        box = (26, 26, 99, 74) if square else (26, 17, 99, 83)
        plan = a_plan(box=box, subject_images=[RED])
        by_hand = Subject(RED, box=(10, 5, 40, 25))
        assert torch.equal(latents(pipe, plan), latents(pipe, plan.prompt, by_hand))
        assert not torch.equal(latents(pipe, plan), latents(pipe, plan.prompt, RED))

    def test_a_file_that_is_cut_is_decoded_once(self, small, monkeypatch, tmp_path):
        RED.save(tmp_path / "red.png")
        decoded, stock = [], images_module._decoded
        monkeypatch.setattr(images_module, "_decoded", lambda path, name: decoded.append(name) or stock(path, name))
        plan = a_plan(box=(26, 26, 99, 74), subject_images=[tmp_path / "red.png"])
        by_hand = Subject(RED, box=(10, 5, 40, 25))
        assert torch.equal(latents(small, plan), latents(small, plan.prompt, by_hand)) and len(decoded) == 1

    def test_what_the_user_cut_out_stays(self, pipe):
        own = Subject(RED, box=(0, 0, 20, 20))
        plan = a_plan(box=(25, 25, 100, 75), subject_images=[own])
        assert torch.equal(latents(pipe, plan), latents(pipe, plan.prompt, own))

    def test_a_box_edited_after_reasoning(self, small, monkeypatch, whole_boxes):
        plan = small.reason(PROMPT, RED).replace_subject(1, box=(26, 26, 99, 74))
        counter = Counter(small, monkeypatch)
        assert torch.equal(latents(small, plan), latents(small, plan.prompt, Subject(RED, box=(10, 5, 40, 25))))
        assert counter.read == 2  # another picture than was read: once for the plan, once by hand

    def test_nearly_all_is_not_cut(self, small):
        plan = a_plan(box=(2, 0, 100, 100), subject_images=[RED])
        assert torch.equal(latents(small, plan), latents(small, plan.prompt, RED))

    def test_a_box_of_nothing_but_paper(self, small):
        with pytest.raises(ValueError, match=r"box=\(0, 0, 100, 9\) of image 1 shows nothing.*replace_subject\(1"):
            small(a_plan(box=(0, 0, 100, 9), subject_images=[RED]))

    def test_what_is_encoded_cannot_be_cut(self, small, whole_boxes):
        plan = small.reason(PROMPT, small.encode_subjects([RED, TALL]))
        words = r"box of subject 2: it was encoded before.*plan.replace\(subject_images=\[\.\.\.\]\)"
        with pytest.raises(ValueError, match=words):
            plan.replace_subject(2, box=(26, 26, 99, 74))
        assert plan.replace_subject(2, box=(0, 0, 100, 100), name="hat").subjects[1].name == "hat"
        pictures = plan.replace(subject_images=[RED, TALL]).replace_subject(2, box=(26, 26, 99, 74))
        assert pictures.subjects[1].box == (26, 26, 99, 74)

    def test_a_name_is_a_number_for_the_plan(self, small, whole_boxes):
        named = [Subject(RED, name="mug"), Subject(TALL, name="hat")]
        plan = small.reason("the hat on red", named)
        assert plan.asked == "the hat on red"
        assert plan.replace(asked="") == small.reason("the hat of image 2 on red", [RED, TALL]).replace(asked="")
        edited = plan.replace(prompt="the hat on blue")
        assert torch.equal(latents(small, edited), latents(small, "the hat of image 1 on blue", TALL))


class TestNoPlan:
    def test_too_few_tokens(self, pipe):
        with pytest.raises(PlanError, match=r"no end after max_new_tokens=7: give more.*It wrote: '<subj") as refused:
            pipe.reason(PROMPT, RED, max_new_tokens=7)
        assert "<subject>name:".startswith(refused.value.written) and refused.value.written

    def test_too_few_positions(self):
        pipe = tiny_pipeline(plan_instruction="")
        pipe.mllm = tiny_mllm(max_position_embeddings=60)
        with pytest.raises(PlanError, match=r"tokens, all that the MLLM has positions for: use fewer references"):
            pipe.reason(PROMPT, RED)

    def test_a_text_that_contradicts_itself(self, small, monkeypatch):
        """Should the grammar let a prompt about an image through that is not there, it is refused when it is read."""
        write_only(monkeypatch, "image 9")
        with pytest.raises(PlanError, match=r"speaks of 'image 9'.*1 reference") as refused:
            small.reason(PROMPT, RED)
        assert refused.value.written.endswith("<prompt>image 9</prompt>")

    def test_interrupted(self, pipe):
        heard = []

        def stop(pipeline, written):
            heard.append(written)
            pipeline._interrupt = len(heard) == 5

        with pytest.raises(PlanError, match=r"interrupted after \d+ tokens") as stopped:
            pipe.reason(PROMPT, RED, callback_on_token=stop)
        assert stopped.value.written == heard[-1] and heard[-1].startswith(heard[3]) and len(heard) == 5
        assert pipe.reason(PROMPT, RED) == pipe.reason(PROMPT, RED, callback_on_token=lambda *_: None)

    def test_a_progress_bar(self, small, monkeypatch):
        """Counts the tokens of the longest plan, of as many as there may be."""
        bars, words = [], []

        def bar(total):
            bars.append(tqdm(total=total, file=StringIO()))
            return bars[0]

        monkeypatch.setattr(small, "progress_bar", bar)
        options = {"max_new_tokens": 500, "callback_on_token": lambda _, each: words.append(each)}
        small.reason([PROMPT, PROMPT], [[], [RED]], **options)
        assert bars[0].total == 500 and len(words) < bars[0].n < 500

    def test_ctrl_c_leaves_the_subjects_as_they_were(self, pipe):
        subject = pipe.encode_subjects(RED)
        before = pipe.reason(PROMPT, subject)

        def stop(pipeline, written):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipe.reason("another", subject, callback_on_token=stop)
        assert pipe.reason(PROMPT, subject) == before


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "options", "words"),
        [
            (("",), {}, "empty"),
            (([PROMPT, ""],), {}, "empty"),
            ((7,), {}, "prompt=7"),
            (([],), {}, "empty"),
            (([PROMPT, PROMPT], [[RED]]), {}, "1 lists for 2 prompt"),
            ((a_plan(),), {}, r"a plan to reason about.*pipe\(plan\)"),
            ((PROMPT, [RED] * 4), {}, "4 references.*at most 3"),
            ((PROMPT, "none.png"), {}, "none.png"),
            ((PROMPT,), {"max_new_tokens": 0}, "max_new_tokens=0"),
            ((PROMPT,), {"max_new_tokens": True}, "max_new_tokens=True"),
            ((PROMPT,), {"temperature": -1.0}, "temperature=-1.0"),
            ((PROMPT,), {"temperature": float("inf")}, "temperature=inf"),
            ((PROMPT,), {"generator": torch.Generator()}, "temperature above 0"),
            (([PROMPT] * 2,), {"temperature": 1.0, "generator": torch.Generator()}, r"for 2 prompt\(s\).*for each"),
            (([PROMPT] * 2,), {"temperature": 1.0, "generator": [torch.Generator(), 3]}, r"for 2 prompt\(s\)"),
        ],
    )
    def test_before_anything_is_read(self, small, monkeypatch, arguments, options, words):
        monkeypatch.setattr(SubjectPipeline, "_encode", lambda *_: pytest.fail("work has begun"))
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            small.reason(*arguments, **options)

    @pytest.mark.parametrize(
        ("prompt", "options", "words"),
        [
            (a_plan(), {}, r"0 references.*1 subjects.*pipe\(plan, subject_images\)"),
            (a_plan(), {"subject_images": [RED, BLUE]}, "2 references.*1 subjects"),
            ([a_plan(subject_images=[RED]), PROMPT], {}, "1 of 2 prompts are plans"),
            (a_plan(subject_images=[RED]), {"reasoning": True}, "reasoning=True with a plan"),
            (PROMPT, {"reasoning": True, "height": 60}, "64x60"),
        ],
    )
    def test_of_a_call(self, small, monkeypatch, prompt, options, words):
        monkeypatch.setattr(SubjectPipeline, "adapters", lambda *_: pytest.fail("work has begun"))
        with pytest.raises(ValueError, match=words):
            small(prompt, **options)

    def test_subjects_of_another_model(self, small):
        other = reasoning_pipeline()
        with torch.no_grad():
            next(other.mllm.parameters()).add_(1e-3)
        with pytest.raises(ValueError, match="different model"):
            small.reason(PROMPT, other.encode_subjects(RED))
