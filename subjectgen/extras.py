"""Packages that only some models need, and the extra of subjectgen that brings them."""

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A package is not installed that only some models need."""


def require(extra: str, *packages: str) -> None:
    """Raise MissingExtraError, naming the extra to install, unless all these packages are here."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} is not installed: expected the packages of the extra '{extra}'. "
            f"Install them with `pip install 'subjectgen[{extra}]'`."
        )
