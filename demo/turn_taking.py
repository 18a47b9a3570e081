"""Hands-free talking: when somebody begins to speak, and when they have finished."""

from __future__ import annotations

from collections import deque

import numpy as np

from slm.voice_activity import RATE, TURN_PAUSES, Change, PauseSegmenter, SpeechProbability

BEFORE = 0.4
"""s kept from before the beginning was noticed."""


class TurnTaking:
    """Push chunks of 16 kHz samples; `speaking`: somebody has the turn."""

    def __init__(self) -> None:
        self._probability = SpeechProbability()
        self._segmenter = PauseSegmenter(TURN_PAUSES)
        self._recent: deque[np.ndarray] = deque()

    @property
    def speaking(self) -> bool:
        """Whether a turn is under way."""
        return self._segmenter.speaking

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, bool, bool]:
        """float32 [n] -> (samples that belong to the turn, whether it began, whether it ended)."""
        began = ended = False
        for probability in self._probability.push(samples):
            change = self._segmenter.push(float(probability))
            began = began or change is Change.BEGAN
            if change is Change.ENDED:
                ended = True
                break  # a further turn begins with the next chunk at the earliest
        if not self.speaking and not ended:
            self._recent.append(samples)
            while sum(map(len, self._recent)) - len(self._recent[0]) > BEFORE * RATE:
                self._recent.popleft()
            return np.zeros(0, np.float32), False, False
        part = np.concatenate([*self._recent, samples]) if began else samples
        if began:
            self._recent.clear()
        return part, began, ended
