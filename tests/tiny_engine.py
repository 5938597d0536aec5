"""An engine on a tiny pipeline that waits for a sign, and a server before it."""

import threading
import time
from contextlib import contextmanager
from io import BytesIO

import uvicorn

from subjectgen.engine import Engine, Painting
from subjectgen.engine.facts import ModelFacts
from subjectgen.serve.app import create_app


class Gate:
    """A pipeline that waits at each step from this one on, so that what comes meanwhile is sure to be in line.

    Once it is open it waits no more.
    """

    def __init__(self, pipe, step=0):
        self.pipe, self.step, self.reached, self.open = pipe, step, threading.Event(), threading.Event()
        self.config, self.calls, self.steps = pipe.config, [], 0

    def encode_subjects(self, images):
        return self.pipe.encode_subjects(images)

    def __call__(self, prompts, subjects, *, callback_on_step_end, **options):
        self.calls.append(prompts)

        def on_step_end(pipe, step, *given):
            self.steps += 1
            if step >= self.step:
                self.reached.set()
                assert self.open.wait(20)
            return callback_on_step_end(pipe, step, *given)

        return self.pipe(prompts, subjects, callback_on_step_end=on_step_end, **options)


def held(engine, gate):
    """The device is busy with this job until the gate opens."""
    job = engine.submit(Painting(prompt="held", height=48))
    assert gate.reached.wait(20)
    return job


@contextmanager
def serving(pipe, limits=None, api_key=None, **line):
    """The engine, and the address of a server before it, which has ended after the block."""
    painter = pipe.pipe if isinstance(pipe, Gate) else pipe
    engine = Engine(lambda _: pipe, **line)
    app = create_app(engine, ModelFacts.of(painter, "tiny"), limits, api_key=api_key)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield engine, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def file_of(picture, kind="PNG"):
    """The bytes of a picture's file."""
    picture.save(file := BytesIO(), kind)
    return file.getvalue()
