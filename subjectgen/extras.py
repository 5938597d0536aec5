"""Packages that only some models need, and the extra of subjectgen that brings them."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.requirements import Requirement


class MissingExtraError(ImportError):
    """A package is not installed, or too old, that only some models need."""


def require(extra: str, *packages: str) -> None:
    """Raise MissingExtraError, naming the extra to install, unless all these ("name" or "name>=1.2") are here."""
    requirements = [Requirement(package) for package in packages]
    missing = [each.name for each in requirements if find_spec(each.name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} is not installed: expected the packages of the extra '{extra}'. "
            f"Install them with `pip install 'subjectgen[{extra}]'`."
        )
    for each in requirements:
        if each.specifier:
            _check_version(extra, each)


def installed_version(package: str) -> str:
    """Its version, for people."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _check_version(extra: str, requirement: Requirement) -> None:
    installed = version(requirement.name)
    if not requirement.specifier.contains(installed, prereleases=True):
        raise MissingExtraError(
            f"{requirement.name} {installed} is installed: expected {requirement}. "
            f"Install it with `pip install 'subjectgen[{extra}]'`."
        )
