"""A stand-in for a bundle, for tests that need exact timing: replies of a known sound, made at a known speed.

The sound is speech-like (a buzz in syllables, silent between them). Its pitch is the prompt's own loudest frequency, to the
nearest 10 Hz, so that a test can tell whose reply is whose.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from slm.audio import check_waveform, write_wav
from slm.continuation import Prompt, Sentence
from slm.errors import TresseError
from slm.settings import ReplySettings
from slm.speaking import Chunk
from slm.units.sequence import Units
from slm.voice_activity import WINDOW
from slm.voice_check import Voice, VoiceMeter


@dataclass(frozen=True)
class FakeExample:
    path: Path
    language: str
    text: str


RATE = 16000
FRAME_RATE = 50.0
OUT_OF_DOMAIN = 600.0
"""Hz from which on a prompt is out of domain."""


@dataclass(frozen=True)
class FakePrompt(Prompt):
    """A prompt that remembers its own pitch, in Hz."""

    pitch: float = 200.0


class FakePromptStream:
    """A unit every 20 ms, whatever is said."""

    def __init__(self, sample_rate: int, max_seconds: float, languages: Sequence[str]) -> None:
        self.sample_rate, self.max_seconds, self.languages = sample_rate, max_seconds, languages
        self._parts: list[np.ndarray] = [np.zeros(0, np.float32)]

    @property
    def waveform(self) -> np.ndarray:
        return np.concatenate(self._parts)

    def push(self, samples: np.ndarray) -> np.ndarray:
        self._parts.append(samples)
        if len(self.waveform) > self.max_seconds * self.sample_rate:
            raise TresseError(f"the prompt is longer than {self.max_seconds:.0f} s: say less at once")
        return np.arange(len(samples) * 50 // self.sample_rate)

    def fork(self) -> FakePromptStream:
        return copy.deepcopy(self)

    def finish(self, before: Sequence[Sentence] = ()) -> Prompt:
        """High voices speak the last language, low ones the first; very high ones are out of domain."""
        waveform = check_waveform(self.waveform, self.sample_rate, self.max_seconds)
        units = fake_units(waveform, self.sample_rate)
        pitch = 10.0 * int(units.ids[0])
        language = self.languages[0 if pitch < 190 else -1]
        seconds = len(waveform) / self.sample_rate
        voice = fake_voice(waveform)
        return FakePrompt([units], language, seconds, tuple(before), pitch < OUT_OF_DOMAIN, voice, pitch)


def fake_voice(waveform: np.ndarray) -> Voice | None:
    """How it was recorded, where loud windows are speech and the others silence."""
    meter = VoiceMeter()
    meter.push(waveform)
    powers = (waveform[: len(waveform) // WINDOW * WINDOW].reshape(-1, WINDOW) ** 2).mean(1)
    meter.push_windows(np.stack([powers > 0.3 * powers.max(initial=0), powers], 1))
    return meter.finish()


def fake_units(waveform: np.ndarray, sample_rate: int) -> Units:
    """Units that tell the pitch: the first one is its nearest multiple of 10 Hz."""
    frames = np.full(max(1, round(len(waveform) / sample_rate * FRAME_RATE)), 7)
    frames[0] = min(99, round(loudest_frequency(waveform, sample_rate) / 10))
    return Units.from_frames(frames, FRAME_RATE)


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
    active: int = 0  # generations under way
    most_active: int = 0
    context: int = 1024
    tags: bool = True
    ends: float | None = None  # log-odds that a sentence ends in a pause

    def __post_init__(self) -> None:
        self.path = self.folder
        self.units = SimpleNamespace(frame_rate=FRAME_RATE, sample_rate=RATE)
        self._lock = threading.Lock()
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

    def context_use(self, story: Sequence[Sentence], max_seconds: float) -> tuple[int, int, int]:
        """Ten tokens a sentence."""
        kept = min(len(story), self.context // 20)
        return 10 * kept, self.context // 2, len(story) - kept

    def prompt_stream(self, sample_rate: int) -> FakePromptStream:
        return FakePromptStream(sample_rate, self.max_prompt_seconds, self.languages)

    def prompt(self, waveform: np.ndarray, sample_rate: int, before: Sequence[Sentence] = ()) -> Prompt:
        stream = self.prompt_stream(sample_rate)
        stream.push(waveform)
        return stream.finish(before)

    def ending(self, prompt: Prompt) -> float | None:
        return self.ends

    def reply(self, prompt: Prompt, settings: ReplySettings) -> Iterator[Chunk]:
        began = time.monotonic()
        settings.check(self.languages, self.speakers)
        languages = settings.languages
        pitch = 10.0 * int(prompt.sentences[0].ids[0])
        audio = buzz(pitch, min(settings.max_seconds, self.reply_seconds), self.sample_rate)
        step = int(self.chunk_seconds * self.sample_rate)
        done = False
        with self._lock:
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            for number, start in enumerate(range(0, len(audio), step)):
                time.sleep(self.chunk_seconds * self.real_time_factor)
                part = audio[start : start + step]
                frames = round(len(part) / self.sample_rate * FRAME_RATE)
                sentence = number // 5 if len(languages) > 1 else 0  # braided: a sentence every five chunks
                spoken = tuple(languages[k % len(languages)] for k in range(sentence + 1))
                units = Units(np.arange(frames) % 100, np.ones(frames, np.int64), FRAME_RATE)
                owner = np.full(frames, sentence)
                yield Chunk(part, units, number + 1, time.monotonic() - began, prompt, owner, spoken)
            done = True
        finally:
            with self._lock:
                self.active -= 1
                self.closed += not done
