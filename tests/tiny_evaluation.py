"""A bundle small enough to be evaluated in milliseconds: loudness for units, a one-layer model, a buzz for a voice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from slm.model import ModelConfig
from slm.transcribe import Segment, Transcript
from slm.units import Units, UnitVocabulary
from tests.fake_bundle import buzz

LANGUAGES = ["en", "fr"]
NUMBERS = {"en": ["one", "two", "three", "four"], "fr": ["un", "deux", "trois", "quatre"]}
UNITS = 32


class LoudnessEncoder:
    """Units of a clip from its loudness in 40 ms steps: quick, and different for different speech."""

    sample_rate, frame_rate, codebook_size = 16000, 25.0, UNITS

    def __init__(self) -> None:
        self.encoded = 0

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        self.encoded += len(waveforms)
        found = []
        for waveform in waveforms:
            frames = waveform[: len(waveform) // 640 * 640].reshape(-1, 640)
            loudness = np.sqrt(np.square(frames).mean(axis=1))
            found.append(Units.from_frames((loudness * 200).astype(np.int64).clip(0, UNITS - 1), self.frame_rate))
        return found


@dataclass
class TinyBundle:
    """What the evaluations ask of a bundle. seed: of the model's weights."""

    path: Path
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    units: LoudnessEncoder = field(default_factory=LoudnessEncoder)
    seed: int = 0
    sample_rate: int = 16000
    continued: int = 0

    def __post_init__(self) -> None:
        (self.path / "units").mkdir(parents=True, exist_ok=True)
        (self.path / "units" / "config.json").write_text("{}")
        self.info: dict[str, Any] = {"name": "tiny", "provenance": {"recipe": "none", "seed": self.seed}}
        self.vocabulary = UnitVocabulary.train([], codebook_size=UNITS, languages=self.languages, vocab_size=None)
        torch.manual_seed(self.seed)
        self.language_model = (
            ModelConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32, max_position=512)
            .build(self.vocabulary)
            .eval()
        )

    def continue_speech(
        self, waveform: np.ndarray, sample_rate: int, to: str, *, temperature: float, **settings: Any
    ) -> Iterator[Any]:
        self.continued += 1
        pitch = 100 + 10 * self.languages.index(to) + 100 * temperature
        prompt = SimpleNamespace(in_domain=to == "en")
        yield SimpleNamespace(audio=buzz(pitch, 0.5, self.sample_rate), tokens=5, prompt=prompt)


class Parrot:
    """A recogniser that hears the same sentence in everything."""

    def __init__(self, text: str, language: str = "en") -> None:
        self.text, self.language = text, language

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str | None = None) -> Transcript:
        return Transcript((Segment(0.0, len(waveform) / sample_rate, self.text, self.language, 1.0, 0.9),))


def make_item(number: int, kind: str = "story") -> dict[str, Any]:
    """An item of numbers, in both languages; item 2k + 1 mirrors none."""

    def sentence(language: str, shift: int) -> str:
        digits = [(number // 4**k + shift) % 4 for k in range(3)]
        return " ".join(NUMBERS[language][digit] for digit in digits)

    return {
        "id": f"{kind}-{number}",
        "kind": kind,
        "context": {language: [sentence(language, 0), sentence(language, 1)] for language in LANGUAGES},
        "right": {language: sentence(language, 2) + " yes oui" for language in LANGUAGES},
        "wrong": {language: sentence(language, 3) + " no non" for language in LANGUAGES},
    }


def mirrored(item: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The item with right and wrong exchanged."""
    return {**item, "right": item["wrong"], "wrong": item["right"], **changes}
