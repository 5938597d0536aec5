"""The file of a trained adapter: round trips, what it does to a pipeline, what it refuses, and the Hub."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from mock_hub import running
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_hub import in_process, latents
from tiny_adapter import LORA, NUM_KEYS, SETTINGS, base_transformer, merged, trained_pipeline, velocity
from tiny_pipeline import tiny_pipeline

from subjectgen import SubjectAdapter, SubjectPipeline, WeightsError, adapter, extras, hub
from subjectgen.lora import add_identity
from subjectgen.weights import model_hash, tensors_hash

REPO, GATED = "someone/tiny-adapter", "someone/gated-adapter"
SCALE = LORA.alpha / LORA.rank


@pytest.fixture(scope="module")
def trained():
    return trained_pipeline()


@pytest.fixture(scope="module")
def taken(trained):
    """The adapter of `trained`."""
    return SubjectAdapter.of(trained)


@pytest.fixture(scope="module")
def base():
    """Tests leave it as it is."""
    return tiny_pipeline()


@pytest.fixture
def file(taken, tmp_path):
    return taken.save(tmp_path / "deep/adapter.safetensors")


def state_of(pipe):
    return (
        model_hash(pipe.components),
        pipe.parameters,
        id(pipe.aggregator),
        getattr(pipe.transformer, "peft_config", {}),
    )


def with_metadata(file, **changes):
    """The same tensors under other metadata; None takes an entry away."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | changes
    save_file(load_file(file), file, {name: text for name, text in metadata.items() if text is not None})
    return file


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_save_and_load(self, dtype, tmp_path):
        written = SubjectAdapter.of(trained_pipeline(dtype=dtype))
        read = SubjectAdapter.load(written.save(tmp_path / "a.safetensors"))
        assert read.config == written.config and read.sha256 == written.sha256
        for part in ("aggregator_state", "lora_state"):
            one, other = getattr(written, part), getattr(read, part)
            assert one.keys() == other.keys() and one
            assert all(torch.equal(one[name], other[name]) and other[name].dtype == dtype for name in one)

    def test_apply_and_take_out(self, trained, taken):
        pipe = tiny_pipeline()
        assert (latents_before := latents(pipe)).isfinite().all()
        taken.apply(pipe)
        assert pipe.parameters == trained.parameters and pipe.config["conditions"] == "joint"
        assert SubjectAdapter.of(pipe).sha256 == taken.sha256
        painted = latents(pipe)
        assert painted.shape != latents_before.shape  # the size it was trained for
        torch.testing.assert_close(painted, latents(trained), atol=1e-5, rtol=0)

    def test_folder(self, taken, tmp_path):
        assert taken.save(tmp_path) == tmp_path / "adapter.safetensors"
        assert SubjectAdapter.load(tmp_path).sha256 == SubjectAdapter.load(str(tmp_path)).sha256 == taken.sha256

    @torch.no_grad()
    def test_it_shares_no_memory_with_a_pipeline(self, taken):
        pipe, before = tiny_pipeline(), tensors_hash(taken.aggregator_state)
        taken.apply(pipe)
        again = SubjectAdapter.of(pipe)
        for weight in pipe.aggregator.parameters():
            weight.add_(1)
        assert tensors_hash(taken.aggregator_state) == tensors_hash(again.aggregator_state) == before

    def test_another_takes_its_place(self, taken):
        pipe, other = tiny_pipeline(), SubjectAdapter.of(trained_pipeline(seed=2))
        taken.apply(pipe)
        other.apply(pipe)
        assert SubjectAdapter.of(pipe).sha256 == other.sha256 != taken.sha256
        torch.testing.assert_close(velocity(pipe.transformer), velocity(merged((other.lora_state, SCALE))))

    def test_the_pipelines_dtype_is_kept(self, taken):
        pipe = tiny_pipeline().to(torch.bfloat16)
        taken.apply(pipe)
        assert {pipe.aggregator.dtype, *(weight.dtype for weight in pipe.transformer.parameters())} == {torch.bfloat16}
        assert not pipe.aggregator.training and latents(pipe).isfinite().all()

    def test_file_says_what_it_is(self, file):
        with safe_open(file, framework="pt") as opened:
            metadata, names = opened.metadata(), set(opened.keys())
        config = json.loads(metadata["config"])
        assert metadata["format"] == "subjectgen.SubjectAdapter/1"
        assert config["transformer"] == {
            "repo": "", "class_name": "FluxTransformer2DModel", "num_blocks": 3, "width": 32
        }  # fmt: skip
        assert config["mllm"]["num_blocks"] == 3 and config["mllm"]["width"] == 32
        assert config["lora"] == {"rank": 3, "alpha": 6, "targets": sorted(LORA.targets)}
        assert config["aggregator"]["num_layers"] == 4 and config["aggregator"]["mode"] == "dual"
        assert SETTINGS.items() <= config["settings"].items()
        assert len([name for name in names if name.startswith("lora.")]) == NUM_KEYS
        assert "aggregator.null_pooled" in names

    def test_repository_of_the_base_but_no_path(self, trained, tmp_path):
        pipe = trained_pipeline()
        pipe.transformer.register_to_config(_name_or_path="someone/flux")
        pipe.mllm.config.name_or_path = str(tmp_path)
        config = SubjectAdapter.of(pipe).config
        assert (config.transformer.repo, config.mllm.repo) == ("someone/flux", "")
        assert str(tmp_path) not in config.to_json()


