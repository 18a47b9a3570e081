"""Speech for training and evaluation: who speaks (voices.yaml), and sentences spoken by a synthesiser.

There are two back ends: espeak-ng (`train.speech.espeak`), which comes with pip and speaks at hundreds of times real
time, and any transformers VITS checkpoint (`train.speech.vits`). A voices file may mix both. Whatever speaks, a sentence
ends up at 16 kHz, with 60 ms of silence at both ends and at one loudness, and depends on the request alone.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from slm.errors import TresseError
from train.speech.espeak import Espeak, EspeakSpeaker, Phoneme
from train.speech.vits import Vits, VitsSpeaker, voices_of
from train.tools.workers import worker_pool

__all__ = ["LOUDNESS", "MARGIN", "SAMPLE_RATE", "Phoneme", "Speaker", "Synthesiser", "Unspeakable", "Voices", "speak"]

SAMPLE_RATE = 16000
MARGIN = 0.06
"""s of silence left before and after a sentence."""
LOUDNESS = 0.07
"""Root mean square that every sentence is scaled to (before peaks are held under 0.95)."""
SILENCE = 2e-3
"""Samples below are silence, where a sentence is trimmed."""

Speaker = EspeakSpeaker | VitsSpeaker


class Unspeakable(TresseError):
    """A text that gives no speech. One row of a corpus, not the whole of it, is at fault."""


class Synthesiser(Protocol):
    """Text -> speech: what a back end offers. `speaker` is one of its own kind."""

    name: str

    def speak(self, text: str, language: str, speaker: Any) -> np.ndarray:
        """float32 [samples] at 16 kHz, the same for the same request; margins and level are the caller's to mend.

        Raises TresseError where the speaker does not speak the language.
        """
        ...

    def check(self, language: str, speaker: Any) -> None:
        """Raise TresseError, naming the mend, where `speak` would; cheap, to be asked before long work."""
        ...

    def fingerprint(self, speaker: Any) -> str:
        """Everything that the speech depends on beside text and language (versions, weights, settings)."""
        ...


@dataclass(frozen=True)
class Voices:
    """Who speaks the corpus (voices.yaml). languages: espeak-ng's voice of each language."""

    languages: dict[str, str]
    reference: str
    vocoder: list[str]
    training: dict[str, Speaker]
    held_out: dict[str, Speaker] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None) -> Voices:
        """Read a voices file (the project's own by default). Raises TresseError, in one line, where it is wrong."""
        path = Path(path) if path else Path(__file__).parents[1] / "voices.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TresseError(f"cannot read the voices in {path}: {' '.join(str(error).split())}") from error
        try:
            return _parse(data)
        except ValueError as error:
            raise TresseError(f"{path}: {error} (train/voices.yaml shows the form)") from error

    def speaker(self, name: str) -> Speaker:
        """The speaker of this name, from either group."""
        try:
            return {**self.training, **self.held_out}[name]
        except KeyError:
            known = ", ".join([*self.training, *self.held_out])
            raise TresseError(f"unknown voice {name}: choose one of {known}") from None

    def synthesiser(self, speaker: Speaker) -> Synthesiser:
        """The back end that this speaker belongs to."""
        return Vits(SAMPLE_RATE) if isinstance(speaker, VitsSpeaker) else Espeak(self.languages, SAMPLE_RATE)

    def check(self, names: Iterable[str], languages: Iterable[str]) -> None:
        """Raise TresseError, naming the mend, where one of these voices cannot speak one of the languages."""
        languages = list(languages)
        for name in names:
            speaker = self.speaker(name)
            for language in languages:
                self.synthesiser(speaker).check(language, speaker)

    def fingerprint(self, names: Iterable[str]) -> list[str]:
        """What the speech of these voices depends on, for provenance and for telling two corpora apart."""
        return [self.synthesiser(self.speaker(name)).fingerprint(self.speaker(name)) for name in names]


def speak(text: str, language: str, speaker: Speaker, voices: Voices | None = None) -> np.ndarray:
    """Speak one sentence: float32 [samples] at 16 kHz, silence trimmed to 60 ms at both ends, loudness equalised.

    Raises TresseError for a language the speaker does not speak, and Unspeakable for text that says nothing.
    """
    waveform = (voices or _default_voices()).synthesiser(speaker).speak(text, language, speaker)
    return _finish(waveform, text)[0]


