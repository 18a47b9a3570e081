"""Hands-free talking: when somebody begins to speak, and when they have finished.

Decisions are made for windows of 32 ms, never for what a network delivers together: however the sound is cut into chunks,
the same turns come out, sample for sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slm.voice_activity import RATE, TURN_PAUSES, WINDOW, Change, PauseSegmenter, SpeechProbability

BEFORE = round(0.4 * RATE)
"""Samples kept from before the window in which the beginning was noticed."""


@dataclass(frozen=True)
class Part:
    """A stretch of a turn: float32 [n] at 16 kHz; whether the turn begins with it, and whether it ends with it."""

    samples: np.ndarray
    began: bool
    ended: bool


class TurnTaking:
    """Push chunks of 16 kHz samples; `speaking`: somebody has the turn."""

    def __init__(self) -> None:
        self._probability = SpeechProbability()
        self._segmenter = PauseSegmenter(TURN_PAUSES)
        self._before = np.zeros(0, np.float32)
        """The latest windows of which no turn has anything yet, `BEFORE` samples at most."""
        self._rest = np.zeros(0, np.float32)
        """The beginning of the next window."""

    @property
    def speaking(self) -> bool:
        """Whether a turn is under way."""
        return self._segmenter.speaking

    def push(self, samples: np.ndarray) -> list[Part]:
        """float32 [n] -> what of it, and of what came before, belongs to turns. A chunk may end turns and begin others."""
        probabilities = self._probability.push(samples)
        whole = np.concatenate([self._rest, samples])
        self._rest = whole[len(probabilities) * WINDOW :]
        parts: list[Part] = []
        windows: list[np.ndarray] = []
        began = False
        for number, probability in enumerate(probabilities.tolist()):
            window = whole[number * WINDOW : (number + 1) * WINDOW]
            change = self._segmenter.push(probability)
            if change is Change.BEGAN:
                began, windows, self._before = True, [self._before], self._before[:0]
            if change is Change.ENDED:
                parts.append(Part(np.concatenate([*windows, window]), began, True))
                began, windows = False, []
            elif self.speaking:
                windows.append(window)
            else:
                self._before = np.concatenate([self._before, window])[-BEFORE:]
        if windows:
            parts.append(Part(np.concatenate(windows), began, False))
        return parts
