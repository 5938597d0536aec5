"""Candidates and rounds with tiny random pipelines of both families: which is kept, what is painted again, and how."""

from io import StringIO

import numpy as np
import pytest
import torch
from tiny_pipeline import reasoning_pipeline, seeded_generators, shorten_plans
from tiny_plans import RED, TALL, a_plan
from tiny_qwen import reasoning_qwen_pipeline
from tqdm import tqdm

from subjectgen import MllmJudge, Score, Stage, Subject, SubjectPipeline, TowerJudge
from subjectgen.models.vae import pixels_from_latents
from subjectgen.reasoning import grammar
from subjectgen.reasoning.reflect import REFLECT_SIGMA, corrected
from subjectgen.reasoning.view import View

PROMPT = "a red cat"


@pytest.fixture(autouse=True)
def short_plans(monkeypatch):
    shorten_plans(monkeypatch)
    monkeypatch.setattr(grammar, "_box_rules", lambda: 'box: "0 0 100 100"')


@pytest.fixture(scope="module", params=[reasoning_pipeline, reasoning_qwen_pipeline], ids=["internvl", "qwen3_vl"])
def pipe(request):
    return request.param()


@pytest.fixture(scope="module")
def small():
    """For what does not depend on the family."""
    return reasoning_pipeline()


class Judge:
    """Says these totals, one after the other, and remembers what it was shown."""

    def __init__(self, *totals):
        self.totals, self.seen = list(totals), []

    def __call__(self, pictures, asked, references):
        self.seen.append((list(pictures), asked, references))
        return [Score(prompt=self.totals.pop(0)) for _ in pictures]


def painted(pipe, prompt, *subjects, **options):
    return pipe(prompt, *subjects, output_type="latent", **options)


def counted(pipe, monkeypatch):
    """How many pictures are read by the MLLM as references, and encoded by the VAE, from here on."""
    counts = {"read": 0, "encoded": 0}
    reader, vae = type(pipe.adapters()[0]), type(pipe.vae)
    read, encode = reader.read_references, vae.encode

    def reading(self, images, masks=(), *, behind=None):
        counts["read"] += len(images) * (behind is None)
        return read(self, images, masks, behind=behind)

    def encoding(self, pixels, *rest, **options):
        counts["encoded"] += len(pixels)
        return encode(self, pixels, *rest, **options)

    monkeypatch.setattr(reader, "read_references", reading)
    monkeypatch.setattr(vae, "encode", encoding)
    return counts