class TestVelocity:
    @pytest.mark.parametrize("conditions", ["joint", "cached"])
    def test_is_that_of_weights_merged_by_hand(self, taken, conditions):
        pipe = tiny_pipeline()
        taken.apply(pipe)
        expected = velocity(merged((taken.lora_state, SCALE)), conditions)
        torch.testing.assert_close(velocity(pipe.transformer, conditions), expected, atol=1e-5, rtol=0)
        assert (expected - velocity(base_transformer(), conditions)).abs().max() > 1e-2

    def test_an_untrained_lora_changes_nothing(self):
        transformer = base_transformer()
        before = velocity(transformer)
        add_identity(transformer, LORA)
        assert torch.equal(velocity(transformer), before)


def with_config(taken, **changes):
    return replace(taken, config=replace(taken.config, **changes))


def with_base(taken, name, **changes):
    return with_config(taken, **{name: replace(getattr(taken.config, name), **changes)})


def with_keys(taken, rename):
    return replace(
        taken, lora_state={rename(k, key): tensor for k, (key, tensor) in enumerate(taken.lora_state.items())}
    )


def without(state, chosen):
    return {name: tensor for name, tensor in state.items() if name != chosen}


UNFIT = {
    "class": (
        lambda a: with_base(a, "transformer", class_name="QwenImageTransformer2DModel", repo="Qwen/Qwen-Image"),
        r"transformer is a FluxTransformer2DModel of 3 blocks.*Qwen.* \(Qwen/Qwen-Image\) that the adapter",
    ),
    "blocks": (lambda a: with_base(a, "transformer", num_blocks=57), r"of 3 blocks, width 32: expected .* 57 blocks"),
    "width": (lambda a: with_base(a, "transformer", width=3072), r"width 32: expected .* width 3072"),
    "MLLM's depth": (lambda a: with_base(a, "mllm", num_blocks=28), r"mllm is a .* of 3 blocks.*28 blocks"),
    "MLLM's width": (lambda a: with_base(a, "mllm", width=3584), r"mllm is a .* width 32.*width 3584"),
    "rank": (
        lambda a: with_config(a, lora=replace(LORA, rank=4)),
        r"28 of 28 tensors.*: \[.*\], expected .* at rank 4",
    ),
    "shape": (
        lambda a: replace(
            a, lora_state={k: t[:, :-1] if "0.attn.to_q.lora_A" in k else t for k, t in a.lora_state.items()}
        ),
        r"of 28 tensors .*attn\.to_q\.lora_A\.weight: \[3, 31\], expected \[3, 32\] at rank 3",
    ),
    "no key": (lambda a: with_keys(a, lambda _, key: f"unet.{key}"), r"0 of 28 LoRA keys match.*unet\..* and 24 more"),
    "some keys": (
        lambda a: with_keys(a, lambda k, key: key if k else "x.lora_A.weight"),
        r"27 of 28 .*matched: x\.lora_A",
    ),
    "half a pair": (
        lambda a: replace(a, lora_state=without(a.lora_state, "transformer_blocks.0.attn.to_q.lora_B.weight")),
        r"lacks transformer_blocks\.0\.attn\.to_q\.lora_B\.weight",
    ),
    "aggregator's width": (
        lambda a: with_config(a, aggregator={**a.config.aggregator, "width": 64}),
        r"aggregator has .*'width': 64.*expected .*'width': 32",
    ),
    "aggregator's tensors": (
        lambda a: replace(a, aggregator_state=without(a.aggregator_state, "null_pooled")),
        r"^1 tensors of the adapter's aggregator .* the first is null_pooled: None, expected \[16\]",
    ),
    "aggregator's arguments": (
        lambda a: with_config(a, aggregator={**a.config.aggregator, "depth": 2}),
        r"aggregator cannot be made: .*depth",
    ),
}


