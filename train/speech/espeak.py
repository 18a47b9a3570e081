"""espeak-ng as a synthesiser, in process: libespeak-ng and its data come as a wheel (espeakng-loader).

The library is one global state per process, so speak from several processes, not threads. About 450 times real time on
one core, most of it the synthesis itself. It is the only back end that gives phoneme times.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from slm.audio import resample
from slm.errors import TresseError

BLOCK = 11025
"""Samples at 22,050 Hz that are exactly 8,000 at 16 kHz. Resampling whole blocks meets few distinct lengths: for every new
one torch prepares its convolution anew, which costs ten times the convolution."""

IPA = 2
"""espeak-ng's phoneme mode of that name."""


@dataclass(frozen=True)
class EspeakSpeaker:
    """A voice that speaks every language. variant: espeak-ng's; rate: words a minute; pitch: 0-99."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: ClassVar[str] = "espeak"
    name: str
    variant: str
    rate: Annotated[int, Field(ge=80, le=450)]
    pitch: Annotated[int, Field(ge=0, le=99)]


@dataclass(frozen=True)
class Phoneme:
    """An espeak-ng phoneme and the time it begins, in s from the start of the returned waveform."""

    name: str
    start: float


@dataclass(frozen=True)
class Espeak:
    """The back end (see `train.speech.voices.Synthesiser`). languages: the espeak-ng voice of each language."""

    languages: Mapping[str, str]
    sample_rate: int = 16000
    name = "espeak-ng"

    def speak(self, text: str, language: str, speaker: EspeakSpeaker) -> np.ndarray:
        """float32 [samples] at 16 kHz. Raises TresseError for a language or variant that espeak-ng lacks."""
        return self.speak_with_phonemes(text, language, speaker)[0]

    def speak_with_phonemes(self, text: str, language: str, speaker: EspeakSpeaker) -> tuple[np.ndarray, list[Phoneme]]:
        """Like `speak`, with every phoneme and its time."""
        if language not in self.languages:
            known = ", ".join(self.languages) or "none"
            raise TresseError(f"no espeak-ng voice speaks {language!r}: add it to `languages` (known: {known})")
        voice = self.languages[language] + (f"+{speaker.variant}" if speaker.variant else "")
        with _Library() as library:
            samples, rate, events = library.synthesise(text, voice, speaker.rate, speaker.pitch)
        padded = np.pad(samples.astype(np.float32) / 32768.0, (0, -len(samples) % BLOCK))
        waveform = resample(padded, rate, self.sample_rate)[: -(-len(samples) * self.sample_rate // rate)]
        return waveform, [Phoneme(name, seconds) for name, seconds in events]

    def check(self, language: str, speaker: EspeakSpeaker) -> None:
        """Raise TresseError where espeak-ng lacks the language's voice or the variant (it would silently speak without)."""
        self.speak("1", language, speaker)
        variants = _variants()
        if speaker.variant and speaker.variant not in variants:
            known = ", ".join(sorted(variants))
            raise TresseError(
                f"voice {speaker.name}: espeak-ng has no variant {speaker.variant}: choose one of {known}"
            )

    def fingerprint(self, speaker: EspeakSpeaker) -> str:
        """All that its speech depends on beside text and language."""
        return f"{self.name} {version('espeakng-loader')} {sorted(self.languages.items())} {speaker}"


@functools.cache
def _variants() -> frozenset[str]:
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return frozenset(path.name for path in folder.iterdir())


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


class _Library:
    """libespeak-ng through ctypes, in retrieval mode (no sound device), for one sentence.

    The library keeps phases and noise in static variables from one sentence to the next: a sentence would depend on what
    was spoken before it. Each therefore gets a freshly loaded library (1 ms) and the same random seed.
    """

    SYNCHRONOUS, PHONEME_EVENTS, DONT_EXIT, UTF8 = 2, 0x0001, 0x8000, 1
    RATE, PITCH = 1, 3
    EVENT_PHONEME = 7

    def load(self) -> ctypes.CDLL:
        """The library's code and variables."""
        import espeakng_loader

        return ctypes.CDLL(espeakng_loader.get_library_path())

    def __enter__(self) -> _Library:
        import espeakng_loader

        self.library = self.load()
        data = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, data, self.PHONEME_EVENTS | self.DONT_EXIT)
        if self.rate <= 0:
            raise TresseError("espeak-ng did not start: reinstall the package espeakng-loader")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise: else seeded with the time of day
        self.samples: list[np.ndarray] = []
        self.events: list[tuple[str, float]] = []
        self._raised: BaseException | None = None
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._receive)  # kept: ctypes does not hold it
        self.library.espeak_SetSynthCallback(self._callback)
        return self

    def __exit__(self, *_: object) -> None:
        import _ctypes

        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)

    def _receive(self, samples, count: int, events) -> int:  # type: ignore[no-untyped-def]
        """Called from C, which drops what is raised here: an interruption stops the speech, and is raised behind it."""
        try:
            return self._keep(samples, count, events)
        except BaseException as error:
            self._raised = error
            return 1

    def _keep(self, samples, count: int, events) -> int:  # type: ignore[no-untyped-def]
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
            raise TresseError(f"espeak-ng has no voice {voice}: name a language by its short code (fr, en-us)")
        self.library.espeak_SetParameter(self.RATE, rate, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        data = text.encode("utf-8") + b"\0"
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, self.UTF8, None, None)
        if self._raised is not None:
            raise self._raised
        return (np.concatenate(self.samples) if self.samples else np.zeros(0, np.int16)), self.rate, self.events


class _Reader(_Library):
    """A library that stays loaded: what it reads does not depend on what it read before. It is a copy, with variables of
    its own, so that every sentence that is spoken still gets a fresh one."""

    def __init__(self, voice: str) -> None:
        self.__enter__()
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            self.__exit__()
            raise TresseError(f"espeak-ng has no voice {voice}: name a language by its short code (fr, en-us)")
        self.translate = self.library.espeak_TextToPhonemes
        self.translate.restype = ctypes.c_char_p
        self.lock = threading.Lock()

    def load(self) -> ctypes.CDLL:
        """A copy of the file is another library to the loader."""
        import espeakng_loader

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))

    def read(self, text: str) -> list[str]:
        """The clauses of a text in IPA."""
        buffer = ctypes.create_string_buffer(text.encode("utf-8"))  # kept while espeak-ng reads it
        rest = ctypes.cast(buffer, ctypes.c_void_p)
        clauses = []
        with self.lock:
            while rest.value:
                clauses.append((self.translate(ctypes.byref(rest), 1, IPA) or b"").decode("utf-8", "replace"))
        return clauses


_reader = functools.cache(_Reader)
"""The reader of a voice, a hundred times as fast as a new one for each text."""


def ipa(text: str, voice: str) -> str:
    """A text as espeak-ng reads it, in IPA with stress marks. Raises TresseError for an unknown voice."""
    clauses = _reader(voice).read(text)
    return re.sub(r"\([a-z-]+\)|\u200d", "", " ".join(clauses)).strip()  # without marks of a change of language
