"""What a phone-supervised encoder makes of speech, as a noisy channel: a corpus of units without speaking its sentences.

Where units are named after phones, the units of a sentence are nearly known from its text: espeak-ng reads it, and the
channel does to its phones what the encoder does when it hears speech whose phones are known (Kokoro's): it confuses,
misses and inserts some, and gives each a length. A worker makes the units of 220 hours of speech an hour; Kokoro speaks one
or two. A `severity` drawn for each story makes the errors fewer or more, so that the language
model meets prompts that are heard worse than the synthesiser is.

`channel.json` beside the encoder's phones.json is what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from rapidfuzz.distance import Levenshtein

from slm.errors import TresseError
from slm.schema import Part, parse, read_json
from slm.units import UnitEncoder, Units
from slm.units.vocabulary import MAX_CODEBOOK
from train.speech.phones import SILENCE, ipa_phones
from train.speech.reading import read
from train.speech.voices import Phoneme
from train.tools.checkpoints import write_json

FILE = "channel.json"
LENGTHS = 15
"""Run lengths that are kept of a unit: its quantiles, evenly spaced."""


@dataclass(frozen=True)
class Unspoken:
    """A corpus whose sentences pass the encoder's channel instead of being spoken. severity: a story's is drawn between the
    two; 1 makes as many errors as were measured. heard: share of a story's sentences that have them, as prompts do; the
    others have none, as a reply should."""

    severity: tuple[float, float] = (0.0, 2.0)
    heard: Annotated[float, Field(ge=0, le=1)] = 1.0


Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(ge=0, le=10_000)]


class _Stored(Part):
    """channel.json."""

    frame_rate: Annotated[float, Field(ge=1, le=400)]
    units: dict[str, Annotated[int, Field(strict=True, ge=0, lt=MAX_CODEBOOK)]]
    heard: list[list[Share]]
    inserted: list[Share]
    lengths: list[list[Length]]


@dataclass(frozen=True)
class Channel:
    """units: the unit of each phone, K units in all. heard: float [K, K + 1], the share in which a phone's unit is heard as
    each unit, and, last, as none. inserted: float [K + 1], units that are heard behind a phone without one of their own,
    last: none. lengths: run lengths of a unit in frames, float [K, LENGTHS], sorted. frame_rate: Hz."""

    units: Mapping[str, int]
    heard: np.ndarray
    inserted: np.ndarray
    lengths: np.ndarray
    frame_rate: float

    def of(self, phones: Iterable[str], rng: np.random.Generator, severity: float = 1.0) -> Units:
        """The units that are heard where these phones are spoken; phones that have no unit are not heard."""
        true = np.array([self.units[phone] for phone in phones if phone in self.units], np.int64)
        if len(true) == 0:
            return Units.empty(self.frame_rate)
        none = self.heard.shape[0]
        wrong = self.heard[true].copy()
        right = wrong[np.arange(len(true)), true]
        wrong[np.arange(len(true)), true] = 0.0
        errors = np.minimum(0.95, severity * (1.0 - right))
        ids = np.where(rng.random(len(true)) < errors, _drawn(wrong, rng), true)
        others = np.where(
            rng.random(len(true)) < min(0.95, severity * (1.0 - self.inserted[-1])),
            _drawn(np.broadcast_to(self.inserted[:-1], (len(true), none)), rng),
            none,
        )
        both = np.stack([ids, others], 1).reshape(-1)
        both = both[both != none]
        runs = self.lengths[both, rng.integers(self.lengths.shape[1], size=len(both))] if len(both) else both
        return Units(both, np.maximum(1, np.round(runs)).astype(np.int64), self.frame_rate).collapsed()

    def save(self, folder: Path) -> None:
        """Write channel.json."""
        arrays = {"heard": self.heard, "inserted": self.inserted, "lengths": self.lengths}
        values = {name: np.round(array, 5).tolist() for name, array in arrays.items()}
        write_json(folder / FILE, {"frame_rate": self.frame_rate, "units": dict(self.units), **values})

    @classmethod
    def load(cls, folder: Path) -> Channel:
        """Read what `save` wrote. Raises TresseError where it is missing or damaged."""
        path = folder / FILE
        try:
            stored = parse(_Stored, read_json(path), path)
            heard, inserted, lengths = (np.array(part) for part in (stored.heard, stored.inserted, stored.lengths))
            count = len(heard)
            fitting = heard.shape == (count, count + 1) and inserted.shape == (count + 1,) and len(lengths) == count
            if not fitting or max(stored.units.values(), default=count) >= count:
                raise ValueError("sizes that do not fit")
        except (TresseError, ValueError) as error:
            raise TresseError(
                f"there is no channel in {folder} ({FILE}): measure it, or leave corpus.unspoken out"
            ) from error
        return cls(stored.units, heard, inserted, lengths, stored.frame_rate)


def _drawn(weights_NK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of K for each row, by its weights; the last where a row has none."""
    totals = weights_NK.cumsum(1)
    points = rng.random(len(weights_NK)) * totals[:, -1]
    return np.minimum((totals <= points[:, None]).sum(1), weights_NK.shape[1] - 1)


