"""The in-house lexical set: real words of the stories against nonwords that are one phoneme away.

Words come from the grammar's stories and the written ones, commonest first; espeak-ng says how they sound (`phonemes_of`),
and one consonant is exchanged for another consonant, or one vowel for another vowel. Nonwords are wordlike: the new phoneme
stands between neighbours that it has in some word. They are no words: no word of either language sounds like one, vowels
that are easily confused (`ROUGH`) counted as the same, and no such vowels are exchanged. Nonwords are chosen so that phoneme
bigrams, of words as often as they occur and of words once each, prefer the word in half of the pairs. Both are spoken from
phoneme mnemonics, so that they differ in that phoneme alone, not in how a text was read. Words have five phonemes at least:
shorter ones are too often real words of everyday language.

The set is `lexical.jsonl`, in the form that `tresse eval pairs` takes. `python -m train.evaluate.lexical en=FILE fr=FILE`
makes it anew, the same from the same stories, espeak-ng and lists of words (one a line). The shipped one used the words of
wordfreq 3.1.1 that occur at least 1.6 times in ten million.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import resample
from slm.errors import TresseError
from train.speech.espeak import BLOCK, EspeakSpeaker, _Library
from train.speech.phones import phone_name
from train.speech.voices import SAMPLE_RATE, Speaker, Voices, _finish
from train.stories.grammar import Story, generate_stories, rng_for
from train.stories.written import written_stories
from train.tools.checkpoints import atomic_path

SHIPPED_SET = Path(__file__).with_name("lexical.jsonl")
SHORTEST = 5
"""Phonemes of a word, at least."""
VOWEL_LETTERS = set("aeiouyAEIOUVWY@0320Q")
"""espeak-ng's mnemonics begin with one of these where they are vowels."""
MARKS = "',%="
PAIRS = 2000
"""Pairs of the shipped set, a language."""
STORIES = 3000
"""Generated stories that the shipped set takes words from, besides all written ones."""
ROUGH = {
    phoneme: group.split()[0]
    for group in (
        "i i: I I# I2", "e E e: E: eI", "a aa a: a# A A:", "o O O: 0 o: oU", "u u: U", "@ @2 V 3 3: Y Y: W", "E~ W~",
    )
    for phoneme in group.split()
}  # fmt: skip
"""Vowels that are easily confused, or that the other language has in the other's place -> one of them."""
_REDUCED = {"i", "@"}
"""What unstressed vowels of English become: nobody hears the one from the other."""
_FAINT = "a#"
"""The first vowel of `ashamed`: what stands in its place is hard to hear."""
_SEPARATOR = "|"


