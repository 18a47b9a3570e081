"""Language models: built, warm-started from text models, saved as plain transformers folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from slm.errors import TresseError
from slm.model import ModelConfig, load_model, parameter_count, save_model, warm_start
from slm.units import UnitVocabulary

TOKENS = torch.tensor([[50, 1, 2, 3, 51, 4, 5]])
SMALL = ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=48, max_position=64)


@pytest.fixture(scope="module")
def vocabulary() -> UnitVocabulary:
    return UnitVocabulary.train([], codebook_size=50, languages=["en", "fr"], vocab_size=None)


def text_models() -> dict[str, Any]:
    torch.manual_seed(0)
    shape = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 48, "num_key_value_heads": 2}
    return {
        "qwen2, tied": Qwen2ForCausalLM(Qwen2Config(**shape, **more, tie_word_embeddings=True)),
        "llama": LlamaForCausalLM(LlamaConfig(**shape, **more, tie_word_embeddings=False)),
        # SmolLM2-135M and Llama 3.2 1B in small: tied tables, keys and values shared by several heads, scaled rotations.
        "smollm2": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=99,
                hidden_size=36,
                num_hidden_layers=2,
                num_attention_heads=9,
                num_key_value_heads=3,
                intermediate_size=96,
                tie_word_embeddings=True,
            )
        ),
        "llama 3.2": LlamaForCausalLM(
            LlamaConfig(
                **shape,
                **more,
                tie_word_embeddings=True,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            )
        ),
        "opt, projected": OPTForCausalLM(
            OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=64)
        ),
    }


@pytest.mark.parametrize("name", ["qwen2, tied", "llama", "smollm2", "llama 3.2", "opt, projected"])
def test_a_warm_start_keeps_the_body_and_replaces_embedding_and_head(
    name: str, tmp_path: Path, vocabulary: UnitVocabulary
) -> None:
    source = text_models()[name].eval()
    source.save_pretrained(tmp_path / "text")
    model = ModelConfig(warm_start=str(tmp_path / "text")).build(vocabulary).eval()
    old, tables = source.state_dict(), 0
    for key, value in model.state_dict().items():
        if "embed_tokens" in key or "lm_head" in key:
            assert value.shape == (len(vocabulary), old[key].shape[1])
            tables += 1
        else:
            assert torch.equal(value, old[key]), key
    assert tables == 2
    tied = bool(source.config.tie_word_embeddings)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert model.config.vocab_size == len(vocabulary)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
    # and it survives the disk
    save_model(model, vocabulary, tmp_path / "units", half=False)
    loaded, _ = load_model(tmp_path / "units")
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, model(TOKENS).logits, atol=1e-6)


def test_a_warm_start_from_nowhere_names_the_mend(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    with pytest.raises(TresseError, match=r"there is no folder .*: give a bundle"):
        warm_start(tmp_path / "nothing", vocabulary)
    for config in (ModelConfig(warm_start=str(tmp_path / "nothing")), ModelConfig(warm_start="runs/a/slm")):
        with pytest.raises(TresseError, match="there is no folder"):
            config.shape()  # a dry run says so, too: not only the training, hours later
    (tmp_path / "empty").mkdir()
    with pytest.raises(TresseError, match=r"cannot start from .*: give a folder or hub id"):
        warm_start(tmp_path / "empty", vocabulary)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_units_is_trained_further_with_all_it_knows(
    tied: bool, tmp_path: Path, vocabulary: UnitVocabulary
) -> None:
    model = replace(SMALL, tie_embeddings=tied).build(vocabulary).eval()
    save_model(model, vocabulary, tmp_path / "bundle" / "slm", half=False)
    for source in (tmp_path / "bundle", tmp_path / "bundle" / "slm"):
        again = ModelConfig(warm_start=str(source)).build(vocabulary).state_dict()
        assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    config = ModelConfig(warm_start=str(tmp_path / "bundle"))
    assert config.shape() == replace(SMALL, tie_embeddings=tied, key_value_heads=SMALL.heads)
    # a third language: what is known stays, and its tag begins as the mean of the others
    more = vocabulary.add_languages(["de"])
    wider = config.build(more).eval()
    with torch.no_grad():
        assert torch.allclose(wider(TOKENS).logits[..., : len(vocabulary)], model(TOKENS).logits, atol=1e-6)
        for table in (wider.get_input_embeddings().weight, wider.get_output_embeddings().weight):
            assert torch.equal(table[more.tag_ids["de"]], table[[more.tag_ids["en"], more.tag_ids["fr"]]].mean(0))
    save_model(wider, more, tmp_path / "wider", half=False)
    loaded, words = load_model(tmp_path / "wider")
    assert words.languages == ["en", "fr", "de"]
    assert loaded.config.vocab_size == len(more)
    other = UnitVocabulary.train([], codebook_size=40, languages=["en", "fr"], vocab_size=None)
    with pytest.raises(TresseError, match="has other tokens"):
        config.build(other)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_a_plain_transformers_folder(tied: bool, tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    torch.manual_seed(1)
    config = ModelConfig(**{**SMALL.__dict__, "tie_embeddings": tied})
    model = config.build(vocabulary).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, vocabulary, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "saving changed it"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert ("lm_head.weight" in names) != tied
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        expected = model.bfloat16().float()(TOKENS).logits
        assert torch.allclose(loaded(TOKENS).logits, expected, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer.convert_tokens_to_ids("<fr>") == vocabulary.tag_ids["fr"]
    again, words = load_model(tmp_path)
    assert parameter_count(again) == parameter_count(model)
    assert words.languages == vocabulary.languages


@pytest.mark.parametrize("mantissa", [2, 3, 7])
def test_weights_are_rounded_to_the_nearest_of_few_mantissa_bits(
    mantissa: int, tmp_path: Path, vocabulary: UnitVocabulary
) -> None:
    torch.manual_seed(2)
    model = SMALL.build(vocabulary)
    model.get_input_embeddings().weight.data[0, :4] = torch.tensor([0.0, -1.0, 1.999, 1e-30])
    save_model(model, vocabulary, tmp_path, mantissa=mantissa)
    for name, value in load_model(tmp_path)[0].state_dict().items():
        before = model.state_dict()[name].bfloat16().float()
        if value.ndim < 2:
            assert torch.equal(value, before)
            continue
        whole = torch.frexp(value)[0] * 2 ** (mantissa + 1)
        assert torch.equal(whole, whole.round())
        assert ((value - before).abs() <= before.abs() / 2 ** (mantissa + 1)).all()


def test_quick_products_are_products(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    torch.manual_seed(3)
    save_model(SMALL.build(vocabulary), vocabulary, tmp_path)
    model, _ = load_model(tmp_path)
    tokens = torch.randint(0, 50, (3, 40))
    with torch.no_grad():
        plain = model(tokens).logits
    with torch.inference_mode():
        quick = model(tokens).logits
    assert torch.allclose(quick, plain, atol=1e-5)


def test_ctranslate2_decodes_a_saved_model_alike(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    import ctranslate2

    torch.manual_seed(2)
    save_model(SMALL.build(vocabulary), vocabulary, tmp_path / "slm")
    model, _ = load_model(tmp_path / "slm")
    ctranslate2.converters.TransformersConverter(str(tmp_path / "slm")).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", intra_threads=1)
    scored = generator.score_batch([vocabulary.tokens_as_text(TOKENS[0].tolist())])[0].log_probs
    with torch.no_grad():
        expected = model(TOKENS).logits.log_softmax(-1)[0, :-1].gather(1, TOKENS[0, 1:, None])[:, 0]
    assert torch.allclose(torch.tensor(scored), expected, atol=1e-4)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    model = SMALL.build(vocabulary)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(TresseError, match="not finite"):
        save_model(model, vocabulary, tmp_path)


def test_a_folder_with_parts_missing_or_unfit_is_refused(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    with pytest.raises(TresseError):
        load_model(tmp_path / "nothing")
    save_model(SMALL.build(vocabulary), vocabulary, tmp_path)
    vocabulary.add_languages(["de"]).save(tmp_path)
    with pytest.raises(TresseError, match="tokenizer 55"):
        load_model(tmp_path)


def test_heads_that_do_not_divide_the_width_are_refused(vocabulary: UnitVocabulary) -> None:
    with pytest.raises(TresseError, match="multiple"):
        ModelConfig(hidden_size=30, heads=4).build(vocabulary)
