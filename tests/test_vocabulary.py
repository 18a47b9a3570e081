"""The unit vocabulary: lossless, loadable by AutoTokenizer, growing by languages, with or without BPE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from slm.errors import TresseError
from slm.units import UnitVocabulary
from slm.units.vocabulary import to_text

CODEBOOK = 40


def make(vocab_size: int | None) -> UnitVocabulary:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, CODEBOOK, rng.integers(2, 6)) for _ in range(30)]
    speech = [np.concatenate([words[i] for i in rng.integers(0, 30, 12)]) for _ in range(200)]
    return UnitVocabulary.train(speech, codebook_size=CODEBOOK, languages=["en", "fr"], vocab_size=vocab_size)


VOCABULARIES = {"bpe": make(300), "units": make(None)}


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> UnitVocabulary:
    return VOCABULARIES[request.param]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(VOCABULARIES)), st.lists(st.integers(0, CODEBOOK - 1), max_size=80))
def test_round_trip(kind: str, ids: list[int]) -> None:
    vocabulary = VOCABULARIES[kind]
    tokens = vocabulary.encode(np.array(ids, dtype=np.int64))
    assert vocabulary.decode(tokens).tolist() == ids
    assert len(tokens) <= len(ids)
    assert [unit for token in tokens for unit in vocabulary.token_units(token)] == ids
    if kind == "units":
        assert tokens == ids
    assert vocabulary.encode_batch([np.array(ids, dtype=np.int64)])[0].tolist() == tokens


def test_bpe_makes_sequences_shorter() -> None:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, CODEBOOK, rng.integers(2, 6)) for _ in range(30)]
    speech = np.concatenate([words[i] for i in rng.integers(0, 30, 200)])
    assert len(VOCABULARIES["bpe"].encode(speech)) < 0.5 * len(speech)


def test_story_layout(vocabulary: UnitVocabulary) -> None:
    one, two = np.array([1, 2, 3]), np.array([4, 5])
    tokens = vocabulary.sequence([("en", one), ("fr", two)], end=True)
    assert tokens[0] == vocabulary.bos_id
    assert tokens[1] == vocabulary.tag_ids["en"]
    assert tokens[-1] == vocabulary.eos_id
    assert tokens.count(vocabulary.tag_ids["fr"]) == 1
    assert vocabulary.decode(tokens).tolist() == [1, 2, 3, 4, 5]


def test_auto_tokenizer_reads_it(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    vocabulary.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(str(tmp_path))
    assert len(auto) == len(vocabulary)
    ids = np.array([7, 8, 9, 7, 8])
    assert auto(to_text(ids), add_special_tokens=False).input_ids == vocabulary.encode(ids)
    assert auto.convert_tokens_to_ids(["<en>", "<fr>"]) == [vocabulary.tag_ids["en"], vocabulary.tag_ids["fr"]]
    again = UnitVocabulary.load(tmp_path)
    assert again.encode(ids) == vocabulary.encode(ids)
    assert again.languages == ["en", "fr"]


def test_languages_can_be_added(vocabulary: UnitVocabulary) -> None:
    more = vocabulary.add_languages(["de", "fr"])
    assert more.languages == ["en", "fr", "de"]
    assert len(more) == len(vocabulary) + 1
    assert more.tag_ids["en"] == vocabulary.tag_ids["en"]
    ids = np.array([3, 1, 4, 1, 5])
    assert more.encode(ids) == vocabulary.encode(ids)


def test_what_cannot_be_is_refused(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        vocabulary.encode(np.array([CODEBOOK]))
    with pytest.raises(TresseError, match="codebook_size"):
        UnitVocabulary.train([], codebook_size=0, languages=["en"], vocab_size=10)
    with pytest.raises(TresseError, match="restore"):
        UnitVocabulary.load(tmp_path)
