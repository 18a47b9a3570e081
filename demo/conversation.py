"""A story in turns: what somebody said, what the model went on with, and what both of them look back on.

Plain data and one iterator that speaks a reply; knows nothing of pages, programs or files.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from slm.errors import TresseError
from slm.settings import MAX_SECONDS, TEMPERATURE, TOP_P, ReplySettings

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.continuation import Prompt, Sentence
    from slm.speaking import Chunk
    from slm.transcribe import Segment

MAX_SEED = 2**31 - 1
SAME, BOTH, BRAIDED = "same", "both", "braided"
"""Targets beside the languages: the prompt's language, one reply in each, languages alternating sentence by sentence."""
MAX_TURNS = 200

SpokenPrompt = tuple[np.ndarray, int, "Prompt"]
"""What somebody said: float32 [samples], their rate in Hz, and the prompt it makes."""


@dataclass(frozen=True)
class Settings:
    """How to go on, as people choose it; `replies` gives the settings of each reply. target: a language, SAME, BOTH or
    BRAIDED. seed None: a new one for every reply. The other fields are those of `ReplySettings`."""

    target: str = SAME
    seed: int | None = None
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    max_seconds: float = MAX_SECONDS
    speaker: str | None = None

    def check(self, bundle: Bundle) -> Settings:
        """The same settings. Raises TresseError for what the bundle does not know, or is out of range."""
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise TresseError(f"the seed must lie between 0 and {MAX_SEED}, not {self.seed}")
        for reply in self.replies(bundle.languages, bundle.languages[0]):
            reply.check(bundle.languages, bundle.speakers, tags=bundle.tags)
        return self

    def replies(self, languages: list[str], spoken: str) -> list[ReplySettings]:
        """The replies to make, in a bundle of these languages, to a prompt in the language `spoken`; where that is not
        known, it is taken for the first."""
        spoken = spoken if spoken in languages else languages[0]
        if self.target == BOTH:
            return [self.reply((language,)) for language in languages]
        if self.target == BRAIDED:  # the first sentence is in another language than the prompt
            first = (languages.index(spoken) + 1) % len(languages)
            return [self.reply((*languages[first:], *languages[:first]))]
        return [self.reply((spoken if self.target == SAME else self.target,))]

    def reply(self, languages: tuple[str, ...], seed: int | None = None) -> ReplySettings:
        """The settings of one reply in these languages; seed: instead of the settings' own."""
        chosen = self.seed if seed is None else seed
        return ReplySettings(
            languages,
            new_seed() if chosen is None else chosen,
            self.temperature,
            self.top_p,
            self.max_seconds,
            self.speaker,
        )


def new_seed() -> int:
    """A seed nobody chose; short enough to be read out."""
    return secrets.randbelow(1_000_000)


def one_line_of(written: tuple[Segment, ...]) -> str:
    """The words of segments, on one line."""
    return " ".join(segment.text for segment in written if segment.text)


@dataclass
class Reply:
    """A reply and its figures. waveform float32 [samples] at sample_rate Hz; sentences: what of it belongs to the story;
    first_audio, wall: s since the prompt ended (hands-free: since the turn was judged to be over), and s of work; stopped:
    somebody did not want to hear the rest; written: what a recogniser understood."""

    languages: tuple[str, ...]
    seed: int
    waveform: np.ndarray
    sample_rate: int
    chunks: list[Chunk]
    first_audio: float
    wall: float
    stopped: bool = False
    written: tuple[Segment, ...] = ()

    @property
    def transcript(self) -> str:
        """What a recogniser understood, on one line."""
        return one_line_of(self.written)

    @property
    def seconds(self) -> float:
        """Length in s."""
        return len(self.waveform) / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """s of work per s of speech."""
        return self.wall / max(1e-9, sum(len(chunk.audio) for chunk in self.chunks) / self.sample_rate)

    @property
    def tokens(self) -> int:
        """Tokens that were generated."""
        return self.chunks[-1].tokens if self.chunks else 0

    @property
    def sentences(self) -> list[Sentence]:
        """Its sentences as units."""
        from slm.speaking import sentences_of

        return sentences_of(self.heard_chunks())

    def heard_chunks(self) -> list[Chunk]:
        """The chunks, the last one cut, that the waveform lasts."""
        kept: list[Chunk] = []
        samples = 0
        for chunk in self.chunks:
            room = len(self.waveform) - samples
            if room <= 0:
                break
            if len(chunk.audio) > room:
                share = round(len(chunk.units) * room / len(chunk.audio))
                owners = chunk.sentence[:share]
                begun = int(max(owners, default=-1)) + 1
                names = chunk.languages[: max(begun, len(kept[-1].languages) if kept else 0)]
                chunk = replace(chunk, units=chunk.units[:share], sentence=owners, languages=names)
            kept.append(chunk)
            samples += len(chunk.audio)
        return kept

    def cut(self, seconds: float) -> None:
        """Forget what comes after so many s."""
        samples = max(0, round(seconds * self.sample_rate))
        if samples < len(self.waveform):
            self.waveform, self.stopped = self.waveform[:samples], True


