"""The server is as it describes itself: schemathesis reads the description and tries what it allows, and what not."""

import os
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest
import requests
from tiny_engine import serving
from tiny_pipeline import tiny_pipeline

import subjectgen
from subjectgen.serve.limits import RequestLimits

schemathesis = pytest.importorskip("schemathesis", reason="there is none for Python 3.10")
from hypothesis import HealthCheck, Phase, given, reject, settings, strategies  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

ALL = list(HealthCheck)
AS_DESCRIBED = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


EXAMPLES = int(os.environ.get("SUBJECTGEN_EXAMPLES", 60))  # of all operations together that have a body
TELLTALES = ("Traceback", "object at 0x", str(Path(subjectgen.__file__).parent))  # of what goes on inside


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def server(pipe):
    with serving(pipe, RequestLimits(max_images=2, max_steps=1, max_pixels=48 * 48)) as (_, url):
        yield url, [each.ok() for each in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]


def test_what_its_description_allows(server):
    _, operations = server
    assert len(operations) == 11
    for operation in operations:
        answered(operation, GenerationMode.POSITIVE, 20)


def test_what_its_description_does_not_allow(server):
    """SUBJECTGEN_EXAMPLES=10000 python -m pytest -s tests/test_openapi.py: as many, and what became of them."""
    url, operations = server
    with_bodies = [operation for operation in operations if operation.body]
    number = -(-EXAMPLES // len(with_bodies))
    told = sum((answered(operation, GenerationMode.NEGATIVE, number // 10 + 1) for operation in with_bodies), Counter())
    before = kept()
    told += sum((answered(operation, GenerationMode.NEGATIVE, number) for operation in with_bodies), Counter())
    print(f"{told.total()} bodies: {dict(told)}; {before} before, {kept()} after")
    assert told.total() >= EXAMPLES and told[400] > 0.8 * told.total()
    assert set(told) <= {200, *range(400, 500)}  # 200: what is written otherwise than described, and well understood
    assert kept()["threads"] <= before["threads"] + 2 and kept()["files"] <= before["files"] + 2
    assert httpx.get(f"{url}/v1/jobs").json() == []


def answered(operation, mode, number):
    """How many requests that its description allows, or not, got which status: one that the description knows."""
    told, session = Counter(), requests.Session()

    @settings(max_examples=number, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=ALL)
    @given(case=cases(operation, mode))
    def check(case):
        answer = case.call_and_validate(checks=AS_DESCRIBED, session=session)
        assert not any(each in answer.text for each in TELLTALES)
        told[answer.status_code] += 1

    with session:
        check()
    return told


@strategies.composite
def cases(draw, operation, mode):
    try:
        return draw(operation.as_strategy(generation_mode=mode))
    except ValueError as error:  # of a thousand bodies schemathesis makes one that it cannot compare with others
        assert "Unsupported type: 'Binary'" in str(error)
        reject()


def kept():
    """What a server that forgets nothing would have more and more of."""
    here = psutil.Process()
    return {"threads": here.num_threads(), "files": here.num_fds(), "MiB": here.memory_info().rss // 2**20}
