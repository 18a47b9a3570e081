"""A recogniser for units that are phones: its n-grams, its pronunciations, and what it makes of probabilities of units."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.lexicon import LexiconConfig, LexiconRecogniser, check_lexicon, emissions_of, is_lexicon, sentence
from slm.model import BUNDLES
from slm.ngrams import BEGIN, END, UNKNOWN, NGrams
from slm.recognisers import has_recogniser, open_recogniser
from slm.units import load_encoder
from slm.units.causal import FRAME, CausalUnitEncoder
from slm.units.smoothing import Smoothing
from train.asr.lexicon import LexiconTraining, make_lexicon, pronunciations, spellings, words_of
from train.asr.ngrams import estimate_ngrams
from train.corpus.channel import Channel, phones_of
from train.stories.grammar import Story

UNITS = BUNDLES / "natural" / "units"
READERS = {"en": "en-us", "fr": "fr"}
TOLD = {
    "en": ["The cat sleeps on the old mat.", "A dog runs to the river.", "The dog and the cat like Emma's garden."],
    "fr": ["Le chat dort sur l'herbe.", "Les enfants aiment l'école.", "Un chien court vers la rivière."],
}


class Spoken(CausalUnitEncoder):
    """An encoder that hears the units it is given, a frame of each `seconds` long, with some doubt."""

    def __init__(self, units: list[int], doubt: float, seed: int = 0) -> None:
        real = load_encoder(UNITS)
        self.config, self.sample_rate, self.codebook_size = real.config, real.sample_rate, real.codebook_size
        rng = np.random.default_rng(seed)
        rows = np.repeat(np.eye(self.codebook_size)[units], rng.integers(3, 9, len(units)), axis=0)
        self.heard = np.log(
            (1 - doubt) * rows + doubt * rng.dirichlet(np.full(self.codebook_size, 0.3), len(rows)) + 1e-9
        )

    def log_probabilities(self, waveform: np.ndarray) -> np.ndarray:
        return self.heard.astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser of the sentences above."""
    made = tmp_path_factory.mktemp("lexicon") / "asr"
    stories = [Story(f"s{number}", {name: [texts[number]] for name, texts in TOLD.items()}) for number in range(3)] * 2
    make_lexicon(LexiconTraining(counts=(1, 1, 1)), stories, ["en", "fr"], READERS, UNITS, made)
    return made


@pytest.fixture(scope="module")
def units() -> dict[str, int]:
    return dict(Channel.load(UNITS).units)


def spelt(text: str, language: str, units: dict[str, int]) -> list[int]:
    """The units of a text, as they would be heard."""
    return [units[phone] for phone in phones_of(text, READERS[language]) if phone in units]


# n-grams


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), min_size=1, max_size=12), st.integers(1, 3))
def test_what_may_follow_has_a_probability_of_one_in_all(sentences: list[list[str]], least: int) -> None:
    words = ["a", "b", "c", "d"]  # e is unknown
    ngrams = estimate_ngrams(sentences, words, (1, 1, least))
    table = {
        tuple(row): (10.0**p, 10.0**b)
        for ids, ps, bs in zip(ngrams.ids, ngrams.probabilities, ngrams.backoffs, strict=True)
        for row, p, b in zip(ids.tolist(), ps.tolist(), bs.tolist(), strict=True)
    }

    def probability(context: tuple[int, ...], word: int) -> float:
        if (*context, word) in table:
            return table[(*context, word)][0]
        return table.get(context, (0.0, 1.0))[1] * probability(context[1:], word)

    predicted = [number for number in range(len(ngrams.words)) if number != 1]  # all but <s>
    for context in [(), *(key for key in table if len(key) < 3 and 2 not in key)]:
        assert sum(probability(context, word) for word in predicted) == pytest.approx(1.0, abs=1e-5)


