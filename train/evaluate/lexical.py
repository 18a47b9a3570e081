"""The in-house lexical set: real words of the stories against nonwords that are one phoneme away.

Words come from the grammar's own stories; espeak-ng says how they sound (`phonemes_of`), and one consonant is exchanged for
another consonant, or one vowel for another vowel. Nonwords are wordlike: the new phoneme stands between neighbours that it
has in some word, and no word of the stories sounds so. Both are spoken from phoneme mnemonics, so that they differ in that
phoneme alone, not in how a text was read. Words have five phonemes at least: shorter ones are too often real words of
everyday language. The set is `lexical.jsonl`, in the form that `tresse eval pairs` takes; `make_lexical` makes it anew,
the same from the same grammar and espeak-ng.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import resample
from slm.errors import TresseError
from train.speech.espeak import BLOCK, EspeakSpeaker, _Library
from train.speech.phones import phone_name
from train.speech.voices import SAMPLE_RATE, Speaker, Voices, _finish
from train.stories.grammar import Story, rng_for

SHIPPED_SET = Path(__file__).with_name("lexical.jsonl")
SHORTEST = 5
"""Phonemes of a word, at least."""
VOWEL_LETTERS = set("aeiouyAEIOUVWY@0320Q")
"""espeak-ng's mnemonics begin with one of these where they are vowels."""
MARKS = "',%="
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

    Phonemes that differ in length alone, and allophones of one phoneme, are not exchanged.
    """
    seen = {context for said in words.values() for context in _contexts(said)}
    known = sorted({now for _, now, _ in seen if not set(now) & set("#?-")})  # a flap or a glottal stop is no phoneme
    exchanges = []
    for position, (before, now, after) in enumerate(_contexts(phonemes)):
        for other in known:
            alike = other.rstrip(":") == now.rstrip(":") or is_vowel(other) != is_vowel(now)
            if not alike and (before, other, after) in seen:
                exchanges.append((position, stress_of(phonemes[position]) + other))
    return exchanges


def _contexts(phonemes: Sequence[str]) -> list[tuple[str, str, str]]:
    plain = ["_", *_sound(phonemes), "_"]
    return list(zip(plain, plain[1:], plain[2:], strict=False))


def make_lexical(
    language: str, stories: Iterable[Story], voice: str, count: int, known: Iterable[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """`count` pairs of a language, commonest words first; fewer where the stories have no more words.

    voice: espeak-ng's, of the language. known: further words whose sound no nonword may have (a word list).
    """
    counts: Counter[str] = Counter()
    for story in stories:
        for sentence in story.told_in(language):
            counts.update(_plain_words(sentence))
    said = phonemes_of(counts, voice)
    taken = {_sound(phonemes) for phonemes in (said | phonemes_of(known, voice)).values()}
    pairs: list[dict[str, Any]] = []
    used: set[tuple[str, ...]] = set()
    for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if len(pairs) >= count:
            break
        if word not in said or len(said[word]) < SHORTEST or _sound(said[word]) in used:
            continue
        used.add(_sound(said[word]))
        phonemes = list(said[word])
        choices = neighbours(phonemes, said)
        rng_for("lexical", language, seed, word).shuffle(choices)
        for position, other in choices:
            nonword = [*phonemes[:position], other, *phonemes[position + 1 :]]
            if _sound(nonword) not in taken:
                taken.add(_sound(nonword))
                pairs.append(
                    {
                        "id": f"{language}-{word}",
                        "group": f"lexical {language}",
                        "language": language,
                        "word": word,
                        "right": {"phonemes": _SEPARATOR.join(phonemes)},
                        "wrong": {"phonemes": _SEPARATOR.join(nonword)},
                    }
                )
                break
    return pairs


def _sound(phonemes: Sequence[str]) -> tuple[str, ...]:
    """Mnemonics without stress and without the marks of espeak-ng's spelling rules."""
    return tuple(phone_name(part) or part for part in phonemes)


def _plain_words(sentence: str) -> list[str]:
    """Words in lower case: no names (capitals inside a sentence), nothing elided, no hyphens."""
    words = []
    for number, part in enumerate(sentence.replace("’", "'").split()):
        word = part.strip('«»"“”.,!?;:()')
        if number and word[:1].isupper():
            continue
        word = word.lower().rpartition("'")[2] if "'" in word[:3] else word.lower()
        if word.isalpha():
            words.append(word)
    return words
