"""Linking our pack into a ComfyUI that is already on this machine."""

import re
from pathlib import Path

from packaging.version import Version

from subjectgen.weights import find_folder

PACK = "comfyui_pack"
NAME = "subjectgen"  # of the link in custom_nodes
VERSION_FILE = "comfyui_version.py"
LOWEST = Version("0.10.0")  # earlier ones lack inputs that grow


def install(comfyui: Path) -> Path:
    """Link the pack into the custom_nodes of this ComfyUI, and return the link; nothing if it is there already.

    Raises FileNotFoundError or ValueError for a folder that is no ComfyUI or an old one, or a name that is taken.
    """
    check_comfyui(comfyui)
    link, pack = comfyui / "custom_nodes" / NAME, find_folder(PACK)
    if link.resolve() == pack.resolve():
        return link
    if link.exists() or link.is_symlink():
        raise ValueError(f"'{link}' is there already: expected none, or a link to '{pack}'. Remove it and try again.")
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError as error:
        raise ValueError(
            f"'{link}' cannot be made ({error.strerror}): expected a folder in which links can be made. Copy '{pack}' "
            "to that place by hand; it never changes what is in it."
        ) from error
    return link


def check_comfyui(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError unless this is a ComfyUI that our nodes run in."""
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder: expected that of ComfyUI, in which main.py lies.")
    missing = [name for name in ("main.py", "custom_nodes", VERSION_FILE) if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"'{folder}' has no {' and no '.join(missing)}: expected the folder of ComfyUI {LOWEST} or newer, in which "
            "main.py lies."
        )
    found = version_of(folder)
    if found < LOWEST:
        raise ValueError(f"'{folder}' is ComfyUI {found}: expected {LOWEST} or newer. Update ComfyUI, then try again.")


def version_of(folder: Path) -> Version:
    """The version of the ComfyUI in this folder. Raises ValueError where it tells none."""
    file = folder / VERSION_FILE
    found = re.search(r'^__version__ = "([\d.]+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"'{file}' tells no version: expected a line such as __version__ = \"{LOWEST}\".")
    return Version(found[1])
