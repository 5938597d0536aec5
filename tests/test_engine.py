"""The engine: a job's picture is its single call's; who waits, who is refused or stopped, who pays for an error."""

import ctypes
import threading
import time

import numpy as np
import pytest
import torch
from tiny_engine import Gate, held
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

from subjectgen import Stage, Subject
from subjectgen.engine import (
    DeadlineExceeded,
    Encoding,
    Engine,
    EngineClosed,
    HashedSubjects,
    Job,
    JobCancelled,
    LineFull,
    Painting,
    WorkerDied,
)
from subjectgen.engine.open import open_pipelines
from subjectgen.engine.paint import Reporter
from subjectgen.engine.subjects import SubjectCache, num_bytes
from subjectgen.generate.stages import STAGE_PRESETS
from subjectgen.references import key_of

RED, BLUE = picture("red"), picture("blue", (30, 40))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def gate(pipe):
    return Gate(pipe)


@pytest.fixture
def engine(gate):
    with Engine(lambda _: gate) as engine:
        yield engine
        gate.open.set()


def levels(image):
    """Of 255."""
    return torch.tensor(list(image.tobytes()), dtype=torch.float)


def assert_same_picture(one, other):
    assert one.size == other.size
    assert (levels(one) - levels(other)).abs().max() <= 1  # two roundings of nearly equal numbers


class TestResult:
    def test_is_that_of_a_single_call_whoever_is_painted_beside(self, engine, gate):
        held(engine, gate)
        works = [
            Painting(prompt="a red cat", subjects=RED, seed=1),
            Painting(prompt="cat", seed=2),
            Painting(prompt="a blue cat", subjects=[RED, BLUE], seed=3, negative_prompt="red"),
        ]
        jobs = engine.submit_all(works)
        gate.open.set()
        painted = [job.result(20) for job in jobs]
        assert gate.calls[1:] == [["a red cat", "cat"], ["a blue cat"]]
        alone = [
            gate.pipe(w.prompt, [each], negative_prompt=w.negative_prompt, generator=seeded_generators(w.seed)).images
            for w, each in zip(works, ([RED], [], [RED, BLUE]), strict=True)
        ]
        for one, (other,) in zip(painted, alone, strict=True):
            assert_same_picture(one.image, other)
        assert [one.seed for one in painted] == [1, 2, 3]
        assert [one.painted_together for one in painted] == [2, 2, 1]

    @pytest.mark.parametrize("negative_prompt", ["", "blue"])
    def test_goes_away_from_what_the_checkpoint_does(self, negative_prompt):
        pipe = tiny_pipeline(negative="no_condition", guidance_scale=3.0)
        (alone,) = pipe("a red cat", RED, negative_prompt=negative_prompt, generator=seeded_generators(1)).images
        with Engine(lambda _: pipe) as engine:
            work = Painting(prompt="a red cat", subjects=RED, negative_prompt=negative_prompt, seed=1)
            assert_same_picture(engine.submit(work).result(20).image, alone)

    def test_other_settings_are_other_calls_and_the_first_goes_first(self, engine, gate):
        held(engine, gate)
        sizes = [64, 48, 64]
        jobs = [engine.submit(Painting(prompt=f"{k}", width=size)) for k, size in enumerate(sizes)]
        gate.open.set()
        assert [job.result(20).image.width for job in jobs] == sizes
        assert gate.calls[1:] == [["0", "2"], ["1"]]

    def test_no_more_at_once_than_allowed(self, gate):
        with Engine(lambda _: gate, max_batch=2) as engine:
            held(engine, gate)
            jobs = engine.submit_all([Painting(prompt=f"{k}") for k in range(5)])
            gate.open.set()
            assert [job.result(20).painted_together for job in jobs] == [2, 2, 2, 2, 1]

    def test_company_is_waited_for(self, gate):
        gate.open.set()
        with Engine(lambda _: gate, gather_seconds=5, max_batch=2) as engine:
            engine.wait_ready(20)
            jobs = [engine.submit(Painting(prompt=f"{k}")) for k in range(2)]
            assert [job.result(4).painted_together for job in jobs] == [2, 2]

    def test_phrases_that_mean_references(self, engine, gate):
        gate.open.set()
        job = engine.submit(Painting(prompt="the shoe on red", subjects=Subject(RED, name="shoe")))
        assert [(each.phrase, each.reference) for each in job.result(20).bindings] == [("shoe", 1)]

    def test_two_devices_two_pipelines(self, pipe):
        pipes = {"cpu": tiny_pipeline(), "cpu:0": tiny_pipeline()}
        with Engine(pipes.__getitem__, list(pipes)) as engine:
            engine.wait_ready(20)
            embeds = pipe.encode_subjects(RED)
            jobs = [engine.submit(Painting(prompt="a cat", subjects=embeds, seed=5)) for _ in range(4)]
            one, *others = [job.result(20).image for job in jobs]
            assert engine.state.ready == 2
        for other in others:
            assert_same_picture(one, other)
        assert not embeds.identity.kv  # two devices never fill the same memory


