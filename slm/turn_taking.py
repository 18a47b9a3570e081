"""Hands-free talking: when somebody begins to speak, pauses, and has finished.

Decisions are made for windows of 32 ms, never for what a network delivers together: however the sound is cut into chunks,
the same turns come out, sample for sample. How long a silence ends a turn is judged anew in each pause (`slm.turn_ends`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from slm.prosody import LOOK, fall
from slm.turn_ends import PAUSE, OwnPauses, Pause, Rule, TurnEnds
from slm.voice_activity import RATE, TURN_PAUSES, WINDOW, Change, PauseSegmenter, SpeechProbability

BEFORE = round(0.4 * RATE)
"""Samples kept from before the window in which the beginning was noticed."""
RECENT = round((LOOK + PAUSE) * RATE) + WINDOW
"""Samples kept for the prosody."""
AT_ONCE = 1.0
"""s of silence up to which speech after a turn's end goes on with that turn: the turn was cut off."""


@dataclass(frozen=True)
class Part:
    """float32 [n] at 16 kHz of a turn, and what happened after them; None: nothing yet. The samples between PAUSED and
    ENDED are silence."""

    samples: np.ndarray
    change: Change | None


class TurnTaking:
    """Push chunks of 16 kHz samples. rule: how long a silence ends a turn; it may be changed at any time.

    ending: set it when a part comes that ends with PAUSED, before the next part is asked for, to the log-odds that the
    speech so far ends a sentence; None where that is not known.
    """

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule: Rule = rule or TurnEnds()
        self.ending: float | None = None
        self.pauses = OwnPauses()
        """Those of who speaks."""
        self._probability = SpeechProbability()
        self._segmenter = PauseSegmenter(TURN_PAUSES)
        self._before = np.zeros(0, np.float32)
        """The latest windows of which no turn has anything yet, `BEFORE` samples at most."""
        self._recent = np.zeros(0, np.float32)
        """The latest windows, `RECENT` samples at most."""
        self._rest = np.zeros(0, np.float32)
        """The beginning of the next window."""
        self._windows: list[np.ndarray] = []
        """Of the turn, not given out yet."""
        self._paused = False
        self._silent: float = math.inf
        """Samples of silence: of the pause, or since the last word of the turn before."""
        self._resumed: tuple[float, int] | None = None
        """Samples of a pause that may be over, and windows of speech after it."""

    @property
    def speaking(self) -> bool:
        """Whether a turn is under way."""
        return self._segmenter.speaking

    @property
    def silence(self) -> float:
        """s since the last word of the turn under way, or of the latest."""
        return self._silent / RATE

    def push(self, samples: np.ndarray) -> Iterator[Part]:
        """float32 [n] -> what of it, and of what came before, belongs to turns; take all. A chunk may end turns and begin
        others."""
        probabilities = self._probability.push(samples)
        whole = np.concatenate([self._rest, samples])
        self._rest = whole[len(probabilities) * WINDOW :]
        for number, probability in enumerate(probabilities.tolist()):
            yield from self._window(whole[number * WINDOW : (number + 1) * WINDOW], probability)
        if self._windows:
            yield self._part(None)

    def _part(self, change: Change | None) -> Part:
        windows, self._windows = self._windows, []
        return Part(np.concatenate([np.zeros(0, np.float32), *windows]), change)

    def _window(self, window: np.ndarray, probability: float) -> Iterator[Part]:
        change = self._segmenter.push(probability)
        self._recent = np.concatenate([self._recent, window])[-RECENT:]
        if change is Change.BEGAN:
            yield self._begin()
        elif change is Change.ENDED:
            self._windows.append(window)
            self._silent += WINDOW
            yield self._end()
            return
        if not self.speaking:
            self._before = np.concatenate([self._before, window])[-BEFORE:]
            self._silent += WINDOW
            return
        quiet = self._segmenter.quiet
        if self._paused and not quiet:
            self._paused, self._resumed = False, (self._silent, 0)
            self._wait(math.inf)
            yield self._part(Change.RESUMED)
        self._windows.append(window)
        self._silent = quiet
        self._learn(probability)
        if quiet >= PAUSE * RATE and not self._paused:
            self._paused, self.ending = True, None
            yield self._part(Change.PAUSED)
            speech = self._recent[: max(0, len(self._recent) - quiet)]
            self._wait(self.rule.silence(Pause(fall(speech), self.ending), self.pauses))

    def _wait(self, seconds: float) -> None:
        """So much silence, with the window that decides, ends the turn."""
        self._segmenter.settings = replace(TURN_PAUSES, pause=seconds - WINDOW / RATE)

    def _begin(self) -> Part:
        onset = (TURN_PAUSES.onset - 1) * WINDOW
        silent = (self._silent - onset) / RATE
        if silent < AT_ONCE:
            self.pauses.add(silent)
        self._windows, self._before = [self._before], self._before[:0]
        return Part(np.zeros(0, np.float32), Change.BEGAN)

    def _end(self) -> Part:
        self._paused, self._resumed = False, None
        self._wait(math.inf)
        return self._part(Change.ENDED)

    def _learn(self, probability: float) -> None:
        """A pause counts once speech has gone on for as long as makes a beginning."""
        if self._resumed is None:
            return
        silent, windows = self._resumed
        if probability < TURN_PAUSES.silence:
            self._resumed = None
        elif windows + 1 < TURN_PAUSES.onset:
            self._resumed = silent, windows + 1
        else:
            self.pauses.add(silent / RATE)
            self._resumed = None
