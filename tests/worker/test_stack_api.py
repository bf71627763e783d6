"""What stands in for older library versions: told apart by version, and tried on the installed one."""

from __future__ import annotations

import pytest
import torch
import transformers

from compat.worker import stack_api
from compat.worker.reference import _Fp64Mode


def _tiny(**more: object) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **more
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_a_refused_load_leaves_no_default_dtype_behind() -> None:
    def load() -> None:
        with stack_api.default_dtype_kept():
            torch.set_default_dtype(torch.bfloat16)
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        load()
    assert torch.get_default_dtype() == torch.float32


def test_keys_and_values_of_a_cache_as_old_forwards_return_it() -> None:
    model = _tiny()
    filled = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    (pair,) = stack_api.cache_tensors(filled)
    (old,) = stack_api.cache_tensors(((*pair, torch.zeros(1), torch.zeros(1)),))
    assert [t.shape for t in old] == [(1, 2, 3, 8)] * 2
    assert all(torch.equal(x, y) for x, y in zip(pair, old, strict=True))


@pytest.mark.parametrize("version", [(4, 45, 2), (4, 57, 6)])
def test_an_old_config_states_what_is_not_the_default(
    version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    unsaid = transformers.GenerationConfig()
    config = transformers.GenerationConfig(top_p=0.5, max_new_tokens=5)
    assert stack_api.stated_settings(config) is config
    monkeypatch.setattr(stack_api, "TRANSFORMERS", version)
    stated = stack_api.stated_settings(config)
    assert (stated.top_p, stated.max_new_tokens) == (0.5, 5)
    assert not hasattr(stated, "repetition_penalty")
    assert not vars(stack_api.stated_settings(unsaid))
    assert stack_api.passed_config_inherits() == (version >= (4, 50))


def test_a_model_built_anew_is_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = _tiny(), torch.tensor([[1, 2, 3, 4]])
    monkeypatch.setattr(stack_api, "TRANSFORMERS", (4, 45, 2))
    monkeypatch.setattr(stack_api, "uses_attention_interface", lambda model: False)
    monkeypatch.setattr(stack_api, "dtype_argument", lambda dtype: {"dtype": dtype})
    made = stack_api.built_with(model, "sdpa")
    assert stack_api.effective_attention(made) == "sdpa"
    assert made is not model
    assert torch.equal(made(ids).logits, stack_api.built_with(model, "sdpa")(ids).logits)
    assert torch.allclose(made(ids).logits, model(ids).logits, atol=1e-6)
    assert {n for n, _ in made.named_parameters()} == {n for n, _ in model.named_parameters()}


def test_embeddings_grow_and_keep_their_rows_with_and_without_the_newer_keyword() -> None:
    model = _tiny()
    before = model.get_input_embeddings().weight.detach().clone()
    stack_api.resize_embeddings(model, 40)
    assert torch.equal(model.get_input_embeddings().weight[:32], before)

    class Old:
        rows = 0

        def resize_token_embeddings(self, rows: int) -> None:
            self.rows = rows

    old = Old()
    stack_api.resize_embeddings(old, 7)
    assert old.rows == 7


def test_what_holds_since_5_only(monkeypatch: pytest.MonkeyPatch) -> None:
    capped = transformers.Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    gemma, llama = transformers.Gemma2ForCausalLM(capped), _tiny()
    assert stack_api.answers_as_stored()
    assert stack_api.sdpa_is_whole(llama)
    monkeypatch.setattr(stack_api, "TRANSFORMERS", (4, 45, 2))
    monkeypatch.setattr(transformers.Gemma2ForCausalLM, "_supports_sdpa", True)
    assert not stack_api.answers_as_stored()
    assert stack_api.sdpa_is_whole(llama)
    assert not stack_api.sdpa_is_whole(gemma)


def test_a_mask_of_the_fp64_minimum_is_fp64_whether_or_not_its_dtype_is_named() -> None:
    least = torch.finfo(torch.float64).min
    with _Fp64Mode():
        assert torch.full((2, 2), least).dtype == torch.float64
        assert torch.full((2,), 1.0).dtype == torch.float32


def _made(kind: str, **more: object) -> object:
    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(kind, **small, **more)
    return stack_api.model_class(config, "causal-lm")(config)


def test_convolutions_and_recurrences_cannot_be_rolled_back() -> None:
    layers = {"num_hidden_layers": 2, "num_key_value_heads": 2}
    assert stack_api.rolls_back(_tiny())
    assert stack_api.rolls_back(_made("gemma2", **layers, head_dim=8))
    assert not stack_api.rolls_back(_made("lfm2", **layers, layer_types=["conv", "full_attention"]))
    assert not stack_api.rolls_back(_made("mamba", num_hidden_layers=1))


def test_a_class_without_an_input_embedding_has_none() -> None:
    config = transformers.AutoConfig.for_model(
        "wav2vec2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8],
        conv_stride=[5], conv_kernel=[10], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = stack_api.model_class(config, "audio-classification")(config)
    assert stack_api.input_embeddings(model) is None
    assert not stack_api.takes_embeddings(model)
    assert stack_api.input_embeddings(_tiny()) is not None