class TestBestOf:
    def test_the_best_is_the_picture_of_its_seed_alone(self, pipe):
        judge = Judge(0.1, 0.3, 0.9, 0.2)
        out = painted(pipe, PROMPT, RED, best_of=4, judge=judge, generator=seeded_generators(1, 2, 3, 4))
        alone = painted(pipe, PROMPT, RED, generator=seeded_generators(3))
        assert out.kept == [2] and [each.total for each in out.scores[0]] == [0.1, 0.3, 0.9, 0.2]
        assert torch.allclose(out.images, alone.images, atol=1e-4)
        assert torch.equal(out.noise, alone.noise)

    def test_best_of_each_picture_of_each_prompt(self, pipe):
        """Two prompts, two pictures of each, two candidates of each picture."""
        prompts, images = [PROMPT, "on the blue ground"], [[RED], [TALL, RED]]
        judge = Judge(0, 1, 1, 0, 1, 0, 0, 1)
        seeds = range(10, 18)
        out = painted(
            pipe, prompts, images, best_of=2, judge=judge, num_images_per_prompt=2, generator=seeded_generators(*seeds)
        )
        alone = painted(pipe, prompts, images, num_images_per_prompt=2, generator=seeded_generators(11, 12, 14, 17))
        assert out.kept == [1, 0, 0, 1] and [len(each) for each in out.scores] == [2] * 4
        assert torch.allclose(out.images, alone.images, atol=1e-4)
        assert [(len(pictures), asked) for pictures, asked, _ in judge.seen] == [(4, prompt) for prompt in prompts]
        assert [len(references) for *_, references in judge.seen] == [1, 2]

    def test_its_noise_paints_it_again_whatever_the_generator(self, pipe):
        for options in ({}, {"generator": torch.Generator().manual_seed(5)}):
            out = painted(pipe, PROMPT, RED, best_of=3, judge=Judge(0, 1, 0), **options)
            again = painted(pipe, PROMPT, RED, latents=out.noise)
            assert torch.allclose(out.images, again.images, atol=1e-4)

    def test_the_judge_sees_the_candidates_in_order(self, small):
        judge = Judge(1, 0)
        small(PROMPT, RED, best_of=2, judge=judge, generator=seeded_generators(1, 2))
        (pictures, *_) = judge.seen[0]
        both = small(PROMPT, RED, num_images_per_prompt=2, generator=seeded_generators(1, 2)).images
        assert [each.tobytes() for each in pictures] == [each.tobytes() for each in both]

    @pytest.mark.parametrize("output_type", ["pil", "pt", "np"])
    def test_every_kind_of_picture(self, small, output_type):
        options = {"output_type": output_type, "generator": seeded_generators(1, 2)}
        out = small(PROMPT, RED, best_of=2, judge=Judge(0, 1), **options)
        alone = small(PROMPT, RED, output_type=output_type, generator=seeded_generators(2))
        assert len(out.images) == 1 and type(out.images[0]) is type(alone.images[0])

    def test_scores_of_a_single_picture(self, small):
        out = small(PROMPT, RED, judge=Judge(0.5), output_type="latent")
        assert out.kept == [0] and out.scores == [(Score(prompt=0.5),)]

    def test_the_first_of_equals(self, small):
        assert small(PROMPT, best_of=3, judge=Judge(0.5, 0.5, 0.5), output_type="latent").kept == [0]

    def test_no_judge_no_scores(self, small):
        out = small(PROMPT, RED, output_type="latent")
        assert out.scores is None and out.kept is None and out.rounds is None

    def test_subjects_are_read_once(self, pipe, monkeypatch):
        counts = counted(pipe, monkeypatch)
        pipe(PROMPT, [RED, TALL], best_of=3)
        assert counts == {"read": 2, "encoded": 2}

    def test_the_mllm_judges_by_default_and_plans_before(self, pipe):
        out = painted(pipe, PROMPT, RED, best_of=3, generator=seeded_generators(1, 2, 3))
        assert out.plans == [pipe.reason(PROMPT, RED)]
        candidates = pipe(out.plans[0], num_images_per_prompt=3, generator=seeded_generators(1, 2, 3)).images
        expected = MllmJudge(pipe)(candidates, out.plans[0], None)
        assert [each.total for each in out.scores[0]] == pytest.approx([each.total for each in expected], rel=1e-3)
        assert out.kept == [max(range(3), key=lambda k: expected[k].total)]

    def test_a_checkpoint_names_its_own_judge(self, small):
        tower = reasoning_pipeline(judge="tower")
        generators = seeded_generators(1, 2, 3)
        out = painted(tower, PROMPT, RED, best_of=3, generator=generators)
        given = painted(tower, PROMPT, RED, best_of=3, judge=TowerJudge(tower), generator=seeded_generators(1, 2, 3))
        assert out.plans is None and out.scores == given.scores and out.kept == given.kept
        assert tower.config["judge"] == "tower" and small.config["judge"] == "mllm"
        with pytest.raises(ValueError, match=r"judge='me': expected one of mllm, tower"):
            reasoning_pipeline(judge="me")

    def test_a_judge_by_its_name(self, small):
        options = {"best_of": 2, "output_type": "latent"}
        out = small(PROMPT, RED, judge="tower", generator=seeded_generators(1, 2), **options)
        given = small(PROMPT, RED, judge=TowerJudge(small), generator=seeded_generators(1, 2), **options)
        assert out.plans is None and out.scores == given.scores
        assert small(PROMPT, RED, judge="mllm", output_type="latent").plans == [small.reason(PROMPT, RED)]

    def test_it_plans_for_an_mllm_that_is_given_as_the_judge(self, small):
        out = painted(small, PROMPT, RED, best_of=2, judge=MllmJudge(small))
        assert out.plans == [small.reason(PROMPT, RED)]

    def test_a_judge_sees_a_subject_without_what_its_mask_leaves_out(self, small):
        mask = np.zeros((30, 40), dtype=bool)
        mask[5:15, 10:30] = True
        judge = Judge(1)
        painted(small, PROMPT, Subject(RED, mask=mask), judge=judge)
        ((_, _, (reference,)),) = judge.seen
        assert reference.tobytes() == RED.crop((10, 5, 30, 15)).tobytes()

    def test_what_a_judge_cannot_score_is_known_before_anything_is_painted(self, small, monkeypatch):
        monkeypatch.setattr(type(small), "_paint", lambda *_: pytest.fail("painted"))
        judge = Judge(1)
        judge.check = lambda asked, references: (_ for _ in ()).throw(ValueError(f"{asked}, {len(references)}"))
        with pytest.raises(ValueError, match=f"{PROMPT}, 2"):
            small(PROMPT, [RED, TALL], judge=judge)

    def test_cost_of_candidates(self, small):
        assert small.estimate(PROMPT, RED, best_of=4) == small.estimate(PROMPT, RED, num_images_per_prompt=4)