@dataclass
class Turn:
    """What was said (float32 [samples] at `rate` Hz, and as units), the settings, the replies to it, and what a
    recogniser understood."""

    waveform: np.ndarray
    rate: int
    prompt: Prompt
    settings: Settings
    replies: list[Reply] = field(default_factory=list)
    chosen: int = 0
    written: tuple[Segment, ...] = ()

    @property
    def transcript(self) -> str:
        """What a recogniser understood, on one line."""
        return one_line_of(self.written)

    @property
    def added(self) -> list[Sentence]:
        """The sentences this turn adds to the story."""
        own = list(self.prompt.added)
        return own + (self.replies[self.chosen].sentences if self.chosen < len(self.replies) else [])


class Conversation:
    """The turns of one story, in order."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    @property
    def story(self) -> tuple[Sentence, ...]:
        """All sentences until now that the model goes on from."""
        return tuple(sentence for turn in self.turns for sentence in turn.added)

    def add(self, turn: Turn) -> int:
        """A further turn; its number, from 0. Raises TresseError where the story is too long."""
        if len(self.turns) >= MAX_TURNS:
            raise TresseError(f"this story has {MAX_TURNS} turns already: begin a new one")
        self.turns.append(turn)
        return len(self.turns) - 1

    def undo(self) -> None:
        """Take the last turn back."""
        del self.turns[-1:]

    def choose(self, turn: int, part: int) -> None:
        """Go on from another reply of the last turn. Raises TresseError for a reply that is not there."""
        if turn != len(self.turns) - 1 or not 0 <= part < len(self.turns[turn].replies):
            raise TresseError("the story has moved on: only a reply of the last turn can be chosen")
        self.turns[turn].chosen = part


class Speaking:
    """Iterate for the chunks of a reply; `reply` (None where no sound was made) is there afterwards.

    Closing the iterator, or setting `stop`, ends the generation. started: time.perf_counter() when the prompt ended.
    """

    def __init__(
        self,
        bundle: Bundle,
        prompt: Prompt,
        settings: ReplySettings,
        stop: threading.Event,
        started: float | None = None,
    ) -> None:
        self.bundle, self.prompt, self.settings, self.stop = bundle, prompt, settings, stop
        self.started = time.perf_counter() if started is None else started
        self.reply: Reply | None = None

    def __iter__(self) -> Iterator[Chunk]:
        began = time.perf_counter()
        chunks: list[Chunk] = []
        first_audio = 0.0
        stream = self.bundle.reply(self.prompt, self.settings)
        with contextlib.closing(cast(Generator, stream)):
            for chunk in stream:
                if self.stop.is_set():
                    break
                if not chunks:
                    first_audio = time.perf_counter() - self.started
                chunks.append(chunk)
                yield chunk
        if chunks:
            self.reply = Reply(
                self.settings.languages,
                self.settings.seed,
                np.concatenate([chunk.audio for chunk in chunks]),
                self.bundle.sample_rate,
                chunks,
                first_audio,
                time.perf_counter() - began,
                self.stop.is_set(),
            )
