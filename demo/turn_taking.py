"""Hands-free talking: when somebody begins to speak, and when they have finished. Silero's voice activity detector, which
comes with faster-whisper, a window of 32 ms at a time with its state kept: chunks of any size give the same decisions.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from slm.voice_activity import RATE, WINDOW, SpeechProbability

SPEECH, SILENCE = 0.5, 0.35
"""Probability above which a window is speech, and below which it is none."""
BEGIN = 3
"""Windows of speech in a row that make a beginning: 96 ms."""
PAUSE = 0.7
"""s of silence that end a turn."""
BEFORE = 0.4
"""s kept from before the beginning was noticed."""


class TurnTaking:
    """Push chunks of 16 kHz samples; `began` and `ended` say what the latest one changed, `speaking` how things stand."""

    def __init__(self) -> None:
        self._probability = SpeechProbability()
        self._recent: deque[np.ndarray] = deque()
        self._run = 0
        self._silence = 0
        self.speaking = False

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, bool, bool]:
        """float32 [n] -> (samples that belong to the turn, whether it began, whether it ended)."""
        began = ended = False
        for probability in self._probability.push(samples):
            if not self.speaking:
                self._run = self._run + 1 if probability >= SPEECH else 0
                if self._run >= BEGIN:
                    self.speaking = began = True
                    self._silence = 0
            elif not ended:
                self._silence = self._silence + 1 if probability < SILENCE else 0
                if self._silence * WINDOW >= PAUSE * RATE:
                    ended = True
        if not self.speaking:
            self._recent.append(samples)
            while sum(map(len, self._recent)) - len(self._recent[0]) > BEFORE * RATE:
                self._recent.popleft()
            return np.zeros(0, np.float32), False, False
        part = np.concatenate([*self._recent, samples]) if began else samples
        if began:
            self._recent.clear()
        if ended:
            self.speaking, self._run = False, 0
        return part, began, ended