def test_ngrams_are_kept_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    ngrams = estimate_ngrams([["a", "b"], ["b", "é"]], ["a", "b", "é"], (1, 1, 1))
    ngrams.save(tmp_path)
    again = NGrams.load(tmp_path)
    assert list(again.words) == [UNKNOWN, BEGIN, END, "a", "b", "é"]
    assert all((a == b).all() for a, b in zip(again.ids, ngrams.ids, strict=True))
    assert all(np.allclose(a, b, rtol=2e-3) for a, b in zip(again.probabilities, ngrams.probabilities, strict=True))
    for words in (
        ["<unk>", "<s>", "</s>", "a", "b"],
        ["<unk>", "<s>", "</s>", "a b", "b", "é"],
        [UNKNOWN, BEGIN, END, "a", "a", "b"],
    ):
        (tmp_path / "words.json").write_text(json.dumps(words))
        with pytest.raises(TresseError, match="restore"):
            NGrams.load(tmp_path)
    with pytest.raises(TresseError, match="there are none"):
        estimate_ngrams([], ["a"])


# words and pronunciations


def test_words_are_as_they_are_spelt() -> None:
    assert words_of("“It's Emma's,” said Tom-Tom: 3 cats!", "en") == ["It's", "Emma's", "said", "Tom-Tom", "cats"]
    assert words_of("L’école qu'il aime aujourd'hui, dit-elle.", "fr") == [
        "L'",
        "école",
        "qu'",
        "il",
        "aime",
        "aujourd'hui",
        "dit-elle",
    ]
    texts = [words_of(text, "en") for text in ("Emma saw the dog.", "The dog saw Emma.", "Then I slept.")]
    assert spellings(texts, 2) == ["Emma", "dog", "saw", "the"]
    assert spellings(texts, 1) == ["Emma", "I", "dog", "saw", "slept", "the", "then"]


def test_pronunciations_know_weak_forms_and_liaison(units: dict[str, int]) -> None:
    names = json.loads((UNITS / "phones.json").read_text(encoding="utf-8"))

    def read(words: list[str], texts: list[str], language: str) -> dict[str, set[str]]:
        made = pronunciations(words, texts, language, READERS[language], units)
        return {word: {"".join(names[unit] for unit in way) for way in ways} for word, ways in made.items()}

    english = read(["the", "cat"], ["The cat saw the apple.", "The cat ate the apple.", "See the egg."], "en")
    assert english["cat"] == {"kæt"}
    assert {"ðə", "ðɪ"} <= english["the"]
    french = read(["les", "chats", "l'"], ["Les enfants et les chats.", "Les amis."], "fr")
    assert {"le", "lez"} <= french["les"]
    assert french["l'"] == {"l"}


# the recogniser


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(name, text) for name, texts in TOLD.items() for text in texts]), st.integers(0, 99))
def test_what_was_said_is_written_down_in_its_language(
    folder: Path, units: dict[str, int], said: tuple[str, str], seed: int
) -> None:
    language, text = said
    heard = spelt(text, language, units)
    segments = list(LexiconRecogniser(folder, Spoken(heard, 0.2, seed))._write_down(np.zeros(9), [(0, 9)], None))
    assert [(segment.text, segment.language) for segment in segments] == [(text, language)]
    assert 0.0 < segments[0].confidence <= 1.0
    assert segments[0].probability > 0.5


def test_a_wrong_a_missed_and_an_added_unit_do_not_matter(folder: Path, units: dict[str, int]) -> None:
    rng = random.Random(0)
    right = 0
    for number in range(20):
        text = TOLD["en"][number % 3]
        heard = spelt(text, "en", units)
        position = rng.randrange(2, len(heard) - 2)
        if number % 3 == 0:
            del heard[position]
        elif number % 3 == 1:
            heard[position] = rng.choice(
                [unit for unit in units.values() if unit not in heard[position - 1 : position + 2]]
            )
        else:
            heard.insert(position, units["z"])
        (segment,) = LexiconRecogniser(folder, Spoken(heard, 0.3, number))._write_down(np.zeros(9), [(0, 9)], "en")
        right += segment.text == text
    assert right >= 15


