"""What preparing a corpus is: its settings, who speaks which story, a shard to be made, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.corpus.channel import Unspoken
from train.corpus.reader import Row
from train.speech.augmentation import Augmentation
from train.speech.voices import Voices


@dataclass(frozen=True)
class CorpusPreparation:
    """Stories a shard; the voices that speak them (names; all training voices when empty); how many stories in a row one
    voice tells (so that a cycle of stories shares sentences); the seed of who speaks when; recording conditions, if any; the
    longest sentence in characters and, spoken, in s. unspoken: pass the encoder's channel instead of speaking."""

    stories_per_shard: int = 125
    speakers: tuple[str, ...] = ()
    seed: int = 0
    stories_per_voice: int = 1
    augmentation: Augmentation | None = None
    longest_text: int = 300
    longest_seconds: float = 20.0
    unspoken: Unspoken | None = None


class Request(NamedTuple):
    """A sentence to be spoken. recording: seed of the conditions, or of the channel; None for the plain voice."""

    speaker: str
    recording: int | None
    language: str
    text: str


@dataclass(frozen=True)
class Work:
    """What all shards share."""

    languages: list[str]
    encoder_folder: Path
    preparation: CorpusPreparation
    voices: Voices
    device: str = "cpu"
    sources: str = ""
    """Fingerprint of the stories and of all of the above."""
    longest_segment: float | None = None
    """s of a segment at most, where the rows are recordings."""

    @property
    def speakers(self) -> list[str]:
        """Names of the voices in use."""
        return list(self.preparation.speakers or self.voices.training)

    def session(self, index: int) -> tuple[str, int | None]:
        """Who tells story `index`, and the seed of the recording conditions. Every voice comes once in each round."""
        run = index // self.preparation.stories_per_voice
        cycle, turn = divmod(run, len(self.speakers))
        order = np.random.default_rng([self.preparation.seed, cycle]).permutation(len(self.speakers))
        recording = None
        if self.preparation.augmentation or self.preparation.unspoken:
            recording = int(np.random.default_rng([self.preparation.seed, run, 1]).integers(2**31))
        return self.speakers[order[turn]], recording

    def told(self, shard: Shard) -> list[tuple[Row, str, int | None]]:
        """The rows of a shard with who tells them, and the seed of the recording conditions."""
        return [(row, *self.session(shard.first + index)) for index, row in enumerate(shard.rows)]

    def requests(self, shard: Shard) -> list[Request]:
        """Every sentence of a shard, repetitions included."""
        return [
            Request(speaker, recording, language, text)
            for row, speaker, recording in self.told(shard)
            for language, texts in row.sentences.items()
            for text in texts
        ]


@dataclass(frozen=True)
class Shard:
    """Rows that become one file. first: how many usable rows come before them."""

    path: Path
    first: int
    rows: list[Row]


@dataclass(frozen=True)
class Counts:
    """What a corpus or a shard holds: stories, s of speech they stand for, sentences, and how many of these were spoken and
    encoded (the others were met before)."""

    stories: int = 0
    seconds: float = 0.0
    sentences: int = 0
    spoken: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Prepared:
    """A finished corpus: its folder, what it holds, and how many rows of the stories could not be used."""

    folder: Path
    counts: Counts
    rejected: int