class TestAnotherPipeline:
    @pytest.mark.parametrize("name", UNFIT)
    def test_is_refused_and_left_as_it_was(self, base, taken, name):
        change, message = UNFIT[name]
        before = state_of(base)
        with pytest.raises(WeightsError, match=message):
            change(taken).apply(base)
        assert state_of(base) == before

    def test_a_pipeline_without_the_lora_has_no_adapter(self, base):
        with pytest.raises(ValueError, match=r"no LoRA named 'identity'"):
            SubjectAdapter.of(base)

    def test_a_lora_that_the_file_cannot_hold(self):
        from peft import LoraConfig

        pipe = tiny_pipeline()
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_rslora=True), "identity")
        with pytest.raises(ValueError, match=r"'identity' sets use_rslora: expected rank, alpha"):
            SubjectAdapter.of(pipe)

    def test_peft_is_missing(self, base, taken, monkeypatch):
        monkeypatch.setattr(extras, "find_spec", lambda name: None)
        before = state_of(base)
        with pytest.raises(ImportError, match=r"peft is not installed.*pip install 'subjectgen\[flux\]'"):
            taken.apply(base)
        assert state_of(base) == before


class TestWholePipeline:
    def test_with_a_lora_is_not_saved(self, trained, tmp_path):
        with pytest.raises(ValueError, match=r"has LoRA \(identity\), which a saved pipeline cannot hold.*fuse_lora"):
            trained.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_is_saved_when_the_lora_is_merged(self, trained, taken, tmp_path):
        pipe = tiny_pipeline()
        taken.apply(pipe)
        pipe.transformer.fuse_lora()
        pipe.transformer.unload_lora()
        pipe.save_pretrained(tmp_path)
        torch.testing.assert_close(
            latents(SubjectPipeline.from_pretrained(tmp_path)), latents(trained), atol=1e-4, rtol=0
        )


