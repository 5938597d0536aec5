"""What pyproject.toml promises of versions is what `make test-lowest` installs; what is too old says so."""

import json
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tiny_pipeline import tiny_pipeline

import subjectgen
from subjectgen import SubjectPipeline, WeightsError
from subjectgen.extras import MissingExtraError, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
BY_HAND = {"torch", "torchvision", "xformers", "ray", "gradio", "playwright"}  # large, or newer than floors of others


def floors(extra: str) -> dict[str, str]:
    """The lowest version of each package that an extra names, "" for what is always there."""
    pairs = [(each.name, bound) for each in map(Requirement, EXTRAS[extra]) for bound in each.specifier]
    return {name: bound.version for name, bound in pairs if bound.operator == ">=" and name not in BY_HAND}


def pins(file: str) -> dict[str, str]:
    """The version of each package, of lines such as "diffusers==0.40.0  # why"."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    pairs = dict(line.split("==") for line in lines if line)
    return {name: version for name, version in pairs.items() if name not in BY_HAND}


LOWEST, LOWEST_QWEN = pins("constraints-lowest.txt"), pins("constraints-lowest-qwen.txt")


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_floor_is_run(extra: str):
    run = LOWEST | LOWEST_QWEN if extra == "qwen" else LOWEST
    assert {name: Version(run[name]) for name in floors(extra)} == {
        name: Version(version) for name, version in floors(extra).items()
    }


def test_what_is_pinned_is_installed():
    """`make test-lowest` installs the package and its extra "test"."""
    assert LOWEST.keys() == floors("").keys() | floors("test").keys()
    assert LOWEST_QWEN.keys() <= LOWEST.keys()


def test_no_upper_caps():
    requirements = [Requirement(line) for lines in EXTRAS.values() for line in lines]
    assert {bound.operator for each in requirements for bound in each.specifier} == {">="}


def test_new_enough():
    require("qwen", "diffusers>=0.40", "torch")


def test_too_old():
    expected = (
        r"diffusers \S+ is installed: expected diffusers>=99\. Install it with `pip install 'subjectgen\[qwen\]'`"
    )
    with pytest.raises(MissingExtraError, match=expected):
        require("qwen", "diffusers>=99")


@pytest.mark.parametrize("package", ["gradiosaurus>=6", "gradiosaurus"])
@pytest.mark.parametrize("stray", ["gradiosaurus/notes.txt", "gradiosaurus.py"])
def test_what_has_the_name_of_a_package_alone_is_none(tmp_path, monkeypatch, package, stray):
    (file := tmp_path / stray).parent.mkdir(exist_ok=True)
    file.touch()
    monkeypatch.syspath_prepend(tmp_path)
    if (package, stray) != ("gradiosaurus", "gradiosaurus.py"):  # which can be imported, and no version is asked for
        with pytest.raises(MissingExtraError, match=r"gradiosaurus is not installed.*'subjectgen\[web\]'"):
            require("web", package)


def test_qwen_says_which_diffusers_it_needs(monkeypatch):
    monkeypatch.setattr("subjectgen.extras.version", lambda name: "0.40.0")
    expected = rf"diffusers 0\.40\.0 is installed: expected diffusers>={floors('qwen')['diffusers']}\. "
    with pytest.raises(MissingExtraError, match=expected):
        subjectgen.load("qwen-image-2.1")


def test_a_checkpoint_of_a_later_diffusers(tmp_path, monkeypatch):
    """In a folder, and in a repository before it is downloaded."""
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderOfTomorrow"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    expected = r"vae: diffusers \S+ has no AutoencoderOfTomorrow; .*`pip install --upgrade diffusers`"
    monkeypatch.setattr("subjectgen.hub.fetch", lambda *_, **__: tmp_path)
    monkeypatch.setattr(SubjectPipeline, "download", lambda *_, **__: pytest.fail("downloading"))
    for name in (tmp_path, "someone/tomorrow"):
        with pytest.raises(WeightsError, match=expected):
            SubjectPipeline.from_pretrained(name)
