"""A stand-in for a bundle, for tests that need exact timing: replies of a known sound, made at a known speed.

The sound is speech-like (a buzz in syllables, silent between them). Its pitch depends on the prompt's own loudest
frequency, so that a test can tell whose reply is whose.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import check_waveform, write_wav
from slm.errors import TresseError
from slm.units.sequence import Units


@dataclass(frozen=True)
class FakeExample:
    path: Path
    language: str
    text: str


@dataclass(frozen=True)
class FakeChunk:
    audio: np.ndarray
    units: Units
    tokens: int
    elapsed: float
    prompt_language: str


def buzz(pitch: float, seconds: float, sample_rate: int = 16000) -> np.ndarray:
    """float32 [seconds * sample_rate]: harmonics of `pitch` Hz in four syllables a second."""
    t = np.arange(int(seconds * sample_rate)) / sample_rate
    tone = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 6))
    return (0.2 * tone * np.clip(np.sin(2 * np.pi * 4 * t) + 0.4, 0, 1)).astype(np.float32)


def loudest_frequency(waveform: np.ndarray, sample_rate: int) -> float:
    """Hz of the strongest bin between 50 and 2,000 Hz."""
    spectrum = np.abs(np.fft.rfft(waveform))
    frequencies = np.fft.rfftfreq(len(waveform), 1 / sample_rate)
    inside = (frequencies > 50) & (frequencies < 2000)
    return float(frequencies[inside][np.argmax(spectrum[inside])])


@dataclass
class FakeBundle:
    """Streams `buzz` at the prompt's pitch in chunks of `chunk_seconds`, one every `chunk_seconds * real_time_factor`."""

    folder: Path
    languages: list[str] = field(default_factory=lambda: ["en", "fr"])
    speakers: list[str] = field(default_factory=lambda: ["basile", "anouk"])
    sample_rate: int = 16000
    max_prompt_seconds: float = 30.0
    chunk_seconds: float = 0.1
    real_time_factor: float = 0.2
    reply_seconds: float = 3.0  # replies are no longer than this
    closed: int = 0  # generations that were ended early

    def __post_init__(self) -> None:
        self.path = self.folder
        self.info: dict[str, Any] = {"format": 1, "languages": self.languages}
        self.examples = []
        for number, code in enumerate(self.languages * 2):
            path = self.folder / "examples" / f"{code}-{number}.wav"
            write_wav(path, buzz(110 + 20 * number, 2.0), self.sample_rate)
            self.examples.append(
                FakeExample(path, code, f"A buzz at {110 + 20 * number} hertz, to begin a story with no words at all")
            )
        self.examples.sort(key=lambda example: example.language)

    def warm_up(self) -> None:
        """Nothing is loaded lazily here."""

    def continue_speech(
        self,
        waveform: np.ndarray,
        sample_rate: int,
        to: str,
        *,
        seed: int = 0,
        temperature: float = 0.8,
        top_p: float = 0.95,
        max_seconds: float = 12.0,
        speaker: str | None = None,
    ) -> Iterator[FakeChunk]:
        began = time.monotonic()
        waveform = check_waveform(waveform, sample_rate, self.max_prompt_seconds)
        if to not in self.languages:
            raise TresseError(f"unknown language {to}: choose one of {', '.join(self.languages)}")
        audio = buzz(loudest_frequency(waveform, sample_rate), min(max_seconds, self.reply_seconds), self.sample_rate)
        step = int(self.chunk_seconds * self.sample_rate)
        done = False
        try:
            for number, start in enumerate(range(0, len(audio), step)):
                time.sleep(self.chunk_seconds * self.real_time_factor)
                elapsed = time.monotonic() - began
                yield FakeChunk(audio[start : start + step], Units.empty(50.0), number + 1, elapsed, self.languages[0])
            done = True
        finally:
            self.closed += not done
