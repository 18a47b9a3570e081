"""The unit vocabulary: lossless, loadable by AutoTokenizer, growing by languages, with or without BPE."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from slm.errors import TresseError
from slm.units import UnitVocabulary
from slm.units.vocabulary import MAX_CODEBOOK, to_text

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


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(VOCABULARIES)),
    st.lists(st.tuples(st.sampled_from(["en", "fr"]), st.lists(st.integers(0, CODEBOOK - 1), max_size=20)), max_size=5),
)
def test_auto_tokenizer_reads_and_writes_stories(kind: str, sentences: list[tuple[str, list[int]]]) -> None:
    """A story written as text (tags, and a character a unit) is to AutoTokenizer what it is to the vocabulary."""
    vocabulary, auto = VOCABULARIES[kind], auto_tokenizer(kind)
    tokens = vocabulary.sequence([(language, np.array(ids, np.int64)) for language, ids in sentences], end=True)
    text = "<bos>" + "".join(f"<{language}>{to_text(ids)}" for language, ids in sentences) + "<eos>"
    assert auto(text, add_special_tokens=False).input_ids == tokens
    assert auto.decode(tokens) == text
    assert auto.decode(tokens, skip_special_tokens=True) == "".join(to_text(ids) for _, ids in sentences)


@functools.cache
def auto_tokenizer(kind: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        VOCABULARIES[kind].save(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), codebook=st.integers(1, MAX_CODEBOOK), runs=st.booleans())
def test_any_codebook_and_uncollapsed_runs_round_trip(data: st.DataObject, codebook: int, runs: bool) -> None:
    units = st.integers(0, codebook - 1)
    frames = data.draw(st.lists(units, max_size=30))
    if runs:
        frames = np.repeat(frames, data.draw(st.integers(1, 5))).tolist()
    size = data.draw(st.none() | st.integers(codebook, codebook + 50))
    vocabulary = UnitVocabulary.train(
        [np.array(frames, np.int64)] * 3, codebook_size=codebook, languages=["en"], vocab_size=size
    )
    assert vocabulary.decode(vocabulary.encode(np.array(frames, np.int64))).tolist() == frames
    everything = data.draw(st.lists(units, max_size=30))  # what the merges were not learnt from
    assert vocabulary.decode(vocabulary.encode(np.array(everything, np.int64))).tolist() == everything


def test_languages_can_be_added(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    more = vocabulary.add_languages(["de", "fr", "de", "pt-BR"])
    assert more.languages == ["en", "fr", "de", "pt-BR"]
    assert len(more) == len(vocabulary) + 2
    assert {more.tag_ids[language] for language in ("de", "pt-BR")} == {len(vocabulary), len(vocabulary) + 1}
    assert all(more.tag_ids[language] == vocabulary.tag_ids[language] for language in vocabulary.languages)
    ids = np.array([3, 1, 4, 1, 5])
    assert more.encode(ids) == vocabulary.encode(ids)
    assert vocabulary.languages == ["en", "fr"]  # the one it was made from is as it was
    more.save(tmp_path)
    again = UnitVocabulary.load(tmp_path)
    assert again.tag_ids == more.tag_ids
    story = again.sequence([("de", ids), ("en", ids)])
    assert AutoTokenizer.from_pretrained(str(tmp_path)).decode(story) == f"<bos><de>{to_text(ids)}<en>{to_text(ids)}"


def test_what_cannot_be_is_refused(tmp_path: Path, vocabulary: UnitVocabulary) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        vocabulary.encode(np.array([CODEBOOK]))
    with pytest.raises(TresseError, match="codebook_size"):
        UnitVocabulary.train([], codebook_size=0, languages=["en"], vocab_size=10)
    with pytest.raises(TresseError, match="turn BPE off"):
        UnitVocabulary.train([], codebook_size=40, languages=["en"], vocab_size=10)
    for languages in (["bos"], ["en", "en"], [""], ["<fr>"]):
        with pytest.raises(TresseError, match="language"):
            UnitVocabulary.train([], codebook_size=40, languages=languages, vocab_size=None)
    with pytest.raises(TresseError, match="language's name"):
        vocabulary.add_languages(["eos"])
    for token in (-1, len(vocabulary)):
        with pytest.raises(IndexError):
            vocabulary.decode([token])
    with pytest.raises(TresseError, match="restore"):
        UnitVocabulary.load(tmp_path)
