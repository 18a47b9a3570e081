"""From recorded speech to a `Prompt`, at once or while it is still being spoken; then little is left to do at its end.

The same samples, in chunks of any size or all at once, give the same prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from slm.audio import ResampleStream, check_waveform, resample
from slm.continuation import Prompt, Sentence
from slm.errors import TresseError
from slm.units import UnitEncoder, Units, collapses
from slm.voice_activity import SpeechStream, speech_segments
from slm.voice_check import VoiceMeter

Understand = Callable[[Sequence[Units], Sequence[Sentence]], tuple[str, bool]]
"""Sentences of a prompt and the story before it -> its language, and whether it is in domain; `continuation.understand`."""


class PromptStream:
    """Push float32 [n] at `sample_rate` Hz as they come, then `finish`; or `read` a whole recording.

    max_seconds: s of a prompt, at most. understand: called at the end.
    """

    def __init__(self, encoder: UnitEncoder, sample_rate: int, max_seconds: float, understand: Understand) -> None:
        self.encoder, self.sample_rate, self.max_seconds = encoder, sample_rate, max_seconds
        self._understand = understand
        self._resample = ResampleStream(sample_rate, encoder.sample_rate)
        self._stream = encoder.stream()
        self._meter = VoiceMeter()
        self._speech = SpeechStream(encoder.sample_rate, meter=self._meter)
        self._parts: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._samples = 0

    @property
    def waveform(self) -> np.ndarray:
        """All that was pushed: float32 [samples]."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)

    @property
    def seconds(self) -> float:
        """Its length in s."""
        return self._samples / self.sample_rate

    def push(self, samples: np.ndarray) -> np.ndarray:
        """More of the prompt -> the frames int64 [k] that are now certain. Raises TresseError where it gets too long."""
        self._parts.append(np.asarray(samples, np.float32))
        self._samples += len(samples)
        self._meter.push(self._parts[-1])
        if self.seconds > self.max_seconds:
            raise TresseError(f"the prompt is longer than {self.max_seconds:.0f} s: say less at once")
        return self._encode(self._resample.push(self._parts[-1]))

    def fork(self) -> PromptStream:
        """Another stream in the same state: what is pushed into either, and finishing it, leaves the other as it is."""
        shared = (self.encoder, *vars(self.encoder).values())  # networks and settings: they have no state of their own
        return copy.deepcopy(self, {id(part): part for part in shared})

    def finish(self, before: Iterable[Sentence] = ()) -> Prompt:
        """The prompt. before: the story so far. Raises TresseError as `read` does."""
        check_waveform(self.waveform, self.sample_rate, self.max_seconds)
        self._encode(self._resample.flush())
        self._frames.append(self._stream.flush())
        return self._prompt(self._speech.finish(), np.concatenate(self._frames), self.seconds, before)

    def read(self, waveform: np.ndarray, before: Iterable[Sentence] = ()) -> Prompt:
        """`push` all of a recording, float32 [samples], and `finish`; quicker, as the encoder gets it whole.

        Raises TresseError where it is too short, too long, not finite, or holds no speech.
        """
        waveform = check_waveform(waveform, self.sample_rate, self.max_seconds)
        resampled = resample(waveform, self.sample_rate, self.encoder.sample_rate)
        frames = self.encoder.encode(resampled, self.encoder.sample_rate).frames()
        self._meter = VoiceMeter()
        self._meter.push(waveform)
        speech = speech_segments(resampled, self.encoder.sample_rate, self._meter)
        return self._prompt(speech, frames, len(waveform) / self.sample_rate, before)

    def _encode(self, resampled: np.ndarray) -> np.ndarray:
        """Samples at the encoder's rate -> the frames that are now certain."""
        self._speech.push(resampled)
        self._frames.append(self._stream.push(resampled))
        return self._frames[-1]

    def _prompt(
        self, speech: Iterable[tuple[float, float]], frames: np.ndarray, seconds: float, before: Iterable[Sentence]
    ) -> Prompt:
        """Stretches of speech, (start, end) in s, and the recording's units, frames int64 [T] -> the prompt."""
        rate, sentences = self.encoder.frame_rate, []
        for start, end in speech:
            part = frames[int(start * rate) : max(1, round(end * rate))]
            if len(part):
                sentences.append(Units.from_frames(part, rate, collapses(self.encoder)))
        if not sentences:
            raise TresseError(
                "no speech found in the prompt: speak closer to the microphone, or choose another recording"
            )
        story = tuple(before)
        language, in_domain = self._understand(sentences, story)
        return Prompt(sentences, language, seconds, story, in_domain, self._meter.finish())
