"""The server is as it describes itself: schemathesis reads the description and tries what it allows, and what not."""

import pytest
from tiny_engine import serving
from tiny_pipeline import tiny_pipeline

from subjectgen.serve.limits import RequestLimits

schemathesis = pytest.importorskip("schemathesis", reason="there is none for Python 3.10")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

AS_DESCRIBED = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_its_description_allows_or_not(pipe, mode):
    with serving(pipe, RequestLimits(max_images=2, max_steps=1, max_pixels=48 * 48)) as (_, url):
        operations = [each.ok() for each in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
        assert len(operations) == 11
        for operation in operations:
            if mode is GenerationMode.POSITIVE or operation.body:  # nothing is wrong with no body at all
                answered_as_described(operation, mode)


def answered_as_described(operation, mode):
    """Requests that its description allows, or not: an answer that the description knows, and never a failure."""

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(checks=AS_DESCRIBED)

    check()