class TestReferencesOfJudges:
    def test_of_a_prompt(self, small):
        judge = Judge(0)
        small(PROMPT, [Subject(RED, box=(0, 0, 10, 20)), TALL], judge=judge, output_type="latent")
        assert [each.size for each in judge.seen[0][2]] == [(10, 20), TALL.size]

    def test_of_a_plan_those_it_speaks_of_cut_to_its_boxes(self, small):
        """RED is 40 x 30 on a square: an eighth of the side above and below it is paper."""
        judge = Judge(0)
        plan = a_plan(prompt="image 2", subject_images=[TALL, RED]).replace_subject(2, box=(26, 26, 99, 74))
        small(plan, judge=judge, output_type="latent")
        ((_, asked, (reference,)),) = judge.seen
        assert asked == plan and reference.tobytes() == RED.crop((10, 5, 40, 25)).tobytes()

    def test_references_beside_a_plan(self, small):
        judge = Judge(0)
        small(a_plan(count=1, prompt="image 1"), RED, judge=judge, output_type="latent")
        assert [each.tobytes() for each in judge.seen[0][2]] == [RED.tobytes()]

    def test_none_of_encoded_subjects(self, small):
        judge = Judge(0)
        small(PROMPT, small.encode_subjects(RED), judge=judge, output_type="latent")
        assert judge.seen[0][2] is None


@pytest.fixture
def said(monkeypatch):
    """What the MLLM says of its pictures, instead of its random words; nothing once all is said."""
    answers = []
    monkeypatch.setattr(View, "departures", lambda self, plan: answers.pop(0) if answers else ())
    return answers


class Starts:
    """What each painting begins with: its prompts, latents and sigma."""

    def __init__(self, monkeypatch):
        self.calls, paint = [], SubjectPipeline._paint

        def recording(pipe, resolved, noise, on_step_end, start=1.0):
            self.calls.append((resolved.prompts, noise.clone(), start))
            return paint(pipe, resolved, noise, on_step_end, start)

        monkeypatch.setattr(SubjectPipeline, "_paint", recording)


