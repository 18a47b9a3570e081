"""How a reply is drawn and spoken: one object, from the page, the command line and Python down to the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slm.errors import TresseError

TEMPERATURE = 0.7
TOP_P = 0.9
MAX_SECONDS = 12.0
"""s of one continuation."""
MIN_REPLY_SECONDS, MAX_REPLY_SECONDS = 0.5, 60.0
"""s that `max_seconds` may be."""
MAX_TEMPERATURE = 5.0
MAX_CANDIDATES = 64


@dataclass(frozen=True)
class ReplySettings:
    """How to go on. languages: one, or several that take turns sentence by sentence; the same seed gives the same reply;
    temperature 0 is greedy; top_p: share of the probability that is drawn from; max_seconds: s of the reply, at most;
    speaker None: the bundle's first; candidates: sentences that are drawn for each one that is said, None: as many as the
    bundle asks for."""

    languages: tuple[str, ...]
    seed: int = 0
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    max_seconds: float = MAX_SECONDS
    speaker: str | None = None
    candidates: int | None = None

    def check(self, languages: Sequence[str], speakers: Sequence[str], *, tags: bool = True) -> None:
        """Compare with the languages and speakers of a bundle. tags: whether its model has language tags. Raises
        TresseError that names what is allowed."""
        check_languages(self.languages, languages, tags)
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise TresseError(f"temperature must lie between 0 and {MAX_TEMPERATURE:g}, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise TresseError(f"top-p must lie between 0 (excluded) and 1, not {self.top_p}")
        if not MIN_REPLY_SECONDS <= self.max_seconds <= MAX_REPLY_SECONDS:
            raise TresseError(
                f"max-seconds must lie between {MIN_REPLY_SECONDS:g} and {MAX_REPLY_SECONDS:g}, not {self.max_seconds}"
            )
        if self.candidates is not None and not 1 <= self.candidates <= MAX_CANDIDATES:
            raise TresseError(f"candidates must lie between 1 and {MAX_CANDIDATES}, not {self.candidates}")
        if self.speaker is not None and self.speaker not in speakers:
            raise TresseError(f"unknown speaker {self.speaker!r}: choose one of {', '.join(speakers)}")


def check_languages(asked: Sequence[str], known: Sequence[str], tags: bool) -> None:
    """Raise TresseError where these languages cannot be asked for, of those known. Without tags: one, as its voice."""
    if not asked:
        raise TresseError(f"no language is asked for: choose one of {', '.join(known)}")
    for language in asked:
        if language not in known:
            raise TresseError(f"unknown language {language!r}: this bundle speaks {', '.join(known)}")
    if len(asked) > 1 and not tags:
        raise TresseError("this model has no language tags, so languages cannot take turns: ask for one language")