def test_silence_says_nothing_and_a_waveform_is_written_down_in_pieces(folder: Path) -> None:
    recogniser = open_recogniser(folder.parent, ["fr"], encoder=load_encoder(UNITS))
    assert recogniser.languages == ["fr"]
    assert recogniser.transcribe(np.zeros(16000, np.float32), 16000).text == ""
    with pytest.raises(TresseError, match="does not know the language en"):
        next(recogniser._write_down(np.zeros(9), [(0, 9)], "en"))
    with pytest.raises(TresseError, match="knows none of de"):
        LexiconRecogniser(folder, load_encoder(UNITS), ["de"])  # type: ignore[arg-type]


def test_probabilities_are_of_the_units_that_are_encoded() -> None:
    encoder = load_encoder(UNITS)
    assert isinstance(encoder, CausalUnitEncoder)
    noise = np.random.default_rng(0).normal(0, 0.1, 40 * FRAME + 100).astype(np.float32)
    heard = encoder.log_probabilities(noise)
    assert heard.shape == (41, encoder.codebook_size)
    assert np.allclose(np.exp(heard).sum(-1), 1.0, atol=1e-5)
    assert (encoder.smoothed(heard) == encoder.encode(noise, 16000).frames()).all()
    assert encoder.log_probabilities(noise[:0]).shape == (0, encoder.codebook_size)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_emissions_have_a_place_for_each_run_and_one_behind_it(seed: int, frames: int) -> None:
    encoder = Spoken([0], 0.0)
    rng = np.random.default_rng(seed)
    heard = np.log(rng.dirichlet(np.full(encoder.codebook_size, 0.1), frames) + 1e-9).astype(np.float32)
    config = LexiconConfig(type="lexicon", languages=["en"], silence=0)
    emissions = emissions_of(heard, encoder, config)
    path = Smoothing(encoder.config.switch_cost).push(torch.from_numpy(heard)[None])[0][0].numpy()
    runs = 1 + int((path[1:] != path[:-1]).sum())
    assert emissions.shape == (2 * runs, encoder.codebook_size + 1)
    assert np.isfinite(emissions).all()
    assert (emissions[::2, -1] == -config.inserted).all()
    assert (emissions[1::2, -1] == 0).all()


def test_a_sentence_has_a_capital_and_a_full_stop() -> None:
    assert sentence(["l'", "école", "est", "là"]) == "L'école est là."
    assert sentence([]) == ""


def test_without_the_decoder_there_are_no_transcripts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page goes on without them; who asks for one is told what is missing."""
    assert has_recogniser(folder.parent)
    monkeypatch.setattr("slm.lexicon.importlib.util.find_spec", lambda name: None)
    assert not has_recogniser(folder.parent)
    with pytest.raises(TresseError, match="pip install flashlight-text"):
        open_recogniser(folder.parent, ["en"], encoder=load_encoder(UNITS))


# its files


@pytest.mark.parametrize("harm", ["units", "word", "extra", "config", "table", "link"])
def test_files_that_cannot_be_are_refused_in_one_line(folder: Path, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "bundle" / "asr"
    shutil.copytree(folder, copy)
    assert is_lexicon(copy)
    assert has_recogniser(copy.parent)
    check_lexicon(copy)
    lexicon = copy / "en" / "lexicon.json"
    if harm == "units":
        lexicon.write_text(json.dumps({"cat": [[4000]]}))
    elif harm == "word":
        lexicon.write_text(json.dumps({"zebra": [[1]]}))
    elif harm == "extra":
        (copy / "evil.py").write_text("import os")
    elif harm == "config":
        (copy / "config.json").write_text(json.dumps({"type": "lexicon", "languages": ["../x"], "silence": 0}))
    elif harm == "table":
        path = copy / "fr" / "ngrams.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
    else:
        lexicon.rename(tmp_path / "elsewhere")
        lexicon.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TresseError) as error:
        open_recogniser(copy.parent, ["en", "fr"], encoder=load_encoder(UNITS))
    assert "\n" not in str(error.value)
