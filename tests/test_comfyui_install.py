"""subjectgen comfyui install: a link into a ComfyUI, or one sentence that says why not; and what it links to."""

import ast
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import subjectgen
from subjectgen.cli import app
from subjectgen.comfyui.install import LOWEST, check_comfyui, install, version_of
from subjectgen.weights import find_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACK = find_folder("comfyui_pack")


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('# generated\n__version__ = "0.33.0"\n')
    return folder


def test_links(comfyui: Path):
    link = install(comfyui)
    assert link == comfyui / "custom_nodes" / "subjectgen" and link.is_symlink() and link.resolve() == PACK.resolve()
    assert (link / "__init__.py").is_file() and (link / "example_workflows").is_dir()
    assert install(comfyui) == link  # and again


def test_on_the_command_line(comfyui: Path):
    result = CliRunner().invoke(app, ["comfyui", "install", str(comfyui)])
    assert result.exit_code == 0, result.output
    assert "custom_nodes/subjectgen" in result.output and "pip install ." in result.output
    result = CliRunner().invoke(app, ["comfyui", "install", str(comfyui / "no")])
    assert result.exit_code == 2 and "no' is no folder" in result.output and "Traceback" not in result.output


class TestRefused:
    def test_no_comfyui(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"has no main.py and no custom_nodes and no comfyui_version.py: expected"):
            install(tmp_path)

    def test_old(self, comfyui: Path):
        (comfyui / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
        with pytest.raises(ValueError, match=rf"is ComfyUI 0\.3\.64: expected {LOWEST} or newer"):
            install(comfyui)

    def test_without_a_version(self, comfyui: Path):
        (comfyui / "comfyui_version.py").write_text("VERSION = 3\n")
        with pytest.raises(ValueError, match="tells no version"):
            install(comfyui)

    def test_name_taken(self, comfyui: Path):
        (taken := comfyui / "custom_nodes" / "subjectgen").mkdir()
        with pytest.raises(ValueError, match="is there already"):
            install(comfyui)
        assert taken.is_dir() and not taken.is_symlink()

    def test_dangling_link(self, comfyui: Path):
        (comfyui / "custom_nodes" / "subjectgen").symlink_to(comfyui / "gone")
        with pytest.raises(ValueError, match="Remove it and try again"):
            install(comfyui)

    def test_no_links_here(self, comfyui: Path, monkeypatch: pytest.MonkeyPatch):
        def refuse(*_, **__):
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        with pytest.raises(ValueError, match=r"Operation not permitted.*Copy"):
            install(comfyui)


def test_the_registry_knows_the_pack():
    settings = tomllib.loads((PACK / "pyproject.toml").read_text())
    own = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    project = settings["project"]
    assert {project[name] == own[name] for name in ("name", "version", "license", "requires-python")} == {True}
    assert project["dependencies"] == [f"subjectgen>={own['version']}"]
    assert settings["tool"]["comfy"]["requires-comfyui"] == f">={LOWEST}"


def test_no_node_imports_comfyui_before_it_is_there():
    """`install` and the package itself can be imported anywhere, and nothing else of the library imports the nodes."""
    package = Path(subjectgen.__file__).parent
    for file in package.rglob("*.py"):
        imported = {name for node in ast.walk(ast.parse(file.read_text())) for name in _modules(node)}
        inside = file.parent.name == "comfyui" and file.name not in ("__init__.py", "install.py")
        foreign = {"comfy", "comfy_api", "comfy_execution", "folder_paths"}
        nodes = {name for name in imported if name.startswith("subjectgen.comfyui") and "install" not in name}
        assert inside or not ({name.split(".")[0] for name in imported} & foreign or nodes), file


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [name.name for name in node.names] if isinstance(node, ast.Import) else []


def test_version_of(comfyui: Path):
    check_comfyui(comfyui)
    assert str(version_of(comfyui)) == "0.33.0"
