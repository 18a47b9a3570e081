"""How a voice reaches the model: its level, its distance from the noise around it, clipping, and what would help.

Clipping is looked for in the samples as they come. Level and noise are those of the voice activity detector's windows
(32 ms), so samples in chunks of any size give the same result as all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slm.voice_activity import PROMPT_PAUSES

FULL = 0.99
"""Samples as large as this count as clipped."""
TAIL = 2
"""Windows next to speech that belong neither to it nor to the silence: its onset, and its echo in the room."""
LEAST_SILENCE = 6
"""Windows of silence without which nothing is said about the noise."""
MOST_SNR = 60.0
"""dB: silence without any sound counts as this."""
FAINT = 1e-10
"""The least power that is told from none: -100 dB."""

QUIET = -54.0
"""dB below which a voice is too quiet. These three are where about every sixth unit of a good recording changes."""
NOISY = 16.0
"""dB between voice and noise below which it is noisy."""
CLIPPED = 0.04
"""Share of clipped samples from which on a voice is too loud for its microphone."""

ADVICE = {
    "clipped": "the voice is clipped, speak less loudly, or further from the microphone",
    "quiet": "the voice is very quiet, speak closer to the microphone, or turn its level up",
    "noisy": "there is much noise behind the voice, go where it is quieter, or speak closer to the microphone",
    "unfamiliar": "take a voice and a story like those that the bundle was trained on",
}
"""What would help, by the name that `Voice.advice` gives it."""


@dataclass(frozen=True)
class Voice:
    """A voice as it was recorded. level: of its speech, dB below full scale (root mean square, negative); snr: dB between
    speech and the silence around it, MOST_SNR at most, None where there is too little silence to tell; clipped: share of
    all samples."""

    level: float
    snr: float | None
    clipped: float

    def advice(self, in_domain: bool) -> str:
        """A name of ADVICE: what would help most, "" where nothing is wrong. in_domain: whether it was understood."""
        if self.clipped >= CLIPPED:
            return "clipped"
        if self.level < QUIET:
            return "quiet"
        if self.snr is not None and self.snr < NOISY:
            return "noisy"
        return "" if in_domain else "unfamiliar"


class VoiceMeter:
    """Push every sample, and the detector's windows as they come; then `finish`."""

    def __init__(self) -> None:
        self._samples, self._full = 0, 0
        self._windows: list[np.ndarray] = []

    def push(self, samples: np.ndarray) -> None:
        """float32 [n] of the recording, as it came from the microphone."""
        self._samples += len(samples)
        self._full += int(np.count_nonzero(np.abs(samples) >= FULL))

    def push_windows(self, windows: np.ndarray) -> None:
        """float32 [k, 2]: probability of speech and mean square of every further window."""
        self._windows.append(windows)

    def finish(self) -> Voice | None:
        """The voice; None where no window has speech in it."""
        windows = np.concatenate([np.zeros((0, 2)), *self._windows])
        speech = windows[:, 0] >= PROMPT_PAUSES.speech
        if not speech.any():
            return None
        near = np.convolve(windows[:, 0] >= PROMPT_PAUSES.silence, np.ones(2 * TAIL + 1), "same") > 0
        silence = windows[~near, 1]
        power = max(FAINT, float(windows[speech, 1].mean()))
        snr = None
        if len(silence) >= LEAST_SILENCE:
            noise = max(FAINT, float(np.median(silence)))
            snr = round(min(MOST_SNR, _decibels(max(FAINT, power - noise) / noise)), 1)
        return Voice(round(_decibels(power), 1), snr, round(self._full / self._samples, 4))


def _decibels(power: float) -> float:
    return float(10 * np.log10(power))
