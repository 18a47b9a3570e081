"""Live transcripts, where there is a recogniser: made beside the reply, one piece after another, and never waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slm.audio import resample

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.transcribe import Transcriber

log = logging.getLogger(__name__)

Report = Callable[[str, "str | None"], None]
"""Called with all the text until now, and the language it is in; where the recogniser knows more languages than the bundle,
that may be one that the bundle does not speak."""
SURE = 0.8
"""Probability from which a foreign language is believed."""
LANGUAGE_SECONDS = 10.0
"""s of speech that decide the language."""


class Transcripts:
    """One recogniser for everybody, and one thread that it works in; without a recogniser there are no transcripts."""

    def __init__(self, transcriber: Transcriber | None = None) -> None:
        self._transcriber = transcriber
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transcripts") if transcriber else None

    @classmethod
    def open(cls, bundle: Bundle, asr: str | Path | None = None) -> Transcripts:
        """The bundle's recogniser, or another that `asr` names; none where there is none.

        Raises TresseError where the one that was named cannot be loaded.
        """
        if asr is None and not (Path(bundle.path) / "asr" / "model.bin").exists():
            return cls()
        from slm.transcribe import Transcriber

        return cls(Transcriber.of_bundle(Path(bundle.path), bundle.languages, asr, threads=1))

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


class LiveTranscript:
    """The transcript of speech that is arriving: one prompt, or one reply."""

    def __init__(
        self,
        transcriber: Transcriber,
        thread: ThreadPoolExecutor,
        sample_rate: int,
        report: Report,
        language: str | None,
    ) -> None:
        self._stream = transcriber.stream(sample_rate, language)
        self._thread, self._report = thread, report
        self._transcriber, self._rate = transcriber, sample_rate
        self._texts: list[str] = []
        self._language: str | None = language
        self._asked = language is None
        self._beginning: list[np.ndarray] = []

    def redirect(self, report: Report) -> None:
        """Report to `report` from now on, and at once what was understood before."""
        self._report = report
        if self._texts:
            report(self.text, self._language)

    @property
    def text(self) -> str:
        """All that was understood."""
        return " ".join(text for text in self._texts if text)

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
                self._texts.append(segment.text)
                self._language = segment.language
            if last and self._asked:
                self._language = self._foreign() or self._language
            if segments or last:
                self._report(self.text, self._language)
        except Exception:  # a transcript is an extra: the conversation goes on without it
            log.exception("a transcript failed")

    def _foreign(self) -> str | None:
        """The language of the speech, where the recogniser is sure that it is none of the bundle's."""
        known = self._transcriber.languages
        if not self._beginning or set(self._transcriber.model.supported_languages) <= set(known):
            return None
        audio = resample(np.concatenate(self._beginning), self._rate, 16000)
        language, probability, _ = self._transcriber.model.detect_language(audio)
        return language if language not in known and probability >= SURE else None
