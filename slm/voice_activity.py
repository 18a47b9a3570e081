"""Where speech is: Silero's voice activity detector, which comes with faster-whisper and runs offline.

It looks at a window of 32 ms at a time and keeps its state, so chunks of any size give the same decisions. Prompts are cut
into sentences at pauses, because the language model was trained with a tag before every sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.audio import ResampleStream

RATE = 16000
"""Hz."""
WINDOW = 512
"""Samples in one decision."""
CONTEXT = 64
"""Samples before a window that the detector sees as well."""
SPEECH, SILENCE = 0.4, 0.25
"""Probability from which on a window is speech, and below which it is none."""
PAUSE = 0.35
"""s of silence that part two stretches of speech."""
LEAST = 0.12
"""s of speech that are taken for speech, at least."""
PAD = 0.06
"""s that a stretch is longer at either end than what was found."""


class SpeechProbability:
    """Chunks of 16 kHz samples -> the probability of speech in every window that is complete."""

    def __init__(self) -> None:
        self._state = [np.zeros((1, 1, 128), np.float32) for _ in range(2)]
        self._before = np.zeros(CONTEXT, np.float32)
        self._held = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> float32 [k]."""
        from faster_whisper.vad import get_vad_model

        self._held = np.concatenate([self._held, samples])
        count = len(self._held) // WINDOW
        if not count:
            return np.zeros(0, np.float32)
        windows = self._held[: count * WINDOW].reshape(count, WINDOW)
        self._held = self._held[count * WINDOW :]
        before = np.concatenate([self._before[None], windows[:-1, -CONTEXT:]])
        self._before = windows[-1, -CONTEXT:]
        inputs = {"input": np.concatenate([before, windows], 1), "h": self._state[0], "c": self._state[1]}
        out, *self._state = get_vad_model().session.run(None, inputs)
        return np.asarray(out).reshape(-1)

    def flush(self) -> np.ndarray:
        """The last window, filled up with silence: float32 [0 or 1]."""
        return self.push(np.zeros(-len(self._held) % WINDOW, np.float32))


class SpeechStream:
    """Push float32 [n] at `sample_rate` Hz as they come, then `finish`."""

    def __init__(self, sample_rate: int) -> None:
        self._resample = ResampleStream(sample_rate, RATE)
        self._probability = SpeechProbability()
        self._found: list[np.ndarray] = []
        self._samples = 0

    def push(self, samples: np.ndarray) -> None:
        """More of the recording."""
        self._add(self._resample.push(samples))

    def finish(self) -> list[tuple[float, float]]:
        """(start, end) of every stretch of speech in s; stretches are parted by `PAUSE` s or more."""
        self._add(self._resample.flush())
        self._found.append(self._probability.flush())
        return stretches(np.concatenate(self._found).tolist(), self._samples)

    def _add(self, samples: np.ndarray) -> None:
        self._samples += len(samples)
        self._found.append(self._probability.push(samples))


def speech_segments(waveform: np.ndarray, sample_rate: int) -> list[tuple[float, float]]:
    """All of a `SpeechStream` at once: float32 [samples] -> (start, end) in s."""
    stream = SpeechStream(sample_rate)
    stream.push(waveform)
    return stream.finish()


def stretches(probabilities: Sequence[float], samples: int) -> list[tuple[float, float]]:
    """The windows of a recording of so many samples -> (start, end) of its stretches of speech in s.

    The rule is Silero's (faster_whisper.vad.get_speech_timestamps), which wants the whole recording.
    """
    found: list[tuple[int, int]] = []
    start = quiet = None
    for number, probability in enumerate(probabilities):
        place = number * WINDOW
        if probability >= SPEECH:
            start, quiet = place if start is None else start, None
        elif start is not None and probability < SILENCE:
            quiet = place if quiet is None else quiet
            if place - quiet >= PAUSE * RATE:
                found.append((start, quiet))
                start = quiet = None
    if start is not None:
        found.append((start, samples))
    pad = int(PAD * RATE)
    return [
        (max(0, start - pad) / RATE, min(samples, end + pad) / RATE)
        for start, end in found
        if end - start > LEAST * RATE
    ]
