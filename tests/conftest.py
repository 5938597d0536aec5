"""Tiny components, built once per session: tests must not change them."""

import jaxtyping
import pytest
from diffusers.models.attention_dispatch import attention_backend
from PIL import Image
from tiny import tiny_aggregator, tiny_mllm, tiny_processor

from subjectgen.models.mllm.internvl import InternVLReader


@pytest.fixture(scope="session")
def mllm():
    return tiny_mllm()


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def reader(mllm, processor):
    return InternVLReader(mllm, processor)


@pytest.fixture(scope="session")
def aggregator():
    return tiny_aggregator()


@pytest.fixture(scope="session")
def references():
    """Three that differ in every pixel, none of them square."""
    gradient = Image.linear_gradient("L").resize((50, 40))
    flat = Image.new("L", gradient.size, 128)
    return [
        Image.merge("RGB", (gradient, flat, flat)),
        Image.merge("RGB", (flat, gradient, flat)),
        Image.merge("RGB", (flat, flat, gradient)),
    ]


@pytest.fixture(autouse=True)
def stock_attention():
    """diffusers keeps the last backend that any transformer was given for all that were given none."""
    with attention_backend("native"):
        yield


@pytest.fixture
def unchecked():
    """Without shape checks, which cannot be compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
