"""What a session's microphone sends: one prompt (push to talk), or turn after turn (hands-free)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from demo.conversation import SpokenPrompt
from demo.transcripts import LiveTranscript, Transcripts
from demo.turn_taking import TurnTaking
from demo.waiting_line import Left
from slm.audio import ResampleStream
from slm.errors import TresseError
from slm.voice_activity import RATE

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.continuation import Sentence
    from slm.prompt_stream import PromptStream

ReadPrompt = Callable[[tuple["Sentence", ...]], SpokenPrompt]
"""Called with the story so far, in the thread that replies."""


class Listener(Protocol):
    """Where prompts go: `demo.sessions.Session`."""

    def tell(self, kind: str, audio: bytes = b"", **values: object) -> None:
        """A message to the page."""
        ...

    def interrupt(self) -> None:
        """Somebody speaks: the reply under way ends."""
        ...

    def answer(self, read: ReadPrompt, transcript: LiveTranscript | None = None) -> None:
        """Reply to a prompt."""
        ...


class Microphone:
    """One opened microphone of `rate` Hz; live transcripts come from `transcripts`."""

    def __init__(
        self, listener: Listener, bundle: Bundle, transcripts: Transcripts, rate: int, hands_free: bool
    ) -> None:
        self.listener, self.bundle, self.transcripts, self.rate = listener, bundle, transcripts, rate
        self._turns = TurnTaking() if hands_free else None
        self._resample = ResampleStream(rate, RATE)
        self._prompt: PromptStream | None = None
        self._transcript: LiveTranscript | None = None
        if not hands_free:
            self._begin(rate)

    def push(self, samples: np.ndarray) -> None:
        """float32 [n] more. Raises TresseError where somebody who holds the button speaks too long."""
        if self._turns is None:
            self._take(samples)
            return
        for part in self._turns.push(self._resample.push(samples)):
            if part.began:  # the page falls silent and says how much of the reply was heard
                self.listener.interrupt()
                self.listener.tell("speech")
                self._begin(RATE)
            self._take_turn(part.samples)
            if part.ended and self._prompt is not None:
                self.listener.tell("pause")
                self._answer(quiet=True)

    def _take_turn(self, samples: np.ndarray) -> None:
        """A turn that is too long is lost; the next one is not."""
        try:
            self._take(samples)
        except TresseError as error:
            self.listener.tell("problem", text=str(error))

    def finish(self) -> None:
        """The microphone is closed."""
        if self._turns is None:
            self._answer(quiet=False)

    def _begin(self, rate: int) -> None:
        self._prompt = self.bundle.prompt_stream(rate)
        self._transcript = self.transcripts.listen(rate, self._report)
        self.listener.tell("listening", ids=[])

    def _report(self, text: str, language: str | None) -> None:
        self.listener.tell("transcript", turn=None, part="prompt", text=text)

    def _take(self, samples: np.ndarray) -> None:
        if self._prompt is None or not len(samples):
            return
        try:
            frames = self._prompt.push(samples)
        except TresseError:
            self._prompt = None
            raise
        if self._transcript:
            self._transcript.push(samples)
        if len(frames):
            self.listener.tell("listening", ids=frames.tolist())

    def _answer(self, quiet: bool) -> None:
        """quiet: a prompt that cannot be used is no problem: a cough, a door."""
        stream, self._prompt = self._prompt, None
        if stream is None:
            return

        def read(before: tuple[Sentence, ...]) -> SpokenPrompt:
            try:
                return stream.waveform, stream.sample_rate, stream.finish(before)
            except TresseError:
                if quiet:
                    raise Left from None
                raise

        self.listener.answer(read, self._transcript)
