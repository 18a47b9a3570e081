"""Which phones a word may have: as espeak-ng reads it alone, and in sentences (weak forms, liaison)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from slm.lexicon import CONFIG, LEXICON, LexiconConfig
from slm.schema import parse
from train.asr.ngrams import estimate_ngrams
from train.corpus.channel import Channel
from train.speech.phones import SILENCE, ipa_phones
from train.speech.reading import read
from train.speech.voices import Phoneme
from train.stories.grammar import Story
from train.tools.checkpoints import atomic_path, write_json

ELISION = re.compile(r"(?i)^(?:[ldjnstmcç]|qu|jusqu|lorsqu|puisqu)'(?=\w)")
"""What French words are joined to; each is a word of its own for a recogniser."""
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*'?")
MOST, LEAST_SHARE = 4, 0.05
"""Pronunciations of a word, and the least share of its readings that makes one."""


@dataclass(frozen=True)
class LexiconTraining:
    """What a lexicon is made of. least: how often a word must occur; reading: sentences a language in which its
    pronunciations are looked for; counts: how often an n-gram of each order must occur; decoding: of its config.json,
    what differs from `slm.lexicon.LexiconConfig`."""

    least: int = 2
    reading: int = 40_000
    counts: tuple[int, ...] = (1, 1, 2)
    decoding: dict[str, float] = field(default_factory=dict)


def make_lexicon(
    training: LexiconTraining,
    stories: Iterable[Story],
    languages: Sequence[str],
    readers: Mapping[str, str],
    encoder: Path,
    folder: Path,
) -> None:
    """Write a recogniser into `folder` (`slm.lexicon`). readers: espeak-ng's voice of each language; encoder: its folder,
    which tells the unit of each phone.

    Raises TresseError where the units are no phones, or there are no texts in a language.
    """
    units = Channel.load(encoder).units
    told = [story.sentences for story in stories]
    for language in languages:
        texts = [text for sentences in told for text in sentences.get(language, ())]
        split = [words_of(text, language) for text in texts]
        words = spellings(split, training.least)
        spelt = {word.lower(): word for word in words}
        known = ([spelt.get(word.lower(), "") for word in sentence] for sentence in split)
        estimate_ngrams(known, words, training.counts).save(folder / language)
        spread = texts[:: max(1, len(texts) // max(1, training.reading))]
        spoken = pronunciations(words, spread, language, readers[language], units)
        with atomic_path(folder / language / LEXICON) as temporary:
            temporary.write_text(json.dumps(spoken, ensure_ascii=False) + "\n", encoding="utf-8")
    values = {"type": "lexicon", "languages": list(languages), "silence": units[SILENCE]}
    config = parse(LexiconConfig, {**values, **training.decoding}, Path("asr.lexicon.decoding"))
    write_json(folder / CONFIG, config.model_dump())


def words_of(text: str, language: str) -> list[str]:
    """The words of a text as it spells them, without punctuation; what French elides stands alone (`l'`, `école`)."""
    words: list[str] = []
    for word in WORD.findall(unicodedata.normalize("NFC", text).replace("’", "'")):
        if language == "fr" and (match := ELISION.match(word)):
            words.append(match[0])
            word = word[match.end() :]
        words.append(word.removesuffix("'") if language != "fr" else word)
    return words


def spellings(texts: Iterable[Sequence[str]], least: int) -> list[str]:
    """The words that occur `least` times, each as it is mostly spelt behind the first word of a text, sorted. texts: their
    words."""
    counts: Counter[str] = Counter()
    inside: dict[str, Counter[str]] = defaultdict(Counter)
    for words in texts:
        for number, word in enumerate(words):
            counts[word.lower()] += 1
            if number:
                inside[word.lower()][word] += 1
    return sorted(
        inside[word].most_common(1)[0][0] if inside[word] else word for word, n in counts.items() if n >= least
    )


def pronunciations(
    words: Sequence[str], texts: Iterable[str], language: str, voice: str, units: Mapping[str, int]
) -> dict[str, list[list[int]]]:
    """For each word the units of its phones, the commonest pronunciation first. texts: in which the words are read too.

    voice: espeak-ng's; units: the unit of each phone. Words that nothing is heard of are left out. Raises TresseError for an
    unknown voice.
    """
    readings: dict[str, Counter[tuple[int, ...]]] = {word: Counter() for word in words}
    spelt = {word.lower(): word for word in words}
    for text in texts:
        heard = read(text, voice).split()
        written = [part for part in text.replace("’", "'").split() if re.search(r"\w", part)]
        if len(heard) != len(written):
            continue  # espeak-ng joins some words (`of the`), and reads marks
        for part, sound in zip(written, heard, strict=True):
            parts = words_of(part, language)
            if len(parts) == 1 and parts[0].lower() in spelt:
                readings[spelt[parts[0].lower()]][_units(sound, units)] += 1
    made: dict[str, list[list[int]]] = {}
    for word, counted in readings.items():
        alone = (
            _units(read(word, voice), units) if not word.endswith("'") else _units(read(f"{word}a", voice), units)[:-1]
        )
        total = sum(counted.values())
        common = [sound for sound, n in counted.most_common(MOST) if n >= 2 and n >= LEAST_SHARE * total]
        all_of_them = [sound for sound in dict.fromkeys([*common, alone]) if sound][:MOST]
        if all_of_them:
            made[word] = [list(sound) for sound in all_of_them]
    return made


def _units(sound: str, units: Mapping[str, int]) -> tuple[int, ...]:
    marks = [Phoneme(mark, float(number)) for number, mark in enumerate(sound.replace("-", ""), 1)]
    phones = [phone.name for phone in ipa_phones(marks, len(marks) + 2.0)] if marks else []
    numbers = [units[phone] for phone in phones if phone in units and phone != SILENCE]
    return tuple(number for number, _ in groupby(numbers))