class TestDamagedFile:
    def test_cut_off(self, file):
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(WeightsError, match=r"cannot be read .*corrupt or cut off"):
            SubjectAdapter.load(file)

    def test_no_safetensors(self, file):
        file.write_bytes(b"not tensors")
        with pytest.raises(WeightsError, match=r"cannot be read"):
            SubjectAdapter.load(file)

    def test_one_bit(self, file):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"is altered: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
            SubjectAdapter.load(file)

    @pytest.mark.parametrize("other", [None, "subjectgen.SubjectEmbeds/1"])
    def test_of_another_format(self, file, other):
        with pytest.raises(WeightsError, match=rf"has format {other!r}: expected 'subjectgen\.SubjectAdapter/1'"):
            SubjectAdapter.load(with_metadata(file, format=other))

    @pytest.mark.parametrize("text", ["{}", "not json", None])
    def test_without_its_configuration(self, file, text):
        with pytest.raises(WeightsError, match=r"malformed configuration"):
            SubjectAdapter.load(with_metadata(file, config=text))

    def test_settings_of_no_pipeline(self, file, taken):
        config = json.loads(taken.config.to_json())
        config["settings"]["stages"] = "slow"
        with pytest.raises(WeightsError, match=r"malformed configuration.*stages='slow'"):
            SubjectAdapter.load(with_metadata(file, config=json.dumps(config)))

    def test_configuration_altered(self, file, taken):
        config = json.loads(taken.config.to_json())
        config["lora"]["alpha"] = 60
        with pytest.raises(WeightsError, match=r"is altered"):
            SubjectAdapter.load(with_metadata(file, config=json.dumps(config)))

    @pytest.mark.parametrize("name", ["nothing.safetensors", "a/nothing.safetensors", "", "a/b/c"])
    def test_there_is_none(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=r"is no adapter: expected .* or a Hub repo id"):
            SubjectAdapter.load(tmp_path / name)

    def test_broken_off_while_saving(self, file, taken, monkeypatch):
        before = file.read_bytes()

        def break_off(tensors, path, metadata):
            path.write_bytes(b"half")
            raise OSError("no space")

        monkeypatch.setattr(adapter, "save_file", break_off)
        with pytest.raises(OSError, match="no space"):
            taken.save(file)
        assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


class TestCard:
    def read(self, config):
        _, front, text = str(hub.adapter_card(config)).split("---", maxsplit=2)
        return yaml.safe_load(front), text

    def test_says_what_it_was_trained_on(self, taken):
        changed = with_base(taken, "transformer", repo="black-forest-labs/FLUX.1-dev").config
        front, text = self.read(changed)
        assert front["license"] == "apache-2.0" and front["base_model"] == ["black-forest-labs/FLUX.1-dev"]
        assert "| `transformer` | FluxTransformer2DModel of 3 blocks, width 32 | black-forest-labs/FLUX.1-dev |" in text
        assert "| `stages` | `free` |" in text

    def test_licence_that_the_hub_has_no_name_for(self, taken):
        settings = {**taken.config.settings, "license": "flux-1-dev-non-commercial-license"}
        front, _ = self.read(replace(taken.config, settings=settings))
        assert front["license"] == "other" and front["license_name"] == "flux-1-dev-non-commercial-license"
        assert front["license_link"].startswith("https://huggingface.co/black-forest-labs/FLUX.1-dev")


# In a process of its own: huggingface_hub reads its settings when it is imported.
PUSH_AND_LOAD = """
import sys
from subjectgen import SubjectAdapter, WeightsError
file, repo, gated = sys.argv[1:]
url = SubjectAdapter.load(file).push(repo)
print(url, SubjectAdapter.load(repo).sha256)
for name in (gated, "someone/nothing"):
    try:
        SubjectAdapter.load(name)
    except WeightsError as error:
        print(str(error).replace(" ", "_").replace(chr(10), "_"))
"""
LOAD_OFFLINE = "import sys; from subjectgen import SubjectAdapter; print(SubjectAdapter.load(sys.argv[1]).sha256)"


def test_push_load_and_stay_offline(file, taken, tmp_path):
    with running() as mock:
        mock.repos[GATED], mock.gated = {"adapter.safetensors": b""}, {GATED}
        url, direct, gated, missing = in_process(PUSH_AND_LOAD, mock.url, tmp_path, str(file), REPO, GATED)
        assert url == f"{mock.url}/{REPO}/commit/{mock.sha(REPO)}"
        assert mock.repos[REPO].keys() == {"adapter.safetensors", "README.md"}
    assert f"'{GATED}'_is_gated" in gated and f"https://huggingface.co/{GATED},_then_log_in" in gated
    assert "'someone/nothing'_is_not_on_the_Hub,_or_is_private" in missing
    assert direct == taken.sha256
    assert in_process(LOAD_OFFLINE, mock.url, tmp_path, REPO, HF_HUB_OFFLINE="1") == [direct]
