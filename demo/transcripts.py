"""Live transcripts, where there is a recogniser: made beside the reply, one piece after another, and never waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from demo.conversation import Conversation, Reply, Turn, one_line_of
from slm.audio import resample
from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.transcribe import Recogniser, Segment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """All that was understood until now. segments: in order, their times in s since the speech began; language: where the
    recogniser knows more languages than the bundle, that may be one that the bundle does not speak; complete: nothing
    follows."""

    segments: tuple[Segment, ...]
    language: str | None
    complete: bool

    @property
    def text(self) -> str:
        """All of it on one line."""
        return one_line_of(self.segments)


Report = Callable[[Words], None]
"""Called as often as more is understood, and once when nothing follows."""
SURE = 0.8
"""Probability from which a foreign language is believed."""
LANGUAGE_SECONDS = 10.0
"""s of speech that decide the language."""
COMPLETE_SECONDS = 60.0
"""s that a story is waited for until it is written down."""


class Transcripts:
    """One recogniser for everybody, and one thread that it works in; without a recogniser there are no transcripts."""

    def __init__(self, transcriber: Recogniser | None = None) -> None:
        self._transcriber = transcriber
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transcripts") if transcriber else None

    @classmethod
    def open(cls, bundle: Bundle, asr: str | Path | None = None) -> Transcripts:
        """The bundle's recogniser, or another that `asr` names; none where there is none.

        Raises TresseError where the one that was named cannot be loaded.
        """
        from slm.recognisers import has_recogniser, open_recogniser

        if asr is None and not has_recogniser(bundle.path):
            return cls()
        return cls(open_recogniser(bundle.path, bundle.languages, asr, encoder=bundle.units, threads=1))

    def stop(self) -> None:
        """Drop what is not written down yet."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def __bool__(self) -> bool:
        return self._transcriber is not None

    def listen(self, sample_rate: int, report: Report, language: str | None = None) -> LiveTranscript | None:
        """Push speech into what is returned; `report` gets what was understood. None where there is no recogniser."""
        if self._transcriber is None or self._thread is None:
            return None
        return LiveTranscript(self._transcriber, self._thread, sample_rate, report, language)

    def write_down(self, waveform: np.ndarray, sample_rate: int, report: Report, language: str | None = None) -> None:
        """The same for speech that is complete: float32 [samples]."""
        if transcript := self.listen(sample_rate, report, language):
            transcript.push(waveform)
            transcript.finish()

    def complete(self, conversation: Conversation) -> None:
        """Write down all prompts and replies of a story that are not yet, where there is a recogniser; wait for it.

        Raises TresseError where that takes longer than COMPLETE_SECONDS.
        """
        done = threading.Semaphore(0)
        asked = 0
        for turn in conversation.turns:
            sounds: list[tuple[Turn | Reply, np.ndarray, int]] = [(turn, turn.waveform, turn.rate)]
            sounds += [(reply, reply.waveform, reply.sample_rate) for reply in turn.replies]
            for part, waveform, rate in sounds:

                def report(words: Words, part: Turn | Reply = part) -> None:
                    part.written = words.segments
                    if words.complete:
                        done.release()

                if self and not part.written:
                    self.write_down(waveform, rate, report)
                    asked += 1
        deadline = time.monotonic() + COMPLETE_SECONDS
        for _ in range(asked):
            if not done.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise TresseError("the transcripts are not ready: ask again in a minute")


class LiveTranscript:
    """The transcript of speech that is arriving: one prompt, or one reply."""

    def __init__(
        self,
        transcriber: Recogniser,
        thread: ThreadPoolExecutor,
        sample_rate: int,
        report: Report,
        language: str | None,
    ) -> None:
        self._stream = transcriber.stream(sample_rate, language)
        self._thread, self._report = thread, report
        self._transcriber, self._rate = transcriber, sample_rate
        self._segments: list[Segment] = []
        self._complete = False
        self._language: str | None = language
        self._asked = language is None
        self._beginning: list[np.ndarray] = []

    def redirect(self, report: Report) -> None:
        """Report to `report` from now on, and at once what was understood before."""
        self._report = report
        if self._segments:
            report(self.words)

    @property
    def words(self) -> Words:
        """What was understood until now."""
        return Words(tuple(self._segments), self._language, self._complete)

    def push(self, samples: np.ndarray) -> None:
        """float32 [n] more."""
        self._submit(samples, False)

    def finish(self) -> None:
        """Nothing follows."""
        self._submit(np.zeros(0, np.float32), True)

    def _submit(self, samples: np.ndarray, last: bool) -> None:
        with suppress(RuntimeError):  # the server ends
            self._thread.submit(self._work, samples, last)

    def _work(self, samples: np.ndarray, last: bool) -> None:
        try:
            if self._asked and len(samples) and sum(map(len, self._beginning)) < LANGUAGE_SECONDS * self._rate:
                self._beginning.append(samples)
            segments = self._stream.push(samples) if len(samples) else []
            segments += self._stream.finish() if last else []
            for segment in segments:
                self._segments.append(segment)
                self._language = segment.language
            if last and self._asked:
                self._language = self._foreign() or self._language
            if segments and not last:
                self._report(self.words)
        except Exception:  # a transcript is an extra: the conversation goes on without it
            log.exception("a transcript failed")
        if last:
            self._complete = True
            self._report(self.words)

    def _foreign(self) -> str | None:
        """The language of the speech, where the recogniser is sure that it is none of the bundle's."""
        if not self._beginning:
            return None
        audio = resample(np.concatenate(self._beginning), self._rate, 16000)
        language, probability = self._transcriber.foreign(audio) or (None, 0.0)
        return language if language not in self._transcriber.languages and probability >= SURE else None
