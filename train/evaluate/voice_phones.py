"""What an encoder's units say of the phones of anybody's recordings, and what they still tell of who speaks.

- *PNMI* and *ABX* (`train.evaluate.units`, `train.evaluate.abx`) on recordings whose phones nobody marked: a text says which
  they are, and an encoder that names phones when they sound (`Aligner`). The same aligner serves every encoder that is
  measured. A recording in which it does not hear its text is left out.
- *speaker probe*: logistic regression on the share of each unit in a recording tells its speaker, of texts that it was
  not fitted on. Chance is that of the commonest speaker; beside it, the same of the mean and deviation of its log-mels,
  which tell a speaker well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch

from slm.audio import resample
from slm.errors import TresseError
from slm.units import UnitEncoder, Units, load_encoder
from slm.units.attention import log_mel
from slm.units.causal import WINDOW, CausalUnitEncoder, LogMel
from train.corpus.channel import FILE, Channel, phones_of
from train.evaluate.abx import abx_error, find_tokens
from train.evaluate.units import Utterance, phone_agreement
from train.speech.phones import SILENCE, Phone
from train.speech.voices import SAMPLE_RATE, Voices
from train.units.alignment import align

LEAST = -2.0
"""Mean log posterior in nats along the alignment, below which a text is not what was said."""
TEXTS = 5
"""Texts that a speaker must have said for the probe, and the parts that these are cut into."""
MELS = 40


class _Hearing(Protocol):
    frame_rate: float

    def log_probabilities(self, waveform: np.ndarray) -> np.ndarray: ...


class Aligner:
    """Finds the phones of a text in a recording. encoder: whose units are phones; units: the unit of each phone; voices:
    espeak-ng's that read texts, by language."""

    def __init__(self, encoder: _Hearing, units: Mapping[str, int], voices: Mapping[str, str]) -> None:
        self.encoder, self.units, self.voices = encoder, units, voices
        self.names = {unit: phone for phone, unit in reversed(list(units.items()))}

    @classmethod
    def load(cls, folder: Path, voices: Voices | None = None) -> Self:
        """The encoder in a folder, e.g. `units` of the bundle natural. voices: a file that says which of espeak-ng's voices
        read a language; the project's own by default. Raises TresseError where its units are not phones."""
        encoder = load_encoder(folder)
        if not (folder / FILE).exists() or not isinstance(encoder, CausalUnitEncoder):
            raise TresseError(f"the units of {folder} are not phones: give the units folder of the bundle natural")
        return cls(encoder, Channel.load(folder).units, (voices or Voices.load()).languages)

    def phones(self, waveform: np.ndarray, text: str, language: str) -> list[Phone] | None:
        """float32 [samples] at 16 kHz -> its phones, which cover it without gaps; None where the text is not heard in it, or
        nobody reads the language."""
        if language not in self.voices:
            return None
        said = [self.units[phone] for phone in phones_of(text, self.voices[language]) if phone in self.units]
        try:
            frames, likelihood = align(self.encoder.log_probabilities(waveform), said, self.units[SILENCE])
        except ValueError:
            return None
        if likelihood < LEAST:
            return None
        phones, start, rate = [], 0, self.encoder.frame_rate
        for unit, run in groupby(frames.tolist()):
            end = start + len(list(run))
            phones.append(Phone(self.names[unit], start / rate, end / rate))
            start = end
        return phones


def measure_phones(
    encoder: UnitEncoder, utterances: Sequence[Utterance], units: Sequence[Units]
) -> dict[str, dict[str, Any]]:
    """{language: {"recordings", "pnmi", "pnmi_without_silence", "abx": {"units", "features"}}} of utterances with their
    units; "features" where the encoder has them."""
    measured: dict[str, dict[str, Any]] = {}
    for language in sorted({utterance.language for utterance in utterances}):
        said = [(part, unit) for part, unit in zip(utterances, units, strict=True) if part.language == language]
        own, theirs = [part for part, _ in said], [unit for _, unit in said]
        agreement = phone_agreement(own, theirs, encoder.codebook_size)
        contexts = find_tokens([(part.voice, part.sentence, part.phones) for part in own])
        shown = {"units": [unit.frames() for unit in theirs]}
        if hasattr(encoder, "features"):
            shown["features"] = [
                encoder.features(resample(part.waveform, SAMPLE_RATE, encoder.sample_rate)) for part in own
            ]
        measured[language] = {
            "recordings": len(own),
            "pnmi": agreement["pnmi"],
            "pnmi_without_silence": agreement["pnmi_without_silence"],
            "abx": {
                name: dataclasses.asdict(abx_error(contexts, frames, encoder.frame_rate))
                for name, frames in shown.items()
            },
        }
    return measured


def speaker_probe(
    units: Sequence[Units],
    waveforms: Sequence[np.ndarray],
    speakers: Sequence[str],
    texts: Sequence[str],
    codebook: int,
) -> dict[str, float] | None:
    """How often a probe names the speaker of a recording: {"units", "sound", "chance", "speakers", "recordings"}.

    The recordings are in one language. None where there are not two speakers of TEXTS texts.

    waveforms: float32 [samples] at 16 kHz. Every recording of a text is in the same one of TEXTS parts, and told by a
    probe that was fitted on the others.
    """
    said: dict[str, set[str]] = {}
    for speaker, text in zip(speakers, texts, strict=True):
        said.setdefault(speaker, set()).add(text)
    kept = [index for index, speaker in enumerate(speakers) if len(said[speaker]) >= TEXTS]
    names = [speakers[index] for index in kept]
    if len(set(names)) < 2:
        return None
    shares = np.stack([_shares(units[index], codebook) for index in kept])
    sounds = np.stack([_timbre(waveforms[index]) for index in kept])
    groups = [texts[index] for index in kept]
    return {
        "units": _told(shares, names, groups),
        "sound": _told(sounds, names, groups),
        "chance": max(names.count(name) for name in set(names)) / len(names),
        "speakers": len(set(names)),
        "recordings": len(names),
    }


def _shares(units: Units, codebook: int) -> np.ndarray:
    counts = np.bincount(units.ids, minlength=codebook).astype(float)
    return np.sqrt(counts / max(1.0, counts.sum()))


@cache
def _front() -> LogMel:
    return log_mel(MELS, SAMPLE_RATE)


def _timbre(waveform: np.ndarray) -> np.ndarray:
    front = _front()
    samples = torch.from_numpy(np.pad(waveform, (0, max(0, WINDOW - len(waveform)))))
    frames = front.log(front.power(samples[None]))[0].numpy()
    return np.concatenate([frames.mean(0), frames.std(0)])


def _told(features_ND: np.ndarray, names: Sequence[str], groups: Sequence[str]) -> float:
    """Share of the recordings whose speaker a probe names that was fitted on other texts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(np.mean(cross_val_score(probe, features_ND, names, groups=groups, cv=GroupKFold(TEXTS))))
