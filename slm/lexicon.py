"""A recogniser for units that are phones: their probabilities, a pronouncing dictionary and word n-grams, in one beam.

    asr/config.json                  LexiconConfig
    asr/LANGUAGE/words.json, ngrams.safetensors   (`slm.ngrams`)
    asr/LANGUAGE/lexicon.json        the pronunciations of each word: lists of units

The encoder hears: every run of one unit is a place where a phone stands, with the mean probabilities of the run's frames.
Between two runs there is room for a phone that was missed, and a run may stand for none. The beam search is Flashlight's
lexicon decoder (Kahn et al. 2022, arXiv:2201.12465), its language model KenLM (Heafield 2011). Every language of the
dictionary is tried; the likeliest is the language of the piece.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from slm.errors import TresseError
from slm.ngrams import TABLES, WORDS, NGrams
from slm.recogniser_files import check_links
from slm.schema import Part, parse, read_json
from slm.transcribe import Recogniser, Segment
from slm.units.causal import CausalUnitEncoder
from slm.voice_activity import RATE

CONFIG, LEXICON = "config.json", "lexicon.json"
LONGEST = 24.0
"""s of speech that are written down at once."""
HOMOPHONES = 6
"""Words of one pronunciation; the decoder has room for no more."""
LEAST = 1e-3
"""Of a unit's probability: what is never quite excluded."""
Spelling = Annotated[list[Annotated[int, Field(strict=True, ge=0, le=4096)]], Field(max_length=200)]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class LexiconConfig(Part):
    """asr/config.json. silence: the unit of a pause. language_model: weight of the n-grams' log10 probabilities; word:
    added for each word; inserted, missed: price of a unit that stands for no phone, and of a phone that has no unit; beam:
    hypotheses that are kept."""

    type: str
    languages: Annotated[list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]], Field(min_length=1, max_length=64)]
    silence: Annotated[int, Field(strict=True, ge=0, le=4096)]
    language_model: Weight = 1.5
    word: Weight = 0.0
    inserted: Weight = 6.0
    missed: Weight = 1.0
    beam: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 200


Spellings = dict[Annotated[str, Field(min_length=1, max_length=100)], Annotated[list[Spelling], Field(max_length=16)]]
"""Of each word its pronunciations."""


class LexiconRecogniser(Recogniser):
    """A dictionary and n-grams of each language. folder: as above; encoder: whose units the dictionary spells with.

    Raises TresseError where a file is missing or cannot be true, none of the languages is known, or the decoder is not
    installed.
    """

    def __init__(self, folder: Path, encoder: CausalUnitEncoder, languages: Sequence[str] | None = None) -> None:
        if not can_decode():
            raise TresseError(
                "this recogniser needs flashlight-text: pip install flashlight-text, or give another by --asr"
            )
        self.config, tables = _read(folder)
        self.encoder = encoder
        self.longest = LONGEST
        self.languages: list[str] = [name for name in self.config.languages if languages is None or name in languages]
        if not self.languages:
            raise TresseError(f"the recogniser in {folder} knows none of {', '.join(languages or [])}: choose another")
        if self.config.silence >= encoder.codebook_size:
            raise TresseError(f"the recogniser in {folder} spells with other units: restore the bundle's files")
        units = encoder.codebook_size
        if any(
            number >= units
            for name in self.languages
            for pronounced in tables[name][1].values()
            for spelling in pronounced
            for number in spelling
        ):
            raise TresseError(f"the recogniser in {folder} spells with other units: restore the bundle's files")
        with _quiet:
            self._decoders = {name: _Decoder(*tables[name], units, self.config) for name in self.languages}

    def _write_down(self, audio: np.ndarray, pieces: list[tuple[int, int]], language: str | None) -> Iterator[Segment]:
        self._check(language)
        for start, end in pieces:
            emissions = emissions_of(self.encoder.log_probabilities(audio[start:end]), self.encoder, self.config)
            tried = [language] if language is not None else self.languages
            best = [self._decoders[name](emissions) for name in tried]
            scores = np.array([score for _, score, _ in best])
            likely = int(scores.argmax())
            odds = np.exp(scores - scores.max())
            text, _, confidence = best[likely]
            yield Segment(start / RATE, end / RATE, text, tried[likely], float(odds[likely] / odds.sum()), confidence)


def emissions_of(log_probabilities_TK: np.ndarray, encoder: CausalUnitEncoder, config: LexiconConfig) -> np.ndarray:
    """Log probabilities of the units in every frame [T, K] -> what is decoded: float32 [2 N, K + 1] for N runs.

    Row 2 n: the run as a phone, the last column as none; row 2 n + 1: a missed phone between this run and the next, the last
    column that there is none.
    """
    frames = encoder.smoothed(log_probabilities_TK)
    starts = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]]) if len(frames) else np.zeros(0, np.int64)
    probabilities = np.exp(log_probabilities_TK)
    bounds = np.r_[starts, len(frames)]
    count, units = len(starts), log_probabilities_TK.shape[1]
    emissions = np.zeros((2 * count, units + 1), np.float32)
    for number in range(count):
        first, last = bounds[number], bounds[number + 1]
        run = probabilities[first:last].mean(0)
        edge = probabilities[max(first, last - 2) : last + 2].mean(0)
        emissions[2 * number, :-1] = np.log(np.maximum(run, LEAST))
        emissions[2 * number, -1] = -config.inserted
        emissions[2 * number + 1, :-1] = np.log(np.maximum(edge, LEAST)) - config.missed
    return emissions


