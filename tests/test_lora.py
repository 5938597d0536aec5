"""A user's own LoRA beside that of the identity, against weights merged by hand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_adapter import LORA, base_transformer, merged, trained_pipeline, velocity
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

from subjectgen import SubjectAdapter, WeightsError, extras
from subjectgen.lora import active_loras, load_lora
from subjectgen.weights import model_hash

STYLE = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "proj_mlp", "to_add_out"])
IDENTITY_SCALE, STYLE_SCALE = LORA.alpha / LORA.rank, STYLE.lora_alpha / STYLE.r


@pytest.fixture(scope="module")
def adapter():
    return SubjectAdapter.of(trained_pipeline())


@pytest.fixture(scope="module")
def styled():
    """A transformer with a style of its own, as another trainer leaves it."""
    transformer = base_transformer()
    transformer.add_adapter(STYLE, "default")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return transformer


@pytest.fixture(scope="module")
def style(styled):
    return {key: tensor.detach() for key, tensor in get_peft_model_state_dict(styled, adapter_name="default").items()}


@pytest.fixture
def pipe(adapter):
    pipe = tiny_pipeline()
    adapter.apply(pipe)
    return pipe


def expect(pipe, *loras):
    torch.testing.assert_close(velocity(pipe.transformer), velocity(merged(*loras)), atol=1e-5, rtol=0)


class TestBesideTheIdentity:
    def test_both_act(self, pipe, adapter, style):
        assert str(load_lora(pipe, style, "style")) == "12 of 12 keys matched"
        assert active_loras(pipe.transformer) == ["identity", "style"]
        expect(pipe, (adapter.lora_state, IDENTITY_SCALE), (style, 1.0))  # tensors alone say no alpha

    def test_weights(self, pipe, adapter, style):
        load_lora(pipe, style, "style")
        pipe.transformer.set_adapters(["identity", "style"], [0.5, 2.0])
        expect(pipe, (adapter.lora_state, 0.5 * IDENTITY_SCALE), (style, 2.0))
        pipe.transformer.set_adapters("style")
        expect(pipe, (style, 1.0))

    def test_weights_of_those_already_there_are_kept(self, pipe, adapter, style):
        pipe.transformer.set_adapters("identity", [0.5])
        load_lora(pipe, style, "style")
        expect(pipe, (adapter.lora_state, 0.5 * IDENTITY_SCALE), (style, 1.0))

    def test_the_identity_comes_second(self, adapter, style):
        pipe = tiny_pipeline()
        load_lora(pipe, style, "style")
        adapter.apply(pipe)
        assert sorted(active_loras(pipe.transformer)) == ["identity", "style"]
        expect(pipe, (adapter.lora_state, IDENTITY_SCALE), (style, 1.0))
        adapter.apply(pipe)
        expect(pipe, (adapter.lora_state, IDENTITY_SCALE), (style, 1.0))

    def test_another_of_the_same_name_reads_subjects_again(self, style):
        pipe = tiny_pipeline()
        subject = pipe.encode_subjects(picture("red"))
        for other in (style, {key: 2 * tensor for key, tensor in style.items()}):
            load_lora(pipe, other, "style")
            images = [
                pipe("a red cat", subjects, generator=seeded_generators(0), output_type="latent").images
                for subjects in (subject, picture("red"))
            ]
            torch.testing.assert_close(*images)
            pipe.transformer.delete_adapters("style")

    def test_the_adapter_holds_the_identity_only(self, pipe, adapter, style):
        load_lora(pipe, style, "style")
        assert SubjectAdapter.of(pipe).sha256 == adapter.sha256


class TestLayouts:
    def check(self, source, style, scale, matched="12 of 12 keys matched"):
        pipe = tiny_pipeline()
        assert str(load_lora(pipe, source, "style")) == matched
        expect(pipe, (style, scale))

    def test_saved_by_a_transformer(self, styled, style, tmp_path):
        styled.save_lora_adapter(tmp_path, "default")
        self.check(tmp_path, style, STYLE_SCALE)
        self.check(next(tmp_path.glob("*.safetensors")), style, STYLE_SCALE)

    def test_saved_by_peft(self, style, tmp_path):
        STYLE.save_pretrained(str(tmp_path))
        prefixed = {f"base_model.model.{key}": tensor.contiguous() for key, tensor in style.items()}
        save_file(prefixed, tmp_path / "adapter_model.safetensors")
        self.check(tmp_path, style, STYLE_SCALE)

    def test_of_a_whole_pipeline(self, style):
        """With keys of a text encoder that this pipeline has not."""
        whole = {f"transformer.{key}": tensor for key, tensor in style.items()}
        whole["text_encoder.layers.0.q_proj.lora_A.weight"] = torch.zeros(2, 8)
        with pytest.warns(UserWarning, match=r"1 of 13 keys are left out: they belong to text encoders"):
            self.check(whole, style, 1.0, matched="12 of 13 keys matched")


@pytest.fixture(scope="module")
def untouched():
    return tiny_pipeline()


class TestRefusals:
    def refused(self, pipe, source, message):
        before = model_hash(pipe.components)
        with pytest.raises(WeightsError, match=message):
            load_lora(pipe, source, "style")
        assert model_hash(pipe.components) == before and active_loras(pipe.transformer) == []

    def test_nothing_matches(self, untouched, style):
        other = {f"transformer.unet.{key}": tensor for key, tensor in style.items()}
        self.refused(
            untouched, other, r"'this LoRA': 0 of 12 LoRA keys match this FluxTransformer2DModel; not matched: un"
        )
        self.refused(untouched, {"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 8)}, r"0 of 1 LoRA keys match")
        self.refused(untouched, {}, r"0 of 0 LoRA keys match")

    def test_some_match(self, untouched, style):
        more = {**style, "transformer_blocks.9.attn.to_q.lora_A.weight": torch.zeros(2, 32)}
        self.refused(
            untouched, more, r"12 of 13 LoRA keys match .*not matched: transformer_blocks\.9\.attn\.to_q\.lora_A"
        )

    def test_of_a_wider_transformer(self, untouched, style):
        wider = {key: tensor.repeat(2, 2) for key, tensor in style.items()}
        self.refused(untouched, wider, r"0 of 12 LoRA keys match")

    def test_no_file(self, untouched, tmp_path):
        self.refused(untouched, tmp_path / "nothing.safetensors", r"nothing\.safetensors' cannot be loaded")

    @pytest.mark.parametrize("name", ["identity", "style"])
    def test_name_that_is_taken(self, style, name):
        pipe = tiny_pipeline()
        load_lora(pipe, style, "style")
        with pytest.raises(ValueError, match=rf"name='{name}' is taken"):
            load_lora(pipe, style, name)

    def test_peft_is_missing(self, untouched, style, monkeypatch):
        monkeypatch.setattr(extras, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"peft is not installed.*subjectgen\[flux\]"):
            load_lora(untouched, style, "style")
