"""Speech whose phones are tones, and features that show them: a teacher and its student learn it in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slm.units.causal import FRAME, HOP, WINDOW
from slm.units.conv import log_mel
from train.speech.pool import Clip
from train.units import teacher
from train.units.teacher import WIDTH

RATE = 16000
TONES = {"a": 300.0, "b": 900.0, "c": 2500.0}
"""Hz of each phone; the silence is silent."""


def tones(names: Sequence[str], seconds: float, level: float = 0.3) -> np.ndarray:
    """A tone of `seconds` for each name, silence for others: float32 [samples] at 16 kHz, with a little noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    parts = [level * np.sin(2 * np.pi * TONES[name] * time) if name in TONES else 0 * time for name in names]
    noise = np.random.default_rng(len(names)).normal(size=len(names) * len(time))
    return (np.concatenate(parts) + 1e-3 * noise).astype(np.float32)


def write_clips(folder: Path, count: int, seed: int = 0, seconds: float = 0.2) -> list[Clip]:
    """A pool of `count` clips of ten tones each, in one file, as Kokoro would have spoken them."""
    rng = np.random.default_rng(seed)
    clips, waveforms, start = [], [], 0
    for number in range(count):
        names = [str(name) for name in rng.choice(["_", *TONES], 10)]
        waveform = tones(names, seconds)
        times = [(name, n * seconds, (n + 1) * seconds) for n, name in enumerate(names)]
        clips.append(
            Clip("tones.flac", start, len(waveform), RATE, " ".join(names), "en", f"s{number}", "kokoro", 0.0, times)
        )
        waveforms.append(waveform)
        start += len(waveform)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "tones.flac", np.concatenate(waveforms), RATE)
    return clips


class ToneFeatures:
    """Stands in for Whisper's encoder: log-mels of each frame, in the first of its numbers."""

    def __init__(self, folder: Path) -> None:
        self.front = log_mel(40, RATE)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [samples] -> float16 [frames, WIDTH]."""
        import torch

        features = []
        for waveform in waveforms:
            frames = -(-len(waveform) // FRAME)
            padded = np.pad(waveform, (WINDOW - HOP, frames * FRAME - len(waveform)))
            mels = self.front.log(self.front.power(torch.from_numpy(padded)[None]))[0].reshape(frames, -1).numpy()
            features.append(np.pad(mels, ((0, 0), (0, WIDTH - mels.shape[1]))).astype(np.float16))
        return features


@pytest.fixture
def plain_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers get `ToneFeatures` instead of a Whisper."""
    monkeypatch.setattr(teacher, "WhisperFeatures", ToneFeatures)
