"""What README.md prints is true: its tree is the folder's, its commands, links and imports exist."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import typer

from subjectgen.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
NOT_PRINTED = {"README.md", "__init__.py", "__pycache__", "out", "runs", "dist", "build", "node_modules"}
SHELLS = {"bash", "sh", "shell", "console"}
MORE = {"...", "…"}


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """(language, body) of each fenced block."""
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@dataclass
class Printed:
    """What is printed of one folder: names in it, and whether these are all files or all entries of it."""

    names: set[str] = field(default_factory=set)
    complete: Literal["no", "files", "entries"] = "no"


def printed_tree(text: str) -> dict[str, Printed]:
    """What is printed of each folder; "" is the root.

    A line is `name  description` or `name, name  description`. Depth is where the names start, whether spaces or
    branches stand before them. Files and folders named in a folder's description are in it; if it names nothing else,
    they are all its files.
    """
    body = next((body for _, body in fenced(text) if re.search(r"^[\s│├└─]*subjectgen/\s", body, re.MULTILINE)), "")
    tree: dict[str, Printed] = {}
    open_folders: list[tuple[int, str]] = []
    for line in filter(str.strip, body.splitlines()):
        column = len(line) - len(line.lstrip(" │├└─"))
        names, _, description = line[column:].partition("  ")
        while open_folders and open_folders[-1][0] >= column:
            open_folders.pop()
        parent = tree.setdefault(open_folders[-1][1] if open_folders else "", Printed())
        parent.complete = "entries"
        parent.names |= {name.strip().rstrip("/") for name in names.split(",")}
        if names.strip().endswith("/"):
            folder = f"{open_folders[-1][1] if open_folders else ''}{names.strip()}"
            open_folders.append((column, folder))
            if (described := described_names(description)).names:
                tree[folder] = described
    return tree


def described_names(description: str) -> Printed:
    words = [word.strip(",;:()") for word in description.split()]
    names = {word.rstrip("/") for word in words if re.fullmatch(r"[\w.-]+(\.(py|md|toml|json|png)|/)", word)}
    return Printed(names, "files" if len(names) == len(words) else "no")


def tree_faults(tree: dict[str, Printed], root: Path) -> list[str]:
    faults = []
    for folder, printed in tree.items():
        names = printed.names - MORE
        faults += [f"printed, not there: {folder}{name}" for name in names if not (root / folder / name).exists()]
        if printed.complete != "no" and printed.names == names and (root / folder).is_dir():
            there = real_names(root / folder, files_only=printed.complete == "files")
            faults += [f"there, not printed: {folder}{name}" for name in there - names]
    return sorted(faults)


def real_names(folder: Path, *, files_only: bool) -> set[str]:
    paths = [path for path in folder.iterdir() if path.is_file() or not files_only]
    names = {path.name for path in paths} - NOT_PRINTED
    return {name for name in names if not name.startswith(".") and not name.endswith(".egg-info")}


def commands(text: str) -> Iterator[list[str]]:
    """Every `make`, `subjectgen` and `python` command in shell blocks and inline code, as words."""
    shell = "\n".join(body for language, body in fenced(text) if language in SHELLS).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in [*shell.splitlines(), *re.findall(r"`([^`\n]+)`", prose)]:
        if re.match(r"(\$ )?(\S*/)?(make|subjectgen|python3?) ", line):
            for part in line.removeprefix("$ ").split("&&"):
                yield shlex.split(part, comments=True)


def command_fault(words: list[str]) -> str | None:
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = [word for word in arguments if "=" not in word and word not in targets]
        return f"make {unknown[0]}: no such target" if unknown else None
    if program.startswith("python"):
        missing = [word for word in arguments if word.endswith(".py") and not (ROOT / word).is_file()]
        return f"{missing[0]}: no such script" if missing else None
    return subjectgen_fault(arguments) if program == "subjectgen" else None


def subjectgen_fault(arguments: list[str]) -> str | None:
    command: Any = typer.main.get_command(app)
    for word in arguments:
        if hasattr(command, "commands"):
            if word not in command.commands:
                return f"subjectgen {' '.join(arguments)}: no command '{word}'"
            command = command.commands[word]
        elif word.startswith("--"):
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            if word.split("=")[0] not in known:
                return f"subjectgen {' '.join(arguments)}: no option {word}"
    return None


def import_faults(source: str) -> list[str]:
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "subjectgen":
            module = importlib.import_module(node.module or "")
            faults += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
    return faults


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


def test_tree(readme: str):
    tree = printed_tree(readme)
    assert {"", "subjectgen/"} <= tree.keys(), "README.md prints no tree with the contents of subjectgen/"
    assert tree_faults(tree, ROOT) == []


def test_commands(readme: str):
    found = list(commands(readme))
    assert ["make", "demo"] in found and ["make", "test"] in found
    assert [fault for words in found if (fault := command_fault(words))] == []


def test_imports(readme: str):
    blocks = [body for language, body in fenced(readme) if language == "python"]
    assert blocks
    assert [fault for body in blocks for fault in import_faults(body)] == []


def test_links(readme: str):
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", readme)
    local = [target.split("#")[0] for pair in targets for target in pair if target and "://" not in target]
    assert [target for target in local if target and not (ROOT / target).exists()] == []


class TestTheReader:
    """The reader of the tree and of the commands finds faults, in both ways of drawing."""

    SPACES = """
