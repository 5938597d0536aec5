"""Folders, manifest, verification and hashes, against hashlib and files made here."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from subjectgen import weights
from subjectgen.weights import WeightsError, find_folder, model_hash, read_manifest, state_hash, verify, write_manifest

PROVENANCE = {"tiny": ("Apache-2.0", 'trained here, "by hand" \\ on a Sunday')}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A weights folder with one model, its manifest and things a manifest does not cover."""
    (part := tmp_path / "tiny" / "vae").mkdir(parents=True)
    (part / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    (part / "config.json").write_text('{"width": 32}')
    (tmp_path / "tiny" / "README.md").write_text("not loaded, not listed")
    write_manifest(tmp_path, PROVENANCE)
    return tmp_path


class TestFindFolder:
    def test_checkout(self):
        assert find_folder("weights").samefile(Path(__file__).parent.parent / "weights")

    def test_installed_package_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(weights, "PACKAGE", tmp_path / "subjectgen")
        (tmp_path / "weights").mkdir()
        assert find_folder("weights") == tmp_path / "weights"
        (tmp_path / "subjectgen" / "weights").mkdir(parents=True)
        assert find_folder("weights") == tmp_path / "subjectgen" / "weights"

    def test_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(weights, "PACKAGE", tmp_path / "subjectgen")
        with pytest.raises(WeightsError, match=r"'pipelines' is missing.*subjectgen/pipelines.*reinstall"):
            find_folder("pipelines")

    def test_bundled(self, home: Path, monkeypatch: pytest.MonkeyPatch):
        (home / "tiny" / "model_index.json").write_text("{}")
        (home / "notes").mkdir()
        monkeypatch.setattr(weights, "find_folder", lambda name: {"weights": home}[name])
        assert weights.bundled() == ["tiny"]


class TestManifest:
    def test_says_what_is_true(self, home: Path):
        entries = {entry.path: entry for entry in read_manifest(home)}
        assert sorted(entries) == ["tiny/vae/config.json", "tiny/vae/model.safetensors"]
        for path, entry in entries.items():
            data = (home / path).read_bytes()
            assert (entry.sha256, entry.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
            assert (entry.licence, entry.origin) == PROVENANCE["tiny"]

    @pytest.mark.parametrize("text", ["[[file]\n", "[[file]]\npath = 'a'\n", "[[file]]\nunknown = 1\n", "file = 3\n"])
    def test_malformed(self, home: Path, text: str):
        (home / "manifest.toml").write_text(text)
        with pytest.raises(WeightsError, match=r"manifest.toml is malformed.*sha256"):
            verify(home / "tiny")

    def test_missing(self, tmp_path: Path):
        with pytest.raises(WeightsError, match=r"manifest\.toml is missing"):
            read_manifest(tmp_path)


class TestVerify:
    def test_as_shipped(self, home: Path):
        assert [entry.path for entry in verify(home / "tiny")] == ["tiny/vae/config.json", "tiny/vae/model.safetensors"]
        assert verify(str(home)) == verify(home / "tiny")

    def test_names_every_fault(self, home: Path):
        file, config = home / "tiny" / "vae" / "model.safetensors", home / "tiny" / "vae" / "config.json"
        file.write_bytes(file.read_bytes()[:100])
        config.unlink()
        with pytest.raises(WeightsError) as caught:
            verify(home / "tiny")
        message = str(caught.value)
        assert "tiny/vae/model.safetensors is truncated: 100 of 2304 bytes" in message
        assert "tiny/vae/config.json is missing" in message
        assert "reinstall" in message

    def test_one_altered_bit(self, home: Path):
        file = home / "tiny" / "vae" / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[1000] ^= 1
        file.write_bytes(data)
        with pytest.raises(WeightsError, match=r"tiny/vae/model.safetensors is altered: sha256 [0-9a-f]{12}"):
            verify(home / "tiny")

    def test_only_the_model_asked_for(self, home: Path):
        (home / "mine").mkdir()
        (home / "tiny" / "vae" / "config.json").unlink()
        assert verify(home / "mine") == ()

    def test_no_manifest_is_a_users_own_folder(self, tmp_path: Path):
        (own := tmp_path / "own").mkdir()
        assert verify(own) == ()

    def test_no_folder(self, tmp_path: Path):
        with pytest.raises(WeightsError, match=r"nowhere' does not exist"):
            verify(tmp_path / "nowhere")


class TestStateHash:
    def test_against_hashlib(self):
        module = nn.Linear(3, 2).bfloat16()
        expected = hashlib.sha256()
        for name in ("bias", "weight"):
            tensor = getattr(module, name).detach()
            expected.update(f"{name} torch.bfloat16 {tuple(tensor.shape)}\n".encode())
            expected.update(tensor.view(torch.int16).numpy().tobytes())
        assert state_hash(module) == expected.hexdigest()

    def test_sees_value_name_type_and_shape(self):
        def module(name: str = "a", values: torch.Tensor = torch.zeros(2, 3)) -> nn.Module:  # noqa: B008
            (made := nn.Module()).register_buffer(name, values)
            return made

        changed = torch.zeros(2, 3)
        changed[1, 2] = 1e-30
        variants = [
            module(),
            module("b"),
            module(values=changed),
            module(values=torch.zeros(3, 2)),
            module(values=torch.zeros(2, 3, dtype=torch.int32)),
        ]
        assert len({state_hash(variant) for variant in variants}) == 5
        assert state_hash(module()) == state_hash(module())

    def test_memory_layout_does_not_count(self):
        one, other = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        other.weight = nn.Parameter(one.weight.detach().T.contiguous().T)
        assert state_hash(one) == state_hash(other)

    def test_scalars_and_empty_tensors(self):
        module = nn.BatchNorm1d(2)
        module.register_buffer("empty", torch.zeros(0, 4))
        assert re.fullmatch("[0-9a-f]{64}", state_hash(module))

    def test_without_values(self):
        with pytest.raises(ValueError, match=r"'bias' of Linear is on the device 'meta'"):
            state_hash(nn.Linear(2, 2, device="meta"))

    def test_model_hash_sees_every_network_and_nothing_else(self):
        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        base = model_hash({"vae": one, "transformer": two, "scheduler": object()})
        assert base == model_hash({"transformer": two, "vae": one, "processor": "text"})
        assert base != model_hash({"vae": two, "transformer": one})


class TestNothingHalfWritten:
    """Writing goes through `whole_file`; a real limit on file size stands for a full disk."""

    SCRIPT = """
import resource, sys
from pathlib import Path
from subjectgen.files import whole_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(2000))
"""

    def test_disk_full(self, tmp_path: Path):
        (file := tmp_path / "subject.safetensors").write_bytes(b"what was there")
        ended = subprocess.run([sys.executable, "-c", self.SCRIPT, file], capture_output=True, text=True)
        assert "OSError" in ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        assert file.read_bytes() == b"what was there"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_manifest_survives(self, home: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]):
        before = (home / "manifest.toml").read_bytes()

        def break_off(self: Path, text: str, **_: object) -> None:
            self.write_bytes(text[:20].encode())
            raise error

        monkeypatch.setattr(Path, "write_text", break_off)
        with pytest.raises(error):
            write_manifest(home, {"tiny": ("MIT", "elsewhere")})
        assert (home / "manifest.toml").read_bytes() == before
        assert sorted(path.name for path in home.iterdir()) == ["manifest.toml", "tiny"]
