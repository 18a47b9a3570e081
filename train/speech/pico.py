"""SVOX Pico as a synthesiser: English (two voices), French, Spanish, German and Italian, 100 times real time.

The folder holds the package `py_nanotts` (Apache-2.0). A speaker chooses voices, speed and pitch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from slm.audio import resample
from slm.errors import TresseError

RATE = 16000
"""Hz of Pico's speech."""
_SAME = str.maketrans({"<": " ", ">": " ", "’": "'"})
"""Pico takes what stands in angle brackets for a command."""


@dataclass(frozen=True)
class PicoSpeaker:
    """pico: Pico's voice for each language, such as {en: en-GB, fr: fr-FR}; speed and pitch: times the usual."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: ClassVar[str] = "pico"
    name: str
    pico: Annotated[dict[str, str], Field(min_length=1)]
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    pitch: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0


@dataclass(frozen=True)
class Pico:
    """The back end (see `train.speech.voices.Synthesiser`). folder: of the package."""

    folder: Path
    sample_rate: int = RATE
    name = "pico"

    def speak(self, text: str, language: str, speaker: PicoSpeaker) -> np.ndarray:
        """float32 [samples] at `sample_rate` Hz. Raises TresseError where the speaker lacks the language."""
        self.check(language, speaker)
        engine = _library(self.folder).NanoTTS()
        plain = text.translate(_SAME)
        if not re.search(r"[^\W_]", plain):  # it would say "dot dot dot"
            return np.zeros(0, np.float32)
        with zeroed_memory():
            speech = engine.speak(plain, voice=speaker.pico[language], speed=speaker.speed, pitch=speaker.pitch)
        waveform = np.frombuffer(speech, "<i2").astype(np.float32) / 32768
        return resample(waveform, RATE, self.sample_rate) if len(waveform) else waveform

    def check(self, language: str, speaker: PicoSpeaker) -> None:
        """Raise TresseError where the package is missing, or the speaker lacks the language."""
        if language not in speaker.pico:
            known = ", ".join(speaker.pico)
            raise TresseError(f"voice {speaker.name} does not speak {language!r}: add a `pico` voice (it has {known})")
        if not (self.folder / "py_nanotts").is_dir():
            raise TresseError(
                f"voice {speaker.name}: there is no SVOX Pico in {self.folder}: "
                "set TRESSE_MODELS, or `models` in the voices file, to the folder that holds pico/"
            )
        choices = [voice.value for voice in _library(self.folder).Voice]
        if speaker.pico[language] not in choices:
            raise TresseError(
                f"voice {speaker.name}: Pico has no voice {speaker.pico[language]}: choose of {', '.join(choices)}"
            )

    def fingerprint(self, speaker: PicoSpeaker) -> str:
        """All that its speech depends on beside text and language: the voices' data, and the settings."""
        for language in speaker.pico:
            self.check(language, speaker)
        data = sorted(
            path for voice in set(speaker.pico.values()) for path in self.folder.glob(f"py_nanotts/lang/{voice}_*.bin")
        )
        digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in data))
        return f"{self.name} {digest.hexdigest()[:16]} {speaker}"


@contextmanager
def zeroed_memory() -> Iterator[None]:
    """Memory that is allocated inside is zeroed. Pico reads its memory before it writes it: in a used block a sentence
    would depend on what was done before. Needs glibc; elsewhere nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    perturb = -6  # M_PERTURB of malloc.h: allocated bytes are the complement of its value, 0 turns it off
    if mallopt is not None:
        mallopt(perturb, 255)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(perturb, 0)


@functools.cache
def _library(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("py_nanotts")
    except ImportError as error:
        raise TresseError(f"cannot load SVOX Pico from {folder}: it is built for another machine or Python") from error
    finally:
        sys.path.remove(str(folder))
