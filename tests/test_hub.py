"""Saved pipelines as repositories: folder, repo id, offline cache, push, all against a hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from mock_hub import running
from safetensors.torch import load_file, save_file
from tiny_adapter import trained_pipeline
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

import subjectgen
from subjectgen import SubjectAdapter, SubjectPipeline, WeightsError, hub
from subjectgen.load import recipe
from subjectgen.weights import model_hash, write_manifest

REPO, OTHER = "someone/tiny-subjects", "someone/described-by-hand"
OWN_CARD = b"---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\nwritten by hand\n"
NETWORKS = ("mllm", "aggregator", "transformer", "vae")

# In a process of its own: huggingface_hub reads its settings when it is imported.
PUSH_AND_LOAD = """
import sys, subjectgen
from diffusers import DiffusionPipeline
from subjectgen.weights import model_hash
folder, repo, other = sys.argv[1:]
pipe = subjectgen.load(folder)
url = pipe.push_to_hub(repo)
pipe.push_to_hub(other)
direct = subjectgen.load(repo)
generic = DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)
assert type(generic) is subjectgen.SubjectPipeline, type(generic)
assert direct.config["stages"] == generic.config["stages"] == "free"
assert direct.name_or_path == repo
print(url, model_hash(direct.components), model_hash(generic.components))
"""
LOAD_OFFLINE = """
import sys, subjectgen
from subjectgen.weights import model_hash
print(model_hash(subjectgen.load(sys.argv[1]).components))
"""
LOAD_REFUSED = """
import sys, subjectgen
from importlib.machinery import ModuleSpec
from subjectgen import extras
extras.find_spec = lambda name: ModuleSpec(name, None, origin=name)  # the Hub is asked before torchvision is needed
for model, *adapter in (argument.split("+") for argument in sys.argv[1:]):
    try:
        subjectgen.load(model, adapter=adapter[0] if adapter else None)
    except subjectgen.WeightsError as refused:
        print(str(refused).replace(" ", "_").replace("\\n", "_"))