class TestReflect:
    def test_stops_when_nothing_is_left(self, pipe, said):
        said += [("scene",), ()]
        out = painted(pipe, a_plan(subject_images=[RED, TALL]), reflect=5, generator=seeded_generators(1))
        assert [each.departures for each in out.rounds] == [[("scene",)], [()]]
        assert out.rounds[0].images[0].tobytes() != out.rounds[1].images[0].tobytes()

    def test_nothing_departs(self, pipe, said):
        plan = a_plan(subject_images=[RED, TALL])
        out = painted(pipe, plan, reflect=5, generator=seeded_generators(1))
        alone = painted(pipe, plan, generator=seeded_generators(1))
        assert torch.equal(out.images, alone.images) and [each.departures for each in out.rounds] == [[()]]

    def test_at_most_so_often(self, small, said):
        said += [("pose",)] * 9
        out = small(a_plan(subject_images=[RED, TALL]), reflect=2)
        assert [each.departures for each in out.rounds] == [[("pose",)]] * 3
        assert out.images[0].tobytes() == out.rounds[-1].images[0].tobytes()

    def test_starts_between_the_picture_and_fresh_noise_of_its_generator(self, pipe, said, monkeypatch):
        said += [("view",)]
        plan, starts = a_plan(subject_images=[RED, TALL]), Starts(monkeypatch)
        options = {"stages": "free", "generator": seeded_generators(8)}
        out = painted(pipe, plan, reflect=1, reflect_sigma=0.7, **options)
        first = painted(pipe, plan, stages="free", generator=seeded_generators(8)).images
        (generator,) = seeded_generators(8)
        shape = first.shape[1:]
        noise, fresh = (torch.randn(shape, generator=generator) for _ in range(2))
        assert torch.equal(starts.calls[0][1][0], noise)
        (prompts, begun, sigma) = starts.calls[1]
        assert torch.allclose(begun, 0.3 * first + 0.7 * fresh, atol=1e-5) and sigma == 0.7
        assert prompts == ("image 1 and image 2; view: 1 of image 1 top",)
        assert not torch.allclose(out.images, first, atol=1e-2)

    def test_from_pure_noise_it_is_the_corrected_plan_painted_anew(self, pipe, said):
        said += [("scene",)]
        plan = a_plan(subject_images=[RED, TALL])
        out = painted(pipe, plan, reflect=1, reflect_sigma=1.0, generator=seeded_generators(8))
        (generator,) = seeded_generators(8)
        torch.randn(out.images.shape[1:], generator=generator)
        assert torch.allclose(
            out.images, painted(pipe, corrected(plan, ("scene",)), generator=generator).images, atol=1e-4
        )

    def test_only_what_departs_is_painted_again(self, pipe, said, monkeypatch):
        """Two plans, two pictures of each: one picture of each is wrong, then one of them still is."""
        said += [(), ("scene",), ("subject", "pose"), (), (), ("pose",), ()]
        plans = [a_plan(subject_images=[RED, TALL]), a_plan(count=1, prompt="image 1", subject_images=[TALL])]
        starts = Starts(monkeypatch)
        out = painted(
            pipe, plans, reflect=3, num_images_per_prompt=2, negative_prompt=["a", "b"], guidance_scale=2.0,
            generator=seeded_generators(1, 2, 3, 4),
        )  # fmt: skip
        assert [each.departures for each in out.rounds] == [
            [(), ("scene",), ("subject", "pose"), ()], [(), (), ("pose",), ()], [()] * 4
        ]  # fmt: skip
        assert [call[0] for call in starts.calls[1:]] == [
            (
                "image 1 and image 2; scene: red plain",
                "image 1; subject: image 1, red, blue; pose: image 1 upright",
            ),
            ("image 1; pose: image 1 upright",),
        ]
        first = [each.images for each in out.rounds]
        assert first[0][0] is first[2][0] and first[0][3] is first[2][3] and first[1][1] is first[2][1]
        assert first[1][2].tobytes() != first[2][2].tobytes()

    def test_rounds_of_given_noise_come_again_with_their_generator(self, small, said):
        said += [("scene",), ("scene",)] * 2
        plan, noise = a_plan(subject_images=[RED, TALL]), torch.randn(1, 4, 8, 8)
        first, second = (
            painted(small, plan, reflect=1, latents=noise, generator=seeded_generators(5)).images for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_the_kept_candidate_is_improved(self, small, said, monkeypatch):
        said += [("scene",)]
        plan, starts = a_plan(subject_images=[RED, TALL]), Starts(monkeypatch)
        out = painted(small, plan, best_of=3, judge=Judge(0, 1, 0), reflect=1, generator=seeded_generators(1, 2, 3))
        kept = painted(small, plan, generator=seeded_generators(2)).images
        (generator,) = seeded_generators(2)
        _, fresh = (torch.randn(kept.shape[1:], generator=generator) for _ in range(2))
        expected = (1 - REFLECT_SIGMA) * kept + REFLECT_SIGMA * fresh
        assert torch.allclose(starts.calls[1][1], expected, atol=1e-4)
        assert len(out.rounds) == 2 and out.kept == [1]

    def test_a_subject_is_not_called_by_what_may_be_anothers_name(self, small, said):
        """The MLLM calls the cat of image 1 a hat, which is what the user calls image 2."""
        said += [("subject",)]
        plan = a_plan(subject_images=[Subject(RED, name="cat"), Subject(TALL, name="hat")], prompt="image 1")
        plan = plan.replace_subject(1, name="hat")
        out = painted(small, plan, reflect=1)
        assert len(out.rounds) == 2 and [each.reference for each in out.bindings[0]] == [1]

    def test_a_prompt_is_planned_first(self, pipe, said):
        out = painted(pipe, PROMPT, RED, reflect=1)
        assert out.plans == [pipe.reason(PROMPT, RED)]

    def test_in_the_mllms_own_words(self, pipe):
        out = painted(pipe, a_plan(subject_images=[RED, TALL]), reflect=1)
        assert 1 <= len(out.rounds) <= 2
        assert set(out.rounds[0].departures[0]) <= {"subject", "scene", "view", "pose"}

    def test_steps_that_are_left(self, small, said):
        """Of 4 steps shifted by 2.5 those that begin below .7, and one from .7 itself."""
        said += [("scene",)]
        shifted = [2.5 * s / (1 + 1.5 * s) for s in (1.0, 0.75, 0.5, 0.25)]
        levels = []
        small(
            a_plan(subject_images=[RED, TALL]), reflect=1, reflect_sigma=0.7, stages="free",
            callback_on_step_end=lambda pipe, step, timestep, tensors: levels.append(float(timestep) / 1000) or tensors,
        )  # fmt: skip
        assert levels == pytest.approx([*shifted, 0.7, *(s for s in shifted if s < 0.7)], abs=1e-4)


class TestEncodedOnce:
    """What rounds paint from and look at is encoded once in a call, by counting at the VAE and at the reader."""

    def test_of_whole_pictures(self, pipe, said, monkeypatch):
        said += [("scene",), ("scene",)]
        plan = a_plan(subject_images=[RED, TALL])
        counts, out = counted(pipe, monkeypatch), painted(pipe, plan, reflect=2)
        assert len(out.rounds) == 3 and counts == {"read": 2, "encoded": 2}

    def test_of_a_picture_that_is_cut(self, pipe, said, monkeypatch):
        """Painted from what is cut, looked at whole."""
        said += [("scene",), (), ("scene",)]
        plan = a_plan(count=1, prompt="image 1", view="top", pose="upright", subject_images=[RED])
        plan = plan.replace_subject(1, box=(26, 26, 99, 74))
        counts, out = counted(pipe, monkeypatch), painted(pipe, plan, reflect=2, num_images_per_prompt=2)
        assert len(out.rounds) == 3 and counts == {"read": 2, "encoded": 2}

    def test_a_correction_that_speaks_of_one_more(self, pipe, said, monkeypatch):
        said += [("view",)]
        plan = a_plan(prompt="image 2", view="left of image 1", subject_images=[RED, TALL])
        counts = counted(pipe, monkeypatch)
        painted(pipe, plan, reflect=1)
        assert counts == {"read": 1 + 2, "encoded": 1 + 2}

    def test_painted_as_without(self, pipe, said):
        plan = a_plan(count=1, prompt="image 1", subject_images=[RED]).replace_subject(1, box=(26, 26, 99, 74))
        out = painted(pipe, plan, reflect=1, generator=seeded_generators(1))
        assert torch.equal(out.images, painted(pipe, plan, generator=seeded_generators(1)).images)
        assert plan.embeds is None and out.plans == [plan]


class TestProgress:
    @pytest.fixture
    def bars(self, small, monkeypatch):
        bars = []

        def bar(total):
            bars.append(tqdm(total=total, file=StringIO()))
            return bars[-1]

        monkeypatch.setattr(small, "progress_bar", bar)
        return bars

    def test_of_judging(self, small, bars):
        """Of each prompt's candidates."""
        plans = [a_plan(count=1, prompt="image 1", subject_images=[each]) for each in (RED, TALL)]
        small(plans, best_of=3, judge="mllm", output_type="latent")
        assert [(bar.total, bar.n) for bar in bars] == [(4, 4), (3, 3), (3, 3)]

    def test_of_looking(self, small, bars, said):
        said += [("scene",), ()]
        small(a_plan(subject_images=[RED, TALL]), num_images_per_prompt=2, reflect=1, output_type="latent")
        looked = [bar for bar in bars if bar.total != 4]
        assert [(bar.total, bar.n) for bar in looked] == [(2, 2), (1, 1)]


class TestInterruption:
    @staticmethod
    def stop_after(count):
        seen = []

        def on_step_end(pipe, step, timestep, tensors):
            seen.append(step)
            pipe._interrupt = len(seen) >= count
            return tensors

        return on_step_end

    def test_while_candidates_are_painted(self, small):
        out = small(PROMPT, RED, best_of=3, judge=Judge(), reflect=0, callback_on_step_end=self.stop_after(2))
        assert len(out.images) == 1 and out.scores is None and out.kept is None

    def test_nothing_is_read_of_a_picture_that_is_not_whole(self, small, said):
        said += [("scene",)]
        plan = a_plan(subject_images=[RED, TALL])
        out = small(plan, reflect=2, callback_on_step_end=self.stop_after(1))
        assert out.rounds is None and said == [("scene",)]

    def test_a_round_that_is_not_whole_is_thrown_away(self, small, said):
        said += [("scene",)]
        plan = a_plan(subject_images=[RED, TALL])
        out = painted(small, plan, reflect=2, generator=seeded_generators(1), callback_on_step_end=self.stop_after(5))
        whole = painted(small, plan, generator=seeded_generators(1))
        assert torch.equal(out.images, whole.images) and len(out.rounds) == 1

    def test_while_candidates_are_judged(self, small, monkeypatch):
        """Between two of them; what was interrupted then stops no judge that is asked later."""
        plan, asked, yes = a_plan(subject_images=[RED, TALL]), [], View.yes

        def stopping(view, questions):
            asked.append(questions)
            small._interrupt = len(asked) == 2
            return yes(view, questions)

        monkeypatch.setattr(View, "yes", stopping)
        out = small([plan, plan], best_of=3, judge="mllm")
        assert len(out.images) == 2 and out.scores is None and out.kept is None and len(asked) == 2
        assert small.interrupt and len(MllmJudge(small)(out.images, plan, None)) == 2

    def test_by_a_judge(self, small):
        judge = Judge(0, 1)

        def stopping(*shown):
            small._interrupt = True
            return judge(*shown)

        out = small([PROMPT, "a dog"], best_of=2, judge=stopping, output_type="latent")
        assert len(out.images) == 2 and out.scores is None and len(judge.seen) == 1

    @pytest.mark.parametrize(("stop_at", "rounds"), [(1, None), (3, 1)], ids=["first look", "second look"])
    def test_while_pictures_are_looked_at(self, small, monkeypatch, stop_at, rounds):
        """Of two pictures, twice: a round that was not wholly looked at is thrown away."""
        looked, plan = [], a_plan(subject_images=[RED, TALL])

        def departures(view, plan):
            looked.append(1)
            small._interrupt = len(looked) == stop_at
            return ("scene",)

        monkeypatch.setattr(View, "departures", departures)
        options = {"num_images_per_prompt": 2, "reflect": 3}
        out = painted(small, plan, generator=seeded_generators(1, 2), **options)
        whole = painted(small, plan, generator=seeded_generators(1, 2), num_images_per_prompt=2)
        assert torch.equal(out.images, whole.images) and len(looked) == stop_at
        assert rounds is None if out.rounds is None else len(out.rounds) == rounds


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"best_of": 0}, "best_of=0"),
            ({"best_of": 2.0}, r"best_of=2\.0"),
            ({"best_of": 2, "generator": seeded_generators(1)}, "1 generators for 2 pictures"),
            ({"judge": "clip"}, "judge='clip': expected one of mllm, tower, or a function"),
            ({"judge": TowerJudge}, r"judge=TowerJudge is a class: expected a judge such as TowerJudge\(pipe\)"),
            ({"reasoning": "no"}, "reasoning='no': expected True or False"),
            ({"reasoning": 1}, "reasoning=1: expected True or False"),
            ({"reflect": -1}, "reflect=-1"),
            ({"reflect": True}, "reflect=True"),
            ({"reflect": 1, "reflect_sigma": 0}, "reflect_sigma=0"),
            ({"reflect": 1, "reflect_sigma": 1.5}, r"reflect_sigma=1\.5"),
            ({"reflect": 1, "latents": torch.zeros(1, 4, 8, 8)}, r"latents with reflect=1 and no generator"),
            ({"latents": torch.zeros(1, 4, 8, 8), "generator": 7}, "generator=7: expected torch.Generator"),
            ({"latents": torch.zeros(1, 4, 8, 8), "generator": seeded_generators(1, 2)}, "2 generators for 1 pic"),
        ],
    )
    def test_before_anything_is_computed(self, small, monkeypatch, options, words):
        monkeypatch.setattr(SubjectPipeline, "adapters", lambda *_: pytest.fail("work has begun"))
        with pytest.raises(ValueError, match=words):
            small(PROMPT, **options)

    @pytest.mark.parametrize(
        ("stages", "sigma", "words"),
        [
            ("paper", 0.8, r"reflect_sigma=0\.8: .*expected more than 0\.85"),
            ("paper", 0.85, r"reflect_sigma=0\.85: .*expected more than 0\.85"),
            ([Stage(0.5), Stage(0.3, semantic=0.0), Stage(0.0, semantic=0.0)], 0.4, r"expected more than 0\.5"),
            ([Stage(0.0, semantic=0.0)], 1.0, "expected stages with semantic above 0"),
        ],
    )
    def test_a_correction_that_no_stage_hears(self, small, monkeypatch, stages, sigma, words):
        monkeypatch.setattr(SubjectPipeline, "adapters", lambda *_: pytest.fail("work has begun"))
        for prompt in (PROMPT, a_plan(count=1, prompt="image 1")):
            with pytest.raises(ValueError, match=words):
                small(prompt, RED, reflect=1, reflect_sigma=sigma, stages=stages)

    def test_without_references_every_stage_hears(self, small, said):
        said += [("scene",)]
        options = {"reflect_sigma": 0.5, "stages": "paper"}
        assert len(small(a_plan(count=0, prompt="red", view="top", pose="as it is"), reflect=1, **options).rounds) == 2

    def test_a_stage_just_below_hears(self, small, said):
        said += [("scene",)]
        plan = a_plan(subject_images=[RED, TALL])
        assert len(small(plan, reflect=1, reflect_sigma=0.86, stages="paper").rounds) == 2

    def test_a_plan_that_cannot_be_said_again(self, small, monkeypatch):
        monkeypatch.setattr(SubjectPipeline, "_paint", lambda *_: pytest.fail("painting has begun"))
        with pytest.raises(ValueError, match=r"'image 7'"):
            small(a_plan(subject_images=[RED, TALL], pose="as in image 7"), reflect=1)

    @pytest.mark.parametrize("options", [{"reflect": 1}, {"best_of": 2}, {"judge": "mllm"}], ids=str)
    def test_a_plan_whose_prompt_was_edited_and_its_decisions_were_not(self, small, monkeypatch, options):
        plan = a_plan(subject_images=[RED, TALL]).replace(prompt="image 1 and image 2 on teal")
        with monkeypatch.context() as patch:
            patch.setattr(SubjectPipeline, "adapters", lambda *_: pytest.fail("work has begun"))
            words = r"on teal' was edited.*scene='red plain', view=.*asked of the.*replace\(prompt=..., scene=..."
            with pytest.raises(ValueError, match=words):
                small(plan, **options)
        assert small(plan, judge="tower", output_type="latent").kept == [0]
        assert small(plan.replace(scene="teal plain"), output_type="latent", **options).plans

    def test_a_plan_that_was_edited_and_what_hides_the_mllm(self, small):
        plan = a_plan(subject_images=[RED, TALL]).replace(prompt="image 1 and image 2 on teal")
        with pytest.raises(ValueError, match="was edited and its decisions were not"):
            small(plan, judge=lambda *shown: MllmJudge(small)(*shown))

    @pytest.mark.parametrize("said", [None, [], [0.5, 0.5], [Score(prompt=1)] * 3, 0.5])
    def test_of_a_judge_that_says_something_else(self, small, said):
        with pytest.raises(ValueError, match=r"of 2 pictures: expected a list with a Score for each"):
            small(PROMPT, RED, best_of=2, judge=lambda *_: said)


def test_rounds_are_pictures_of_their_latents(small, said):
    out = painted(small, a_plan(subject_images=[RED, TALL]), reflect=1)
    with torch.no_grad():
        pixels = pixels_from_latents(small.vae, out.images)[0].permute(1, 2, 0)
    picture = torch.tensor(list(out.rounds[-1].images[0].tobytes())).reshape(pixels.shape)
    assert torch.allclose(picture / 127.5 - 1, pixels.clamp(-1, 1), atol=0.01)
