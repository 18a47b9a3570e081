"""flite as a synthesiser: English voices of human recordings, by the program `flite` (a package of most systems)."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from slm.audio import resample
from slm.errors import TresseError


@dataclass(frozen=True)
class FliteSpeaker:
    """flite: its voice for each language, such as {en: slt}; speed: times the usual."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: ClassVar[str] = "flite"
    name: str
    flite: Annotated[dict[str, str], Field(min_length=1)]
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0


@dataclass(frozen=True)
class Flite:
    """The back end (see `train.speech.voices.Synthesiser`)."""

    sample_rate: int = 16000
    name = "flite"

    def speak(self, text: str, language: str, speaker: FliteSpeaker) -> np.ndarray:
        """float32 [samples] at `sample_rate` Hz. Raises TresseError where the speaker lacks the language."""
        import soundfile

        self.check(language, speaker)
        if not re.search(r"[^\W_]", text):
            return np.zeros(0, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "text"), Path(folder, "speech.wav")
            source.write_text(text.replace("’", "'"), encoding="utf-8")
            stretch = [] if speaker.speed == 1 else ["--setf", f"duration_stretch={1 / speaker.speed:.4f}"]
            subprocess.run(
                ["flite", "-voice", speaker.flite[language], *stretch, "-f", str(source), "-o", str(target)],
                check=True,
                capture_output=True,
            )
            waveform, rate = soundfile.read(target, dtype="float32")
        return resample(waveform, rate, self.sample_rate)

    def check(self, language: str, speaker: FliteSpeaker) -> None:
        """Raise TresseError where the program or its voice is missing, or the speaker lacks the language."""
        if language not in speaker.flite:
            known = ", ".join(speaker.flite)
            raise TresseError(f"voice {speaker.name} does not speak {language!r}: add a `flite` voice (it has {known})")
        if speaker.flite[language] not in _voices(speaker.name):
            known = ", ".join(_voices(speaker.name))
            raise TresseError(f"voice {speaker.name}: flite has no voice {speaker.flite[language]}: choose of {known}")

    def fingerprint(self, speaker: FliteSpeaker) -> str:
        """What tells its speech apart beside text and language: the program's version, and the settings."""
        shown = _run("--version", speaker.name)
        version = re.search(r"version:\s*(\S+)", shown)
        return f"{self.name} {version[1] if version else ''} {speaker}"


@functools.cache
def _voices(speaker: str) -> list[str]:
    return _run("-lv", speaker).partition(":")[2].split()


def _run(option: str, speaker: str) -> str:
    try:
        return subprocess.run(["flite", option], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise TresseError(
            f"voice {speaker}: the program flite is missing: install your system's package flite"
        ) from error