"""


def in_process(code, hub_url, home, *arguments, **environment):
    settings = {
        "HF_ENDPOINT": hub_url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": "a-token",
        "PYTHONPATH": str(Path(subjectgen.__file__).parents[1]),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ | settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def latents(pipe):
    return pipe("a red cat", picture("red"), generator=seeded_generators(0), output_type="latent").images


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(stages="free", license="apache-2.0")


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def altered(folder, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "altered"
    for file in folder.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return copy


class TestFolder:
    def test_paints_the_same(self, pipe, folder):
        # Weights mapped from a file may lie at other addresses, which changes the order of sums in a product.
        torch.testing.assert_close(latents(SubjectPipeline.from_pretrained(folder)), latents(pipe), atol=1e-5, rtol=0)
        torch.testing.assert_close(latents(subjectgen.load(folder)), latents(pipe), atol=1e-5, rtol=0)

    def test_settings_come_back(self, pipe, folder):
        again = SubjectPipeline.from_pretrained(folder)
        assert again.parameters == pipe.parameters
        assert again.parameters["stages"] == "free" and again.parameters["reference_size"] == 32

    def test_settings_can_be_replaced(self, folder):
        assert SubjectPipeline.from_pretrained(folder, stages="faithful").config["stages"] == "faithful"

    def test_own_stages_come_back(self, tmp_path):
        own = [subjectgen.Stage(0.5, identity=0.25), subjectgen.Stage(0.0, semantic=0.0, guidance=2.0)]
        pipe = tiny_pipeline(stages=own)
        pipe.save_pretrained(tmp_path)
        again = SubjectPipeline.from_pretrained(tmp_path)
        assert torch.allclose(latents(again), latents(pipe), atol=1e-5)
        by_hand = again("a red cat", picture("red"), generator=seeded_generators(0), output_type="latent", stages=own)
        assert torch.equal(by_hand.images, latents(again))

    def test_dtype(self, folder):
        pipe = SubjectPipeline.from_pretrained(folder, dtype=torch.bfloat16)
        assert {getattr(pipe, name).dtype for name in NETWORKS} == {torch.bfloat16}
        assert torch.isfinite(latents(pipe).float()).all()

    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("given", ["bfloat16", {"vae": "bfloat16"}], ids=["whole", "part"])
    def test_the_name_of_a_dtype_is_none(self, folder, name, given):
        with pytest.raises(ValueError, match=rf"^{name}='bfloat16': expected a torch\.dtype such as torch\.bfloat16"):
            SubjectPipeline.from_pretrained(folder, **{name: given})

    def test_shares_parts_with_a_loaded_pipeline(self, pipe):
        other = SubjectPipeline.from_pipe(pipe, aggregator=tiny_pipeline().aggregator)
        assert other.mllm is pipe.mllm and other.aggregator is not pipe.aggregator
        assert other.parameters == pipe.parameters


class TestRepositoryFiles:
    def test_nothing_tells_where_it_was_loaded_from(self, folder, tmp_path):
        SubjectPipeline.from_pretrained(folder).save_pretrained(tmp_path)
        for file in tmp_path.rglob("*.json"):
            assert str(folder) not in file.read_text(), file

    def test_every_part_names_a_library_that_is_found(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        parts = {name: entry for name, entry in index.items() if isinstance(entry, list)}
        assert index["_class_name"] == "SubjectPipeline"
        assert parts["aggregator"] == ["subjectgen", "DualLayerAggregator"]
        assert parts["processor"] == ["subjectgen", "SubjectProcessor"]
        assert {library for library, _ in parts.values()} == {"subjectgen", "diffusers", "transformers"}

    def test_pipeline_file_is_one_import(self, folder):
        names = {}
        exec((folder / "pipeline.py").read_text(), names)
        assert names["SubjectPipeline"] is SubjectPipeline

    def test_card(self, pipe, folder):
        _, front, text = (folder / "README.md").read_text().split("---", maxsplit=2)
        data = yaml.safe_load(front)
        assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
            "diffusers",
            "text-to-image",
            "apache-2.0",
        )
        assert "image-to-image" in data["tags"]
        size = sum(weight.numel() for weight in pipe.transformer.parameters())
        assert f"| `transformer` | `FluxTransformer2DModel` | {size:,} |" in text
        assert "| `stages` | `free` |" in text

    def test_card_without_a_licence_claims_none(self, tmp_path):
        tiny_pipeline().save_pretrained(tmp_path)
        assert "license" not in yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])

    def test_what_this_library_has_not_written_stays(self, pipe, tmp_path):
        """A card by hand, one of ours that was altered, and the configuration of what is no component."""
        (tmp_path / "README.md").write_bytes(OWN_CARD)
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "config.json").write_text('{"b": 1, "_name_or_path": "mine"}')
        pipe.save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_bytes() == OWN_CARD
        assert (tmp_path / "notes" / "config.json").read_text() == '{"b": 1, "_name_or_path": "mine"}'
        (tmp_path / "README.md").unlink()
        pipe.save_pretrained(tmp_path)
        altered = (tmp_path / "README.md").read_text().replace("A picture of your subject", "Pictures of shoes")
        hub.write_repository_files(tiny_pipeline(license="mit"), tmp_path)
        assert "license: mit" in (tmp_path / "README.md").read_text()
        (tmp_path / "README.md").write_text(altered)
        hub.write_repository_files(pipe, tmp_path)
        assert (tmp_path / "README.md").read_text() == altered

    def test_card_of_a_pipeline_without_an_aggregator(self):
        """As that of Qwen-Image 2.1, whose licence the Hub has no identifier for."""
        licence = "qwen-research"
        parts = {"mllm": object(), "aggregator": None}
        without = SimpleNamespace(components=parts, parameters={}, config={"max_references": 10, "license": licence})
        _, front, text = str(hub.model_card(without)).split("---", maxsplit=2)
        assert "`aggregator`" not in text and "NoneType" not in text and "| `mllm` |" in text
        assert "fused" not in text and "together, VAE latents of the references add identity" in text
        data = yaml.safe_load(front)
        assert (data["license"], data["license_name"]) == ("other", licence)
        assert data["license_link"].startswith("https://huggingface.co/Qwen/Qwen-Image-2.1/")


def test_push_load_and_stay_offline(pipe, folder, tmp_path):
    with running() as hub:
        hub.repos[OTHER] = {"README.md": OWN_CARD, "vae/config.json": b"{}"}
        url, direct, generic = in_process(PUSH_AND_LOAD, hub.url, tmp_path, str(folder), REPO, OTHER)
        assert url == f"{hub.url}/{REPO}/commit/{hub.sha(REPO)}" and hub.commits == 2
        kept = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
        assert hub.repos[REPO].keys() == hub.repos[OTHER].keys() == kept.keys()
        assert hub.repos[REPO]["README.md"] == kept["README.md"].read_bytes()
        assert hub.repos[OTHER]["README.md"] == OWN_CARD
        assert hub.repos[OTHER]["vae/config.json"] == kept["vae/config.json"].read_bytes()
    assert direct == generic == model_hash(pipe.components)
    assert in_process(LOAD_OFFLINE, hub.url, tmp_path, REPO, HF_HUB_OFFLINE="1") == [direct]


def test_repositories_that_cannot_be_read(pipe, folder, tmp_path):
    """Missing, gated, of another pipeline, without one file: by the name of a repository and through the recipes."""
    pytest.importorskip("diffusers", minversion="0.41")  # one of them is that of Qwen-Image 2.1
    adapter = SubjectAdapter.of(trained_pipeline()).save(tmp_path / "adapter.safetensors")
    flux, qwen = recipe("flux-internvl3").FLUX, recipe("qwen-image-2.1").REPO
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    index = json.loads(files["model_index.json"])
    of_flux = json.dumps({**index, "_class_name": "FluxPipeline"}).encode()
    lost = next(path for path in files if path.startswith("transformer/") and path.endswith(".safetensors"))
    with running() as hub:
        hub.repos["a/gated"], hub.repos[flux], hub.gated = files, {"transformer/config.json": b"{}"}, {"a/gated", flux}
        hub.repos["a/flux"] = {**files, "model_index.json": of_flux}
        hub.repos["a/part"] = {path: content for path, content in files.items() if path != lost}
        names = ("no/where", "a/gated", "a/flux", "a/part", f"flux-internvl3+{adapter}", "qwen-image-2.1")
        told = in_process(LOAD_REFUSED, hub.url, tmp_path / "home", *names)
    expected = (
        "'no/where'_is_not_on_the_Hub,_or_is_private",
        "'a/gated'_is_gated:_expected_an_account_that_may_read_it",
        "'a/flux'_is_a_FluxPipeline:_expected_a_SubjectPipeline",
        "'a/part'_cannot_be_loaded",
        f"'{flux}'_is_gated",
        f"'{qwen}'_is_not_on_the_Hub,_or_is_private",
    )
    assert len(told) == len(expected)
    for message, start in zip(told, expected, strict=True):
        assert message.startswith(start), message


class TestRefusals:
    def damage(self, folder, name, change):
        (file,) = (folder / name).glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    @pytest.mark.parametrize("name", NETWORKS)
    def test_missing_tensor(self, altered, name):
        self.damage(altered, name, lambda tensors: tensors.pop(sorted(tensors)[3]))
        with pytest.raises(WeightsError, match=rf"{name}: .* holds \d+ weights.* has \d+"):
            SubjectPipeline.from_pretrained(altered)

    def test_missing_tensor_is_named(self, altered):
        self.damage(altered, "vae", lambda tensors: tensors.pop("decoder.conv_in.weight"))
        with pytest.raises(WeightsError, match=r"missing: decoder\.conv_in\.weight\."):
            subjectgen.load(altered)

    def test_unexpected_tensor_is_named(self, altered):
        self.damage(altered, "aggregator", lambda tensors: tensors.update(stray=torch.zeros(3)))
        with pytest.raises(WeightsError, match=r"unexpected: stray\."):
            SubjectPipeline.from_pretrained(altered)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_another_shape(self, altered, name):
        self.damage(altered, name, lambda tensors: tensors.update({sorted(tensors)[3]: torch.zeros(7, 3)}))
        with pytest.raises(WeightsError, match="cannot be loaded"):
            SubjectPipeline.from_pretrained(altered)

    @pytest.mark.parametrize("size", [0, 1000])
    def test_cut_off(self, altered, size):
        (file,) = (altered / "transformer").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(WeightsError, match="transformer"):
            SubjectPipeline.from_pretrained(altered)

    @pytest.mark.parametrize("name", ["mllm", "transformer"])
    def test_missing_shard(self, pipe, name, tmp_path):
        pipe.save_pretrained(tmp_path, max_shard_size="30KB")
        shards = sorted((tmp_path / name).glob("*-of-*.safetensors"))
        assert len(shards) > 2
        shards[1].unlink()
        with pytest.raises(WeightsError, match=rf"cannot be loaded.*{shards[1].name}|cannot be loaded.*{name}"):
            subjectgen.load(tmp_path)

    def test_another_pipeline_is_said_before_its_weights_are_read(self, altered, monkeypatch):
        index = json.loads((altered / "model_index.json").read_text())
        (altered / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
        monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("reading"))
        with pytest.raises(WeightsError, match=r"is a FluxPipeline: expected a SubjectPipeline\. Give .*recipe"):
            subjectgen.load(altered)

    @pytest.mark.parametrize(
        ("part", "entry", "message"),
        [
            (
                "transformer",
                ["diffusers", "SD3Transformer2DModel"],
                r"transformer is a SD3\w+: expected FluxTransformer2DModel or Qwen",
            ),
            ("mllm", ["transformers", "LlamaForCausalLM"], r"mllm is a Llama\w+: expected InternVL\w+ or Qwen3VL"),
        ],
    )
    def test_another_architecture(self, altered, part, entry, message):
        index = json.loads((altered / "model_index.json").read_text())
        (altered / "model_index.json").write_text(json.dumps({**index, part: entry}))
        with pytest.raises(WeightsError, match=message):
            subjectgen.load(altered)

    def test_altered_against_a_manifest(self, altered):
        write_manifest(altered.parent, {"altered": ("Apache-2.0", "a test")})
        self.damage(altered, "vae", lambda tensors: tensors["decoder.conv_in.weight"].add_(1))
        with pytest.raises(WeightsError, match=r"vae/.*safetensors is altered"):
            SubjectPipeline.from_pretrained(altered)

    def test_folder_of_something_else(self, tmp_path):
        with pytest.raises(WeightsError, match=r"model_index\.json"):
            subjectgen.load(tmp_path)

    def test_unknown_name(self):
        with pytest.raises(FileNotFoundError, match=r"'maxi'.*mini.*repo id"):
            subjectgen.load("maxi")