def speak_with_phonemes(
    text: str, language: str, speaker: Speaker, voices: Voices | None = None
) -> tuple[np.ndarray, list[Phoneme]]:
    """Like `speak`, with the phonemes and their times: for evaluation and the recogniser. The unit encoder never sees them.

    Raises TresseError also for a speaker of another back end than espeak-ng.
    """
    if not isinstance(speaker, EspeakSpeaker):
        raise TresseError(f"voice {speaker.name} has no phoneme times: choose an espeak-ng voice")
    espeak = Espeak((voices or _default_voices()).languages, SAMPLE_RATE)
    waveform, phonemes = espeak.speak_with_phonemes(text, language, speaker)
    waveform, start = _finish(waveform, text)
    return waveform, [Phoneme(phoneme.name, phoneme.start - start) for phoneme in phonemes]


def _finish(waveform: np.ndarray, text: str) -> tuple[np.ndarray, float]:
    """Trim and level speech; also the s that were cut off at its beginning (negative where silence was added)."""
    loud = np.flatnonzero(np.abs(waveform) > SILENCE)
    if len(loud) < SAMPLE_RATE // 50:
        raise Unspeakable(f"nothing to speak in {text!r}: give a sentence with words")
    margin = int(MARGIN * SAMPLE_RATE)
    start, stop = loud[0] - margin, loud[-1] + 1 + margin
    padded = np.pad(waveform, (max(0, -start), max(0, stop - len(waveform))))
    waveform = padded[max(0, start) : max(0, start) + stop - start]
    waveform = waveform * (LOUDNESS / float(np.sqrt(np.mean(np.square(waveform[margin:-margin])))))
    waveform = waveform * min(1.0, 0.95 / float(np.abs(waveform).max()))
    return waveform.astype(np.float32), start / SAMPLE_RATE


@functools.cache
def _default_voices() -> Voices:
    return Voices.load()


_KEYS = ("languages", "reference", "vocoder", "training", "held_out")


def _parse(data: Any) -> Voices:
    """What a voices file says. Raises ValueError, in one line, naming the entry."""
    if not isinstance(data, Mapping):
        raise ValueError("the file must hold keys and values")
    for key in data:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0) or _KEYS
            raise ValueError(f"unknown key {key}: did you mean {near[0]}?")
    languages = data.get("languages") or {}
    if not isinstance(languages, Mapping) or not all(isinstance(voice, str) for voice in languages.values()):
        raise ValueError("languages: give `language: espeak-ng voice` pairs")
    groups: dict[str, dict[str, Speaker]] = {}
    for group in ("training", "held_out"):
        entries = data.get(group) or {}
        if not isinstance(entries, Mapping):
            raise ValueError(f"{group}: give `name: {{variant, rate, pitch}}` or `name: {{vits: ...}}` entries")
        groups[group] = {str(name): _speaker(f"{group}.{name}", str(name), entry) for name, entry in entries.items()}
    if not groups["training"]:
        raise ValueError("training: give at least one voice")
    twice = set(groups["training"]) & set(groups["held_out"])
    if twice:
        raise ValueError(f"{min(twice)} is both a training and a held-out voice: give it another name")
    reference = data.get("reference", next(iter(groups["training"])))
    vocoder = data.get("vocoder") or [reference]
    if not isinstance(vocoder, list):
        raise ValueError("vocoder: give a list of voices")
    for name in [reference, *vocoder]:
        if name not in groups["training"]:
            raise ValueError(f"{name} must be one of the training voices")
    return Voices(dict(languages), reference, vocoder, **groups)


def _speaker(where: str, name: str, entry: Any) -> Speaker:
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(entry, Mapping) or "name" in entry:
        raise ValueError(f"{where}: give {{variant, rate, pitch}} or {{vits: ...}}")
    kind: type[Speaker] = EspeakSpeaker
    if "vits" in entry:
        kind, entry = VitsSpeaker, {**entry, "vits": voices_of(entry["vits"])}
    try:
        return TypeAdapter(kind).validate_python({"name": name, **entry})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        raise ValueError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def speak_all(requests: list[tuple[str, str, Speaker]], voices: Voices, workers: int) -> list[np.ndarray]:
    """Speak (text, language, speaker) requests over `workers` processes, in order."""
    texts, languages, speakers = zip(*requests, strict=True)
    if workers <= 1:
        return [speak(*request, voices) for request in requests]
    with worker_pool(workers) as pool:
        return list(pool.map(speak, texts, languages, speakers, [voices] * len(requests), chunksize=32))