```
subjectgen/       the library
  cli/            commands
    info.py       what is here
  files.py        whole files
LOG.md, tests     more
docs/             a.md b.md
notes/            why: c.md, and more
```
"""
    BRANCHES = """
```text
subjectgen/           the library
├── cli/              commands
│   └── info.py       what is here
└── files.py          whole files
LOG.md, tests         more
docs/                 a.md b.md
notes/                why: c.md, and more
```
"""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("subjectgen/cli/info.py", "subjectgen/files.py", "subjectgen/__init__.py", "tests/x.py", "LOG.md",
                     "docs/a.md", "docs/b.md", "docs/deeper/x", "notes/c.md", "notes/d.md"):  # fmt: skip
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    @pytest.mark.parametrize("text", [SPACES, BRANCHES])
    def test_tree_is_read(self, folder: Path, text: str):
        tree = printed_tree(text)
        assert tree == {
            "": Printed({"subjectgen", "tests", "LOG.md", "docs", "notes"}, "entries"),
            "subjectgen/": Printed({"cli", "files.py"}, "entries"),
            "subjectgen/cli/": Printed({"info.py"}, "entries"),
            "docs/": Printed({"a.md", "b.md"}, "files"),
            "notes/": Printed({"c.md"}, "no"),
        }
        assert tree_faults(tree, folder) == []

    def test_faults_are_found(self, folder: Path):
        (folder / "subjectgen" / "cli" / "info.py").rename(folder / "subjectgen" / "cli" / "train.py")
        (folder / "docs" / "new.md").touch()
        (folder / "notes" / "c.md").unlink()
        assert tree_faults(printed_tree(self.SPACES), folder) == [
            "printed, not there: notes/c.md",
            "printed, not there: subjectgen/cli/info.py",
            "there, not printed: docs/new.md",
            "there, not printed: subjectgen/cli/train.py",
        ]

    def test_dots_stand_for_more(self, folder: Path):
        (folder / "subjectgen" / "more.py").touch()
        text = self.SPACES.replace("  files.py        whole files", "  files.py        whole files\n  ...")
        assert tree_faults(printed_tree(text), folder) == []

    def test_commands_are_read(self):
        text = (
            "Run `make demo` or `subjectgen info`, never `import this`.\n```bash\n$ make test  # all\n"
            "cd x && make\nsubjectgen generate --prompt 'a red ground' \\\n  --out a.png\n```\n"
            "```python\nmake = 1\n```\n"
        )
        assert sorted(commands(text)) == [
            ["make", "demo"],
            ["make", "test"],
            ["subjectgen", "generate", "--prompt", "a red ground", "--out", "a.png"],
            ["subjectgen", "info"],
        ]

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("make demo", None),
            ("make PYTHON=python3.12 test", None),
            ("make cake", "cake"),
            ("subjectgen generate --prompt 'a b' --subject a.png", None),
            ("subjectgen generate --promt x", "--promt"),
            ("subjectgen paint", "paint"),
            ("subjectgen train mini --phase vae", None),
            ("subjectgen train maxi", "maxi"),
            ("python examples/none.py", "none.py"),
        ],
    )
    def test_command_faults(self, line: str, fault: str | None):
        found = command_fault(shlex.split(line))
        assert found is None if fault is None else fault in (found or "")

    def test_import_faults(self):
        assert import_faults("from subjectgen.cli import app, nothing") == ["subjectgen.cli.nothing"]
