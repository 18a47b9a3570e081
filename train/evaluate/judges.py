"""Ears that no training of this project has used: DNSMOS and a speaker encoder, of the extra `judges`.

DNSMOS (Reddy et al., "DNSMOS P.835", 2022; the package speechmos) predicts how people would rate a recording, 1 to 5. The
speaker encoder (Wan et al., "Generalized end-to-end loss for speaker verification", 2018; the package Resemblyzer) tells
voices apart: the cosine of two utterances of one speaker is about 0.9, of two speakers 0.5 to 0.7.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from slm.audio import resample
from slm.errors import TresseError

RATE = 16000
Rating = Callable[[np.ndarray, int], float]
"""float32 [samples] and their rate -> 1 .. 5."""
Embedding = Callable[[np.ndarray, int], np.ndarray]
"""float32 [samples] and their rate -> a unit vector float32 [D]."""


class Spoken(Protocol):
    """A sentence and what a vocoder made of it, both at rates of their own."""

    @property
    def language(self) -> str:
        """Its language."""

    @property
    def voice(self) -> str:
        """Who spoke the original."""

    @property
    def speaker(self) -> str:
        """The vocoder's speaker."""

    @property
    def original(self) -> np.ndarray:
        """float32 [samples]."""

    @property
    def spoken(self) -> np.ndarray:
        """float32 [samples]."""


def naturalness() -> Rating:
    """DNSMOS overall. Raises TresseError where the extra is not installed."""
    try:
        from speechmos import dnsmos
    except ImportError as error:
        raise _missing(error) from error

    def rate(waveform: np.ndarray, sample_rate: int) -> float:
        at_16k = np.clip(resample(waveform, sample_rate, RATE), -1.0, 1.0)
        return float(dnsmos.run(at_16k, sr=RATE)["ovrl_mos"])

    return rate


def speaker_embedding() -> Embedding:
    """Resemblyzer's. Raises TresseError where the extra is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from resemblyzer import VoiceEncoder, preprocess_wav
    except ImportError as error:
        raise _missing(error) from error
    encoder = VoiceEncoder("cpu", verbose=False)

    def embed(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        return encoder.embed_utterance(preprocess_wav(resample(waveform, sample_rate, RATE), RATE))

    return embed


def _missing(error: ImportError) -> TresseError:
    return TresseError(f"{error.name} is not installed: pip install 'tresse[judges]'")


def likeness_of_speakers(
    utterances: Sequence[Spoken], embed: Embedding, rate: int, original_rate: int
) -> dict[str, dict[str, float | None]]:
    """{speaker: mean cosines}: of its resynthesised utterances `within a language` and `across languages`, of the training
    voice's own utterances (`original`), and of original and resynthesised (`to the original`, of different sentences).

    utterances: of the vocoder's speakers resynthesised as themselves; rate, original_rate: Hz of the resynthesised and the
    original. None where there is no pair.
    """
    rows: dict[str, dict[str, float | None]] = {}
    for speaker in sorted({part.speaker for part in utterances}):
        own = [part for part in utterances if part.speaker == speaker == part.voice]
        again = [embed(part.spoken, rate) for part in own]
        before = [embed(part.original, original_rate) for part in own]
        pairs = list(combinations(range(len(own)), 2))
        same = [pair for pair in pairs if own[pair[0]].language == own[pair[1]].language]
        other = [pair for pair in pairs if own[pair[0]].language != own[pair[1]].language]
        rows[speaker] = {
            "within a language": _cosine(again, again, same),
            "across languages": _cosine(again, again, other),
            "original": _cosine(before, before, same),
            "original across languages": _cosine(before, before, other),
            "to the original": _cosine(before, again, same),
        }
    return rows


def _cosine(some: Sequence[np.ndarray], others: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]) -> float | None:
    return float(np.mean([some[a] @ others[b] for a, b in pairs])) if pairs else None


def ratings(utterances: Sequence[Spoken], rating: Rating, rate: int, original_rate: int) -> dict[str, float]:
    """Mean rating of the original and of the resynthesised."""
    return {
        "original": float(np.mean([rating(part.original, original_rate) for part in utterances])),
        "resynthesis": float(np.mean([rating(part.spoken, rate) for part in utterances])),
    }


def speakers_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each speaker."""
    if not rows:
        return ""
    columns = list(next(iter(rows.values())))
    lines = [f"| Speaker: cosine of two utterances | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for speaker, row in rows.items():
        cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in columns]
        lines.append(f"| {speaker} | {' | '.join(cells)} |")
    return "\n".join(lines)
