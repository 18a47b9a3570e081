"""What a session's microphone sends: one prompt (push to talk), or turn after turn (hands-free)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from demo.anticipation import ReadPrompt
from demo.conversation import SpokenPrompt
from demo.transcripts import LiveTranscript, Transcripts, Words
from demo.waiting_line import Left
from slm.audio import ResampleStream
from slm.errors import TresseError
from slm.turn_ends import Rule
from slm.turn_taking import TurnTaking
from slm.voice_activity import RATE, Change

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.continuation import Prompt, Sentence
    from slm.prompt_stream import PromptStream


class Listener(Protocol):
    """Where prompts go: `demo.sessions.Session`."""

    def tell(self, kind: str, audio: bytes = b"", **values: object) -> None:
        """A message to the page."""
        ...

    def interrupt(self) -> None:
        """Somebody speaks: the reply under way ends."""
        ...

    def anticipate(self, read: ReadPrompt) -> Prompt | None:
        """Somebody pauses: the prompt so far, None where it cannot be used. A reply may be computed, and not spoken."""
        ...

    def withdraw(self) -> None:
        """Somebody goes on after a pause: the reply to what came before it is not wanted."""
        ...

    def answer(self, read: ReadPrompt, transcript: LiveTranscript | None = None) -> None:
        """Reply to a prompt: the one that was anticipated, where it is the same."""
        ...


class Microphone:
    """One opened microphone of `rate` Hz; live transcripts come from `transcripts`. Hands-free a prompt ends with the pause
    after its last word, however long it takes until the turn is judged to be over."""

    def __init__(
        self, listener: Listener, bundle: Bundle, transcripts: Transcripts, rate: int, hands_free: bool
    ) -> None:
        self.listener, self.bundle, self.transcripts, self.rate = listener, bundle, transcripts, rate
        self._turns = TurnTaking() if hands_free else None
        self._read: ReadPrompt | None = None
        """The prompt up to the pause under way."""
        self._silence: list[np.ndarray] = []
        """What came since then: of the prompt, where the speaker goes on."""
        self._resample = ResampleStream(rate, RATE)
        self._prompt: PromptStream | None = None
        self._transcript: LiveTranscript | None = None
        if not hands_free:
            self._begin(rate)

    def push(self, samples: np.ndarray, rule: Rule | None = None) -> None:
        """float32 [n] more. rule: what ends a turn from now on, hands-free. Raises TresseError where somebody who holds the
        button speaks too long."""
        if self._turns is None:
            self._take(samples)
            return
        self._turns.rule = rule or self._turns.rule
        for part in self._turns.push(self._resample.push(samples)):
            if self._read is None:
                self._take_turn(part.samples)
            else:
                self._silence.append(part.samples)
            if part.change is Change.BEGAN:  # the page falls silent and says how much of the reply was heard
                self.listener.interrupt()
                self.listener.tell("speech")
                self._begin(RATE)
            elif part.change is Change.PAUSED:
                self._turns.ending = self._anticipate()
            elif part.change is Change.RESUMED:
                self._read = None
                self.listener.withdraw()
                self._take_turn(np.concatenate([np.zeros(0, np.float32), *self._silence]))
                self._silence = []
            elif part.change is Change.ENDED:
                self._end(self._turns.silence)

    def _anticipate(self) -> float | None:
        """Log-odds that what was said so far ends a sentence; None where that is not known."""
        if self._prompt is None:
            return None
        stream = self._prompt.fork()

        def read(before: tuple[Sentence, ...]) -> SpokenPrompt:
            """A prompt that cannot be used is no problem: a cough, a door."""
            try:
                return stream.waveform, stream.sample_rate, stream.fork().finish(before)
            except TresseError:
                raise Left from None

        self._read = read
        prompt = self.listener.anticipate(read)
        return None if prompt is None else self.bundle.ending(prompt)

    def _end(self, silence: float) -> None:
        """silence: s since the last word."""
        read, self._read, self._prompt, self._silence = self._read, None, None, []
        if read is not None:
            self.listener.tell("pause", silence=round(silence, 3))
            self.listener.answer(read, self._transcript)

    def _take_turn(self, samples: np.ndarray) -> None:
        """A turn that is too long is lost; the next one is not."""
        try:
            self._take(samples)
        except TresseError as error:
            self.listener.tell("problem", text=str(error))

    def finish(self) -> None:
        """The microphone is closed."""
        if self._turns is None:
            self._answer()

    def _begin(self, rate: int) -> None:
        self._prompt = self.bundle.prompt_stream(rate)
        self._transcript = self.transcripts.listen(rate, self._report)
        self.listener.tell("listening", ids=[])

    def _report(self, words: Words) -> None:
        self.listener.tell("transcript", turn=None, part="prompt", text=words.text, complete=words.complete)

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

    def _answer(self) -> None:
        stream, self._prompt = self._prompt, None
        if stream is not None:
            self.listener.answer(
                lambda before: (stream.waveform, stream.sample_rate, stream.finish(before)), self._transcript
            )
