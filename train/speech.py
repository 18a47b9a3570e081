"""Speech for training and evaluation: sentences spoken by espeak-ng, in process.

The library and its data come as a wheel (espeakng-loader): pip alone. It is one global state per process, so speak
from several processes, not threads. About 600 times real time on one core.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from slm.audio import resample
from slm.errors import TresseError

SAMPLE_RATE = 16000
MARGIN = 0.06
"""s of silence left before and after a sentence."""
LOUDNESS = 0.07
"""Root mean square that every sentence is scaled to (before peaks are held under 0.95)."""


@dataclass(frozen=True)
class Speaker:
    """A voice that speaks every language. variant: espeak-ng's; rate: words a minute; pitch: 0-99."""

    name: str
    variant: str
    rate: int
    pitch: int


@dataclass(frozen=True)
class Voices:
    """Who speaks the corpus (voices.yaml)."""

    languages: dict[str, str]
    reference: str
    vocoder: list[str]
    training: dict[str, Speaker]
    held_out: dict[str, Speaker]

    @classmethod
    def load(cls, path: Path | None = None) -> Voices:
        """Read voices.yaml (the project's own by default). Raises TresseError where it is wrong."""
        path = path or Path(__file__).with_name("voices.yaml")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            groups = {
                group: {name: Speaker(name=name, **entry) for name, entry in data[group].items()}
                for group in ("training", "held_out")
            }
            voices = cls(data["languages"], data["reference"], data["vocoder"], **groups)
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise TresseError(
                f"cannot use the voices in {path} ({error}): see train/voices.yaml for the form"
            ) from error
        for name in [voices.reference, *voices.vocoder]:
            if name not in voices.training:
                raise TresseError(f"{path}: {name} must be one of the training voices")
        return voices

    def speaker(self, name: str) -> Speaker:
        """The speaker of this name, from either group."""
        try:
            return {**self.training, **self.held_out}[name]
        except KeyError:
            known = ", ".join([*self.training, *self.held_out])
            raise TresseError(f"unknown voice {name}: choose one of {known}") from None


@dataclass(frozen=True)
class Phoneme:
    """An espeak-ng phoneme and the time it begins, in s from the start of the returned waveform."""

    name: str
    start: float


def speak(text: str, language: str, speaker: Speaker, voices: Voices | None = None) -> np.ndarray:
    """Speak one sentence: float32 [samples] at 16 kHz, silence trimmed to 60 ms at both ends, loudness equalised."""
    return speak_with_phonemes(text, language, speaker, voices)[0]


def speak_with_phonemes(
    text: str, language: str, speaker: Speaker, voices: Voices | None = None
) -> tuple[np.ndarray, list[Phoneme]]:
    """Like `speak`, with the phonemes and their times (for evaluation only: no training may use them).

    Raises TresseError for a language without a voice and for text that says nothing.
    """
    languages = (voices or _default_voices()).languages
    if language not in languages:
        raise TresseError(f"no voice speaks {language!r}: add it to train/voices.yaml (known: {', '.join(languages)})")
    voice = languages[language] + (f"+{speaker.variant}" if speaker.variant else "")
    with _Espeak() as espeak:
        samples, rate, events = espeak.synthesise(text, voice, speaker.rate, speaker.pitch)
    waveform = resample(samples.astype(np.float32) / 32768.0, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(waveform) > 2e-3)
    if len(loud) < SAMPLE_RATE // 50:
        raise TresseError(f"nothing to speak in {text!r}: give a sentence with words")
    margin = int(MARGIN * SAMPLE_RATE)
    start, stop = loud[0] - margin, loud[-1] + 1 + margin
    padded = np.pad(waveform, (max(0, -start), max(0, stop - len(waveform))))
    waveform = padded[max(0, start) : max(0, start) + stop - start]
    waveform = waveform * (LOUDNESS / float(np.sqrt(np.mean(np.square(waveform[margin:-margin])))))
    waveform = (waveform * min(1.0, 0.95 / float(np.abs(waveform).max()))).astype(np.float32)
    return waveform, [Phoneme(name, seconds - start / SAMPLE_RATE) for name, seconds in events]


@functools.cache
def _default_voices() -> Voices:
    return Voices.load()


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    class _Id(ctypes.Union):
        _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


class _Espeak:
    """libespeak-ng through ctypes, in retrieval mode (no sound device), for one sentence.

    The library keeps phases and noise in static variables from one sentence to the next: a sentence would depend on what
    was spoken before it. Each therefore gets a freshly loaded library (2 ms) and the same random seed.
    """

    SYNCHRONOUS, PHONEME_EVENTS, DONT_EXIT, UTF8 = 2, 0x0001, 0x8000, 1
    RATE, PITCH = 1, 3
    EVENT_PHONEME = 7

    def __enter__(self) -> _Espeak:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, data, self.PHONEME_EVENTS | self.DONT_EXIT)
        if self.rate <= 0:
            raise TresseError("espeak-ng did not start: reinstall the package espeakng-loader")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise: else seeded with the time of day
        self.samples: list[np.ndarray] = []
        self.events: list[tuple[str, float]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._receive)  # kept: ctypes does not hold it
        self.library.espeak_SetSynthCallback(self._callback)
        return self

    def __exit__(self, *_: object) -> None:
        import _ctypes

        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)

    def _receive(self, samples, count: int, events) -> int:  # type: ignore[no-untyped-def]
        if samples and count > 0:
            self.samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != 0:
            if events[index].type == self.EVENT_PHONEME:
                name = bytes(events[index].id.string).decode("utf-8", "replace")
                self.events.append((name, events[index].audio_position / 1000))
            index += 1
        return 0

    def synthesise(
        self, text: str, voice: str, rate: int, pitch: int
    ) -> tuple[np.ndarray, int, list[tuple[str, float]]]:
        """int16 [samples], their rate in Hz, phonemes with start times in s."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise TresseError(f"espeak-ng has no voice {voice}: mend train/voices.yaml")
        self.library.espeak_SetParameter(self.RATE, rate, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        data = text.encode("utf-8") + b"\0"
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, self.UTF8, None, None)
        return (np.concatenate(self.samples) if self.samples else np.zeros(0, np.int16)), self.rate, self.events
