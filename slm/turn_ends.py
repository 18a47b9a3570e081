"""Whether somebody who pauses has finished: how much silence it takes to believe it.

In a pause two things speak for an end or against it: how the voice fell (`slm.prosody`), and how likely the language model
holds an end of the sentence after the units so far. Together they give the log-odds of an end. Silence adds to these: pauses
within a turn are the rarer the longer they get, by a factor of e for each `usual` s of the speaker's own pauses. The turn is
over when the odds reach what a `Patience` asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from slm.prosody import Fall

PAUSE = 0.19
"""s of silence that are a pause: from here on a turn may be over."""
PatienceName = Literal["quick", "normal", "patient"]


@dataclass(frozen=True)
class Pause:
    """What is known in a pause. fall: of the voice before it; ending: log-odds, under the language model, that a sentence
    ends here; None where it cannot tell."""

    fall: Fall
    ending: float | None = None


class OwnPauses:
    """How long a speaker's pauses within turns are. usual: s by which they are longer than `PAUSE`, on average; before any
    was heard `expected`, which counts like `weight` pauses."""

    def __init__(self, expected: float = 0.2, weight: float = 4.0) -> None:
        self._sum, self._count = expected * weight, weight

    @property
    def usual(self) -> float:
        """See the class."""
        return self._sum / self._count

    def add(self, seconds: float) -> None:
        """A pause of so many s after which the speaker went on."""
        self._sum, self._count = self._sum + max(0.0, seconds - PAUSE), self._count + 1


class Rule(Protocol):
    """Says how long a silence ends a turn."""

    def silence(self, pause: Pause, own: OwnPauses) -> float:
        """s of silence, from the last word on, after which the turn is over; more than PAUSE."""
        ...


@dataclass(frozen=True)
class PlainSilence:
    """The same silence for everybody."""

    seconds: float = 0.7

    def silence(self, pause: Pause, own: OwnPauses) -> float:
        """See `Rule`."""
        return self.seconds


@dataclass(frozen=True)
class Weights:
    """What each sign adds to the log-odds of an end: a bias; for a semitone, a dB, a s of the last voiced stretch; and what
    the language model says, where it can tell: a bias and a share of its log-odds."""

    bias: float = 0.0
    pitch: float = 0.0
    energy: float = 0.0
    voiced: float = 0.0
    told: float = 0.0
    ending: float = 0.0

    def log_odds(self, pause: Pause) -> float:
        """That the turn is over, before any silence beyond PAUSE."""
        return sum(getattr(self, name) * value for name, value in signs(pause).items())


LEAST_ENDING, MOST_ENDING = -6.0, 3.0
"""Log-odds beyond which the language model is not believed more."""


def signs(pause: Pause) -> dict[str, float]:
    """What `Weights` weigh, by its names."""
    told = pause.ending is not None
    ending = max(LEAST_ENDING, min(MOST_ENDING, pause.ending or 0.0))
    return {
        "bias": 1.0,
        "pitch": max(-12.0, min(12.0, pause.fall.pitch)),
        "energy": max(-40.0, min(10.0, pause.fall.energy)),
        "voiced": min(0.6, pause.fall.voiced),
        "told": float(told),
        "ending": ending,
    }


@dataclass(frozen=True)
class Patience:
    """How sure a turn's end must be: log-odds; and between which silences it is decided, in s."""

    sure: float
    shortest: float
    longest: float


FITTED = Weights(bias=-0.7541, pitch=-0.0562, energy=-0.0348, voiced=1.3514, told=0.0464, ending=0.1528)
"""By `tresse bench turns --fit`."""
PATIENCES: dict[PatienceName, Patience] = {
    "quick": Patience(0.75, 0.224, 0.7),
    "normal": Patience(2.5, 0.6, 1.2),
    "patient": Patience(5.2, 0.5, 1.6),
}
"""On the recordings that the weights were fitted to, quick decides after 0.4 s in the median, normal cuts off about as many
turns as 0.7 s of silence would, and patient about one in twenty."""
assert tuple(PATIENCES) == get_args(PatienceName)
PATIENCE: PatienceName = "patient"
"""The default: two sentences stay one prompt."""


@dataclass(frozen=True)
class TurnEnds:
    """The judgement. See the module."""

    patience: Patience = PATIENCES[PATIENCE]
    weights: Weights = FITTED

    def silence(self, pause: Pause, own: OwnPauses) -> float:
        """See `Rule`."""
        missing = self.patience.sure - self.weights.log_odds(pause)
        wanted = PAUSE + own.usual * missing
        return max(self.patience.shortest, min(self.patience.longest, wanted))


def rule_of(patience: PatienceName) -> TurnEnds:
    """The judgement that is as patient as this name says."""
    return TurnEnds(PATIENCES[patience])
