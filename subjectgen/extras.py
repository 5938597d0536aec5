"""Packages that only some models need, and the extra of subjectgen that brings them."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.requirements import Requirement

NOT_INSTALLED = "not installed"


class MissingExtraError(ImportError):
    """A package is not installed, or too old, that only some models need."""


def require(extra: str, *packages: str) -> None:
    """Raise MissingExtraError, naming the extra to install, unless all these ("name" or "name>=1.2") are here."""
    requirements = [Requirement(package) for package in packages]
    missing = [each.name for each in requirements if not _is_here(each)]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} is not installed: expected the packages of the extra '{extra}'. "
            f"Install them with `pip install 'subjectgen[{extra}]'`."
        )
    for each in requirements:
        if each.specifier:
            _check_version(extra, each)


def _is_here(requirement: Requirement) -> bool:
    """Whether it can be imported and, if a version is asked for, has one; a stray folder of its name is no package."""
    spec = find_spec(requirement.name)
    if spec is None or spec.origin is None:
        return False
    return not requirement.specifier or installed_version(requirement.name) != NOT_INSTALLED


def installed_version(package: str) -> str:
    """Its version, for people."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def _check_version(extra: str, requirement: Requirement) -> None:
    installed = version(requirement.name)
    if not requirement.specifier.contains(installed, prereleases=True):
        raise MissingExtraError(
            f"{requirement.name} {installed} is installed: expected {requirement}. "
            f"Install it with `pip install 'subjectgen[{extra}]'`."
        )