class TestSubjects:
    def test_equal_ones_are_encoded_once(self, engine, gate):
        gate.open.set()
        jobs = [engine.submit(Painting(prompt="a cat", subjects=images)) for images in (RED, [RED.copy()], BLUE, RED)]
        for job in jobs:
            job.result(20)
        state = engine.state
        assert (state.subjects_encoded, state.subjects_reused) == (2, 2)

    def test_encoding_is_a_job_and_its_subject_paints_the_same(self, engine, gate):
        gate.open.set()
        embeds = engine.submit(Encoding(subjects=[RED, BLUE])).result(20)
        assert embeds.num_references == 2
        painted = engine.submit(Painting(prompt="a cat", subjects=[RED, BLUE], seed=1)).result(20)
        (alone,) = gate.pipe("a cat", [RED, BLUE], generator=seeded_generators(1)).images
        assert_same_picture(painted.image, alone)
        assert engine.state.subjects_encoded == 1

    def test_what_is_seen_and_the_name_tell_them_apart(self, tmp_path):
        RED.save(tmp_path / "red.png")
        same = [RED, RED.copy(), tmp_path / "red.png", Subject(RED), Subject(RED, box=(0, 0, *RED.size))]
        assert len({HashedSubjects.of(each).key for each in same}) == 1
        others = [BLUE, [RED, RED], Subject(RED, name="shoe"), Subject(RED, box=(0, 0, 9, 9))]
        assert len({HashedSubjects.of(each).key for each in [RED, *others]}) == 5

    def test_a_name_is_not_read_as_more_subjects(self):
        """Who chooses one must not give others of the same line a subject of his."""
        pair = [Subject(RED, name="shoe"), Subject(BLUE, name="cup")]
        forged = Subject(RED, name=f"shoe\n{key_of(BLUE)} cup")
        assert HashedSubjects.of(pair).key != HashedSubjects.of(forged).key

    def test_the_least_recently_used_are_given_up(self, pipe):
        one, two = HashedSubjects.of(RED), HashedSubjects.of(BLUE)
        cache = SubjectCache(pipe, max_bytes=num_bytes(pipe.encode_subjects(RED)) * 3 // 2)
        for subjects in (one, two, one):
            cache(subjects)
        cache.trim()
        cache(one)
        assert cache.num_encoded == 2
        cache(two)
        assert cache.num_encoded == 3

    def test_bytes_grow_with_what_painting_keeps(self, pipe):
        embeds = pipe.encode_subjects(RED)
        before = num_bytes(embeds)
        tensors = [getattr(embeds.prefix, name) for name in ("states", "is_image", "keys", "values")]
        assert before == sum(each.numel() * each.element_size() for each in [*tensors, *embeds.identity.tokens])
        pipe("a cat", embeds)
        assert num_bytes(embeds) > before


class TestProgress:
    def test_every_step_with_its_stage(self, engine, gate):
        stages = [Stage(0.9, identity=0.0), Stage(0.0)]
        gate.open.set()
        job = engine.submit(Painting(prompt="a cat", subjects=RED, stages=stages, num_inference_steps=6))
        told = list(job.events())
        assert [each.phase for each in told][-7:] == ["painting"] * 6 + ["done"]
        steps = [each for each in told if each.phase == "painting"]
        assert [(each.step, each.steps) for each in steps] == [(k, 6) for k in range(1, 7)]
        begun = [float(t) / 1000 for t in gate.pipe.scheduler.timesteps]
        assert [each.stage for each in steps] == [stages[0] if sigma >= 0.9 else stages[1] for sigma in begun]
        assert {each.stage for each in steps} == set(stages)

    def test_of_the_checkpoints_own_stages(self, pipe):
        reporter = Reporter(pipe, [Job(Painting(prompt="a"))])
        assert reporter._stages == STAGE_PRESETS["paper"]

    def test_a_preview_is_where_a_straight_way_leads(self, engine, gate, monkeypatch):
        """A constant velocity leads to the picture itself, from every step."""
        monkeypatch.setattr(
            "subjectgen.pipeline.guided", lambda *_: lambda _: lambda tokens, _: torch.full_like(tokens, 0.5)
        )
        gate.open.set()
        job = engine.submit(Painting(prompt="a cat", seed=1, preview_every=2, num_inference_steps=6))
        previews = {each.step: each.preview for each in job.events() if each.preview}
        assert set(previews) == {2, 4}
        for preview in previews.values():
            assert_same_picture(preview, job.result().image)

    def test_late_listeners_hear_the_latest(self, engine, gate):
        gate.open.set()
        job = engine.submit(Painting(prompt="a cat"))
        job.result(20)
        assert [each.phase for each in job.events()] == ["done"]

    def test_a_listener_that_fails_fails_its_job_alone(self, engine, gate):
        held(engine, gate)
        jobs = engine.submit_all([Painting(prompt=f"{k}") for k in range(2)])

        def listener(progress):
            if progress.step:
                raise RuntimeError("the listener's own fault")

        jobs[0].listen(listener)
        others = jobs[0].events()  # hear of the end all the same
        gate.open.set()
        assert [each.phase for each in others][-1] == "done"
        with pytest.raises(RuntimeError, match="own fault"):
            jobs[0].result(20)
        assert jobs[1].result(20).image


class TestStopping:
    def test_cancel_stops_within_a_step(self, engine, gate):
        job = held(engine, gate)
        assert job.cancel()
        with pytest.raises(JobCancelled, match=job.id):
            job.result(0)
        gate.open.set()
        assert engine.submit(Painting(prompt="next", num_inference_steps=1)).result(20).image
        assert gate.steps == 1 + 1  # of the cancelled job no second step

    def test_others_of_the_same_call_go_on(self, engine, gate):
        held(engine, gate)
        jobs = engine.submit_all([Painting(prompt=f"{k}") for k in range(2)])
        jobs[0].listen(lambda progress: progress.step == 1 and jobs[0].cancel())
        gate.open.set()
        assert jobs[1].result(20).painted_together == 2
        with pytest.raises(JobCancelled):
            jobs[0].result(0)

    def test_what_has_ended_stays_ended(self, engine, gate):
        gate.open.set()
        job = engine.submit(Painting(prompt="a cat"))
        painted = job.result(20)
        assert not job.cancel()
        assert job.result() is painted

    def test_cancelled_in_line_it_is_never_painted_and_leaves_its_place(self, gate):
        with Engine(lambda _: gate, max_waiting=1) as engine:
            held(engine, gate)
            engine.submit(Painting(prompt="never")).cancel()
            job = engine.submit(Painting(prompt="instead"))
            gate.open.set()
            job.result(20)
        assert gate.calls == [["held"], ["instead"]]

    def test_deadline_in_line_and_while_painting(self, engine, gate):
        job = engine.submit(Painting(prompt="held"), timeout=0.2)
        waiting = engine.submit(Painting(prompt="waits", height=48), timeout=0.2)
        assert gate.reached.wait(20)
        for each in (job, waiting):
            with pytest.raises(DeadlineExceeded, match=r"not done within 0\.2 s"):
                each.result(20)
        gate.open.set()
        assert engine.submit(Painting(prompt="next"), timeout=20).result(20).image
        assert gate.calls == [["held"], ["next"]]


class TestLine:
    def test_full(self, gate):
        with Engine(lambda _: gate, max_waiting=2) as engine:
            held(engine, gate)
            engine.submit(Painting(prompt="1"))
            with pytest.raises(LineFull, match="1 jobs are waiting and at most 2 may"):
                engine.submit_all([Painting(prompt="2"), Painting(prompt="3")])
            engine.submit(Painting(prompt="2"))
            with pytest.raises(LineFull) as refused:
                engine.submit(Painting(prompt="3"))
            assert refused.value.wait_seconds >= 1
            assert engine.state.waiting == 2
            gate.open.set()

    def test_the_wait_is_estimated_from_what_jobs_took(self, gate):
        with Engine(lambda _: gate, max_waiting=1) as engine:
            held(engine, gate)
            for _ in range(50):
                engine._line.note_pace(2, 20.0)  # ten seconds each
            engine.submit(Painting(prompt="1"))
            with pytest.raises(LineFull) as refused:
                engine.submit(Painting(prompt="2"))
            assert refused.value.wait_seconds == pytest.approx(10, rel=0.01)
            gate.open.set()

    def test_close_does_what_waits(self, gate):
        with Engine(lambda _: gate) as engine:
            jobs = [held(engine, gate), engine.submit(Painting(prompt="waits"))]
            gate.open.set()
        assert all(job.result(0).image for job in jobs)
        assert engine.state.workers == 0
        with pytest.raises(EngineClosed, match="closed"):
            engine.submit(Painting(prompt="late"))

    def test_abort_ends_what_waits_and_what_runs(self, gate):
        engine = Engine(lambda _: gate)
        jobs = [held(engine, gate), engine.submit(Painting(prompt="waits"))]
        with pytest.raises(TimeoutError, match=r"not done within 0\.1 s"):
            engine.close(timeout=0.1)
        gate.open.set()
        engine.close(drain=False, timeout=20)
        for job in jobs:
            with pytest.raises(EngineClosed):
                job.result(0)

    def test_an_error_in_the_block_aborts(self, gate):
        with pytest.raises(ZeroDivisionError), Engine(lambda _: gate) as engine:
            job = held(engine, gate)
            threading.Timer(0.2, gate.open.set).start()
            _ = 1 / 0
        with pytest.raises(EngineClosed):
            job.result(0)


class TestErrors:
    def test_go_to_the_job_that_caused_them(self, engine, gate):
        held(engine, gate)
        works = [Painting(prompt="a cat", seed=1), Painting(prompt="image 3 on red", subjects=RED)]
        jobs = engine.submit_all(works)
        gate.open.set()
        with pytest.raises(ValueError, match="image 3"):
            jobs[1].result(20)
        painted = jobs[0].result(20)
        (alone,) = gate.pipe("a cat", generator=seeded_generators(1)).images
        assert_same_picture(painted.image, alone)

    def test_of_encoding_too(self, engine, gate):
        held(engine, gate)
        jobs = engine.submit_all([Painting(prompt="a cat", subjects=[RED] * 4), Painting(prompt="a cat")])
        gate.open.set()
        with pytest.raises(ValueError, match="at most 3"):
            jobs[0].result(20)
        assert jobs[1].result(20).image

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"prompt": " "}, "prompt is empty"),
            ({"prompt": 5}, "prompt=5"),
            ({"prompt": "a", "seed": -1}, "seed=-1"),
            ({"prompt": "a", "height": 0}, "height=0"),
            ({"prompt": "a", "num_inference_steps": True}, "num_inference_steps=True"),
            ({"prompt": "a", "guidance_scale": "2"}, "guidance_scale='2'"),
            ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale=nan: expected a finite number"),
            ({"prompt": "a", "stages": "slow"}, "paper, free, faithful"),
            ({"prompt": "a", "subjects": b"png"}, "is not an image"),
        ],
    )
    def test_what_no_checkpoint_could_paint_is_no_work(self, wrong, words):
        with pytest.raises(ValueError, match=words):
            Painting(**wrong)

    def test_numbers_of_numpy(self, engine, gate):
        gate.open.set()
        one, two = (np.int64(each) for each in (1, 2))
        painted = engine.submit(Painting(prompt="a cat", seed=one, num_inference_steps=two)).result(20)
        (alone,) = gate.pipe("a cat", generator=seeded_generators(1), num_inference_steps=2).images
        assert_same_picture(painted.image, alone)
        assert type(painted.seed) is int

    def test_a_worker_that_dies_loses_only_what_it_has(self, gate):
        with Engine(lambda _: gate) as engine:
            job, waiting = held(engine, gate), engine.submit(Painting(prompt="waits", seed=1))
            worker = engine._workers[0]
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
            gate.open.set()
            with pytest.raises(WorkerDied, match="died of SystemExit"):
                job.result(20)
            assert waiting.result(20).image
            assert engine.state.workers == 1
            assert engine._workers[0] is not worker

    def test_a_job_that_workers_die_of_takes_no_other_with_it(self, pipe):
        class Poisoned(Gate):
            def __call__(self, prompts, *given, **options):
                if "poison" in prompts:
                    self.calls.append(prompts)
                    raise SystemExit
                return super().__call__(prompts, *given, **options)

        (gate := Poisoned(pipe)).open.set()
        with Engine(lambda _: gate, gather_seconds=5, max_batch=3) as engine:
            engine.wait_ready(20)
            jobs = engine.submit_all([Painting(prompt=prompt) for prompt in ("a", "poison", "b")])
            with pytest.raises(WorkerDied, match="nothing else was lost"):
                jobs[1].result(20)
            assert [job.result(20).painted_together for job in (jobs[0], jobs[2])] == [1, 1]
            assert gate.calls == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
            assert engine.state.workers == 1

    def test_a_pipeline_that_cannot_be_loaded(self):
        def load(_):
            time.sleep(0.1)
            raise OSError("no such weights")

        with Engine(load, ["cpu", "cpu:0"]) as engine:
            job = engine.submit(Painting(prompt="a cat"))
            with pytest.raises(EngineClosed, match="no such weights"):
                engine.wait_ready(20)
            with pytest.raises(EngineClosed, match="no such weights"):
                job.result(20)
            with pytest.raises(EngineClosed, match="no such weights"):
                engine.submit(Painting(prompt="a cat"))
            with pytest.raises(EngineClosed, match="no such weights"):  # also once all threads have ended
                engine.wait_ready(0)

    def test_no_pipeline_stays_on_other_devices(self, pipe, monkeypatch):
        def load(_, *, device):
            if device == "b":
                raise OSError("no weights")
            return pipe

        monkeypatch.setattr("subjectgen.engine.open.load_quietly", load)
        with pytest.raises(OSError, match="no weights"):
            open_pipelines("tiny", ["a", "b"], {})
        assert "subjectgen worker on a" not in [thread.name for thread in threading.enumerate()]

    def test_an_engine_of_nothing(self):
        with pytest.raises(ValueError, match="at least one of each"):
            Engine(lambda _: None, [])