class _Quiet:
    """KenLM reports its loading on the standard error of the process: that goes nowhere meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._before, 2)
        os.close(self._before)
        self._lock.release()


_quiet = _Quiet()


class _Decoder:
    """Emissions -> text, score and confidence, in one language."""

    def __init__(
        self, ngrams: NGrams, spellings: Mapping[str, list[list[int]]], units: int, config: LexiconConfig
    ) -> None:
        from flashlight.lib.text import decoder as flashlight
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        self.words = Dictionary(list(ngrams.words))
        self.blank = units
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ngrams.arpa"
            ngrams.write_arpa(path)
            self.model = KenLM(str(path), self.words)
        trie = flashlight.Trie(units + 1, config.silence)
        start = self.model.start(False)
        numbers = {word: self.words.get_index(word) for word in spellings}
        scores = {word: self.model.score(start, number)[1] for word, number in numbers.items()}
        alike: Counter[tuple[int, ...]] = Counter()
        for word in sorted(spellings, key=lambda word: -scores[word]):
            for spelling in map(tuple, spellings[word]):
                alike[spelling] += 1
                if alike[spelling] <= HOMOPHONES:
                    trie.insert(list(spelling), numbers[word], scores[word])
        trie.smear(flashlight.SmearingMode.MAX)
        options = flashlight.LexiconDecoderOptions(
            beam_size=config.beam,
            beam_size_token=units + 1,
            beam_threshold=40.0,
            lm_weight=config.language_model,
            word_score=config.word,
            unk_score=-np.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=flashlight.CriterionType.CTC,
        )
        self.decoder = flashlight.LexiconDecoder(
            options, trie, self.model, config.silence, self.blank, self.words.get_index("<unk>"), [], False
        )

    def __call__(self, emissions: np.ndarray) -> tuple[str, float, float]:
        steps, columns = emissions.shape
        if steps == 0:
            return "", 0.0, 0.0
        emissions = np.ascontiguousarray(emissions)
        results = self.decoder.decode(emissions.ctypes.data, steps, columns)
        if not results:
            return "", -np.inf, 0.0
        best = results[0]
        words = [self.words.get_entry(number) for number in best.words if number >= 0]
        return sentence(words), best.score, float(np.exp(min(0.0, best.emittingModelScore / max(1, steps // 2))))


def sentence(words: Sequence[str]) -> str:
    """Words as a sentence: a capital at its beginning, no space behind what is elided, a full stop."""
    text = " ".join(words).replace("' ", "'")
    return text[:1].upper() + text[1:] + "." if text else ""


def _read(folder: Path) -> tuple[LexiconConfig, dict[str, tuple[NGrams, Spellings]]]:
    """Config, n-grams and pronunciations. Raises TresseError as `check_lexicon`."""
    check_links(folder)
    path = folder / CONFIG
    config: LexiconConfig = parse(LexiconConfig, read_json(path), path)
    needed = {
        folder / CONFIG,
        *(folder / name / file for name in config.languages for file in (LEXICON, WORDS, TABLES)),
    }
    for path in sorted(folder.rglob("*")):
        if path not in needed and path.name != "README.md" and not (path.is_dir() and path.parent == folder):
            raise TresseError(f"no recogniser needs {path}: remove it from the bundle")
    tables: dict[str, tuple[NGrams, Spellings]] = {}
    for name in config.languages:
        path = folder / name / LEXICON
        spellings: Spellings = parse(Spellings, read_json(path), path)
        ngrams = NGrams.load(folder / name)
        if (
            not spellings
            or not spellings.keys() <= set(ngrams.words[3:])
            or not all(spelling for pronounced in spellings.values() for spelling in pronounced)
        ):
            raise TresseError(f"the dictionary {path} cannot be: restore the recogniser's files")
        tables[name] = (ngrams, spellings)
    return config, tables


def check_lexicon(folder: Path) -> None:
    """Raises TresseError, one line, where the files of such a recogniser cannot be true, or others lie beside them."""
    _read(folder)


def can_decode() -> bool:
    """Whether the decoder is installed: it has no wheel for every system."""
    return importlib.util.find_spec("flashlight") is not None


def is_lexicon(folder: Path) -> bool:
    """Whether a folder holds such a recogniser."""
    path = folder / CONFIG
    if not path.is_file() or (folder / "model.bin").exists():
        return False
    values: dict[str, Any] = parse(dict[str, Any], read_json(path), path)
    return values.get("type") == "lexicon"