def measure_channel(
    spoken: Iterable[tuple[Sequence[str], np.ndarray]],
    units: Mapping[str, int],
    encoder: UnitEncoder,
    smoothing: float = 0.5,
) -> Channel:
    """What the encoder makes of speech. spoken: the phones of a clip, and its waveform, float32 [samples] at the encoder's
    rate. units: the unit of each phone. smoothing: how often each phone counts as heard rightly, and as each other unit a
    hundredth as often, beside what was heard.

    Raises TresseError where nothing was spoken.
    """
    count = encoder.codebook_size
    heard = np.full((count, count + 1), smoothing / 100)
    heard[np.arange(count), np.arange(count)] += smoothing
    inserted = np.full(count + 1, smoothing / 100)
    runs: list[list[int]] = [[] for _ in range(count)]
    clips = 0
    for phones, waveform in spoken:
        frames = np.array([units[phone] for phone in phones if phone in units], np.int64)
        true = Units.from_frames(frames, encoder.frame_rate).ids.tolist()
        made = encoder.encode(waveform, encoder.sample_rate)
        clips += 1
        for unit, length in zip(made.ids, made.run_lengths, strict=True):
            runs[unit].append(int(length))
        inserted[-1] += len(true)
        for part in Levenshtein.opcodes(true, made.ids.tolist()):
            for index in range(part.src_start, part.src_end):
                unit = count if part.tag == "delete" else int(made.ids[part.dest_start + index - part.src_start])
                heard[true[index], unit] += 1
            if part.tag == "insert":
                inserted[made.ids[part.dest_start : part.dest_end]] += 1
                inserted[-1] -= part.dest_end - part.dest_start
    if not clips:
        raise TresseError("a channel is measured on speech whose phones are known: there is none")
    known = [run for part in runs for run in part] or [1]
    quantiles = (np.arange(LENGTHS) + 0.5) / LENGTHS
    lengths = np.stack([np.quantile(part if len(part) > 9 else known, quantiles) for part in runs])
    inserted = np.maximum(inserted, 0.0)
    return Channel(
        dict(units), heard / heard.sum(1, keepdims=True), inserted / inserted.sum(), lengths, encoder.frame_rate
    )


def phones_of(text: str, voice: str) -> list[str]:
    """The phones of a text as Kokoro is given them, silence at both ends. voice: espeak-ng's that reads it."""
    marks = [Phoneme(mark, float(number)) for number, mark in enumerate(read(text, voice).replace("-", ""), 1)]
    if not marks:
        return []
    spoken = [phone.name for phone in ipa_phones(marks, len(marks) + 2.0)]
    return [SILENCE, *(spoken[1:] if spoken[0] == SILENCE else spoken), SILENCE]