class _PhonemeInput(_Library):
    """espeak-ng that reads `[[...]]` as phoneme mnemonics (espeakPHONEMES, 0x100 of speak_lib.h)."""

    UTF8 = _Library.UTF8 | 0x100

    def __enter__(self) -> _PhonemeInput:
        super().__enter__()
        return self

    def phonemes(self, word: str, voice: str) -> list[str]:
        """The mnemonics of a word, stress marks included. Raises TresseError for an unknown voice."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise TresseError(f"espeak-ng has no voice {voice}: mend the voices file")
        translate = self.library.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        text = ctypes.create_string_buffer(word.encode("utf-8"))
        pointer = ctypes.cast(text, ctypes.c_void_p)
        mnemonics = translate(ctypes.byref(pointer), self.UTF8 & 1, ord(_SEPARATOR) << 8) or b""
        return [part for part in mnemonics.decode("utf-8", "replace").strip().split(_SEPARATOR) if part]


def speak_phonemes(mnemonics: str, language: str, speaker: Speaker, voices: Voices) -> np.ndarray:
    """Speak espeak-ng mnemonics (`h@l'oU`): float32 [samples] at 16 kHz, finished as every sentence is.

    Raises TresseError for a speaker of another back end than espeak-ng, or a language without a voice.
    """
    if not isinstance(speaker, EspeakSpeaker) or language not in voices.languages:
        raise TresseError(f"voice {speaker.name} cannot speak phonemes in {language}: choose an espeak-ng voice")
    voice = voices.languages[language] + (f"+{speaker.variant}" if speaker.variant else "")
    with _PhonemeInput() as library:
        samples, rate, _ = library.synthesise(f"[[{mnemonics}]]", voice, speaker.rate, speaker.pitch)
    padded = np.pad(samples.astype(np.float32) / 32768.0, (0, -len(samples) % BLOCK))
    waveform = resample(padded, rate, SAMPLE_RATE)
    return _finish(waveform, mnemonics)[0]


def phonemes_of(words: Iterable[str], voice: str) -> dict[str, tuple[str, ...]]:
    """How espeak-ng says each word; words that switch its language, or are spelled out, are left out."""
    with _PhonemeInput() as library:
        spoken = {word: tuple(library.phonemes(word, voice)) for word in words}
    return {
        word: phonemes
        for word, phonemes in spoken.items()
        if phonemes and not any(set(part) & set("()_ ") or not part.strip(MARKS) for part in phonemes)
    }


def is_vowel(phoneme: str) -> bool:
    """Whether a mnemonic is a vowel."""
    return phoneme.lstrip(MARKS)[:1] in VOWEL_LETTERS


def stress_of(phoneme: str) -> str:
    """The marks in front of a mnemonic."""
    return phoneme[: len(phoneme) - len(phoneme.lstrip(MARKS))]


def neighbours(phonemes: Sequence[str], words: Mapping[str, Sequence[str]]) -> list[tuple[int, str]]:
    """Every wordlike exchange of one phoneme: (place, new mnemonic with the old one's stress).

    Vowels that are easily confused, and allophones of one phoneme, are not exchanged.
    """
    seen = {context for said in words.values() for context in _contexts(said)}
    return _exchanges(phonemes, seen)


def _exchanges(phonemes: Sequence[str], seen: Set[tuple[str, str, str]]) -> list[tuple[int, str]]:
    """`neighbours`, of the contexts that the words have."""
    known = sorted({now for _, now, _ in seen if not set(now) & set("#?-;")})  # a flap or a glottal stop is no phoneme
    exchanges = []
    for position, (before, now, after) in enumerate(_contexts(phonemes)):
        if now == _FAINT:
            continue
        stress = stress_of(phonemes[position])
        for other in known:
            classes = {ROUGH.get(now, now), ROUGH.get(other, other)}
            alike = len(classes) == 1 or (classes == _REDUCED and not stress) or is_vowel(other) != is_vowel(now)
            if not alike and (before, other, after) in seen:
                exchanges.append((position, stress + other))
    return exchanges


def _contexts(phonemes: Sequence[str]) -> list[tuple[str, str, str]]:
    plain = ["_", *_sound(phonemes), "_"]
    return list(zip(plain, plain[1:], plain[2:], strict=False))


class PhonemeBigrams:
    """Bigrams of the phonemes of words, by how often the words occur; add one half."""

    def __init__(self, said: Mapping[str, Sequence[str]], counts: Mapping[str, int]) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.firsts: Counter[str] = Counter()
        for word, phonemes in said.items():
            for first, second in self._pairs(phonemes):
                self.pairs[first, second] += counts[word]
                self.firsts[first] += counts[word]

    def score(self, phonemes: Sequence[str]) -> float:
        """Log-likelihood of mnemonics as a word."""
        half = 0.5 * len(self.firsts)
        return sum(log((self.pairs[pair] + 0.5) / (self.firsts[pair[0]] + half)) for pair in self._pairs(phonemes))

    @staticmethod
    def _pairs(phonemes: Sequence[str]) -> list[tuple[str, str]]:
        plain = ["_", *_sound(phonemes), "_"]
        return list(pairwise(plain))


def make_lexical(
    language: str,
    stories: Iterable[Story],
    voices: Mapping[str, str],
    count: int,
    known: Mapping[str, Iterable[str]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`count` pairs of a language, commonest words first; fewer where the stories have no more words.

    voices: espeak-ng's, by language. known: by language, words whose sound no nonword may have (a list of words); with a
    list of the language itself, only words that are in it are taken.
    """
    lists = {other: tuple(words) for other, words in (known or {}).items()}
    counts = Counter(word for story in stories for text in story.told_in(language) for word in _plain_words(text))
    said = phonemes_of(counts, voices[language])
    said = {word: phonemes for word, phonemes in said.items() if None not in map(phone_name, phonemes)}
    taken = {_rough(phonemes) for phonemes in said.values()}
    for other, words in lists.items():
        taken |= _sounds(words, voices[other])
    seen = {context for phonemes in said.values() for context in _contexts(phonemes)}
    measures = PhonemeBigrams(said, counts), PhonemeBigrams(said, dict.fromkeys(said, 1))
    real = set(lists.get(language, counts))
    pairs: list[dict[str, Any]] = []
    used: set[tuple[str, ...]] = set()
    preferred = [0, 0]  # by measure, how many words more than nonwords it has preferred so far
    for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if len(pairs) >= count:
            break
        if word not in said or word not in real or len(said[word]) < SHORTEST or _rough(said[word]) in used:
            continue
        phonemes = said[word]
        choices = _exchanges(phonemes, seen)
        rng_for("lexical", language, seed, word).shuffle(choices)
        ranked: list[tuple[int, float, int, list[int], tuple[str, ...]]] = []
        for position, other in choices:
            nonword = (*phonemes[:position], other, *phonemes[position + 1 :])
            if _rough(nonword) not in taken:
                gains = [bigrams.score(nonword) - bigrams.score(phonemes) for bigrams in measures]
                after = [so_far + (1 if gain < 0 else -1) for so_far, gain in zip(preferred, gains, strict=True)]
                ranked.append((sum(map(abs, after)), sum(map(abs, gains)), len(ranked), after, nonword))
        if not ranked:
            continue
        *_, preferred, chosen = min(ranked)
        used.add(_rough(phonemes))
        taken.add(_rough(chosen))
        pairs.append(
            {
                "id": f"{language}-{word}",
                "group": f"lexical {language}",
                "language": language,
                "word": word,
                "right": {"phonemes": _SEPARATOR.join(phonemes)},
                "wrong": {"phonemes": _SEPARATOR.join(chosen)},
            }
        )
    return pairs


def _sound(phonemes: Sequence[str]) -> tuple[str, ...]:
    """Mnemonics without stress and without the marks of espeak-ng's spelling rules."""
    return tuple(phone_name(part) or part for part in phonemes)


def _rough(phonemes: Sequence[str]) -> tuple[str, ...]:
    """How mnemonics sound, vowels that are easily confused being one."""
    return tuple(ROUGH.get(name, name) for name in _sound(phonemes))


@cache
def _sounds(words: tuple[str, ...], voice: str) -> frozenset[tuple[str, ...]]:
    return frozenset(map(_rough, phonemes_of(words, voice).values()))


def _plain_words(sentence: str) -> list[str]:
    """Words that begin with a small letter, so that none is a name; nothing elided, no hyphens."""
    words = []
    for part in sentence.replace("’", "'").split():
        word = part.strip('«»"“”.,!?;:()')
        word = word.rpartition("'")[2] if "'" in word[:3] else word
        if word.isalpha() and word.islower():
            words.append(word)
    return words


def main() -> None:
    """Make the shipped set anew from LANGUAGE=FILE, a list of words for each language."""
    lists = (argument.partition("=") for argument in sys.argv[1:])
    known = {name: Path(file).read_text(encoding="utf-8").split() for name, _, file in lists}
    voices = Voices.load().languages
    stories = [*generate_stories(0, STORIES), *(Story(story.id, story.sentences) for story in written_stories())]
    rows = [row for language in known for row in make_lexical(language, stories, voices, PAIRS, known)]
    with atomic_path(SHIPPED_SET) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
