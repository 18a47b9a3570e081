"""Speech to text: the bundle's own recogniser (`slm.lexicon`, or a small Whisper), or any faster-whisper model.

Transcripts are for people and for measuring: the language model never sees them. Speech is cut at pauses (Silero's
voice activity detector), every piece is written down in its own language, and pieces are yielded as they are ready.
Nothing here needs torch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import exp
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.transcribe import pad_or_trim
from faster_whisper.utils import download_model

from slm.audio import resample
from slm.errors import TresseError
from slm.recogniser_files import check_recogniser
from slm.voice_activity import RATE, TRANSCRIPT_PAUSES, speech_pieces

INTERVAL = 0.25
"""s of speech that arrive between two searches for a pause."""


@dataclass(frozen=True)
class Segment:
    """A piece of speech written down. start, end: s; probability: of the language among those allowed; confidence:
    geometric mean of the tokens' probabilities, 0..1."""

    start: float
    end: float
    text: str
    language: str
    probability: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """The segments of a waveform, in order."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All of it on one line."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def language(self) -> str | None:
        """The language of most of the speech; None where there is none."""
        seconds: dict[str, float] = {}
        for segment in self.segments:
            weight = (segment.end - segment.start) * segment.probability
            seconds[segment.language] = seconds.get(segment.language, 0.0) + weight
        return max(seconds, key=lambda language: seconds[language], default=None)

    @property
    def confidence(self) -> float:
        """Mean of the segments' confidence, weighted by their length; 0 where there is none."""
        lengths = [segment.end - segment.start for segment in self.segments]
        weighted = (segment.confidence * length for segment, length in zip(self.segments, lengths, strict=True))
        return sum(weighted) / sum(lengths) if sum(lengths) else 0.0


class _Whisper(WhisperModel):
    """faster-whisper pads every piece to 30 s; a model made for shorter chunks is given as much as it takes."""

    def encode(self, features: np.ndarray):  # type: ignore[no-untyped-def]
        return super().encode(np.ascontiguousarray(features[..., : self.feature_extractor.nb_max_frames]))


class Recogniser(ABC):
    """Writes speech down. languages: the codes it chooses from; longest: s of speech that it takes at once."""

    languages: Collection[str]
    longest: float

    @abstractmethod
    def _write_down(self, audio: np.ndarray, pieces: list[tuple[int, int]], language: str | None) -> Iterator[Segment]:
        """A segment for each piece (first sample, and the one behind the last) of float32 [samples] at RATE."""

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str | None = None) -> Transcript:
        """Write down float32 [samples]; language: None detects it, piece by piece.

        Raises TresseError for a language that it does not know.
        """
        return Transcript(tuple(self.segments(waveform, sample_rate, language)))

    def segments(
        self, waveform: np.ndarray, sample_rate: int, language: str | None = None, batch: int = 8
    ) -> Iterator[Segment]:
        """The same, piece by piece as they are ready; `batch` pieces are worked on at once."""
        audio = resample(np.asarray(waveform, np.float32), sample_rate, RATE)
        pieces = iter(speech_pieces(audio, self.longest))
        while some := list(islice(pieces, batch)):
            yield from self._write_down(audio, some, language)

    def stream(self, sample_rate: int, language: str | None = None) -> TranscriptStream:
        """A transcript of speech that is still arriving."""
        return TranscriptStream(self, sample_rate, language)

    def foreign(self, waveform: np.ndarray) -> tuple[str, float] | None:
        """The language of float32 [samples] at RATE and its probability, where it knows others than it chooses from."""
        return None

    def _check(self, language: str | None) -> None:
        if language is not None and language not in self.languages:
            raise TresseError(
                f"the recogniser does not know the language {language}: choose one of {', '.join(self.languages)}"
            )


class Transcriber(Recogniser):
    """A Whisper.

    name_or_path: a folder, or a name that faster-whisper knows ("small", a hub id), which it downloads. languages: the
    codes to choose from (None: all that the model knows). threads: 0 leaves them to CTranslate2. beam: hypotheses.
    Raises TresseError where there is no such model, or it knows none of the languages.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        languages: Sequence[str] | None = None,
        *,
        device: str = "cpu",
        threads: int = 0,
        beam: int = 5,
    ) -> None:
        name = str(name_or_path)
        try:
            folder = name if Path(name).is_dir() else download_model(name)
            check_recogniser(Path(folder))
            self.model = _Whisper(folder, device=device, compute_type="default", cpu_threads=threads)
        except TresseError:
            raise
        except Exception as error:  # each of its libraries raises its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise TresseError(
                f"cannot load the recogniser {name} ({reason[0]}): give a faster-whisper model's folder or name"
            ) from error
        self.beam = beam
        extractor = self.model.feature_extractor
        self.longest = extractor.nb_max_frames * extractor.hop_length / extractor.sampling_rate
        tokens = self.model.hf_tokenizer
        self._prompt_end = [tokens.token_to_id("<|notimestamps|>")]
        self._start = tokens.token_to_id("<|startoftranscript|>")
        self.languages: dict[str, int] = {}  # type: ignore[assignment]
        if self.model.model.is_multilingual:
            self._prompt_end.insert(0, tokens.token_to_id("<|transcribe|>"))
            for language in languages or _known(self.model):
                if (token := tokens.token_to_id(f"<|{language}|>")) is not None:
                    self.languages[language] = token
        elif not languages or "en" in languages:
            self.languages["en"] = -1
        if not self.languages:
            raise TresseError(f"the recogniser {name} knows none of {', '.join(languages or [])}: choose another")

    def _write_down(self, audio: np.ndarray, pieces: list[tuple[int, int]], language: str | None) -> Iterator[Segment]:
        model = self.model
        self._check(language)
        features = [pad_or_trim(model.feature_extractor(audio[start:end], padding=0)) for start, end in pieces]
        heard = model.encode(np.stack(features))
        if language is not None or len(self.languages) == 1:
            spoken = [(language or next(iter(self.languages)), 1.0)] * len(pieces)
        else:
            spoken = [self._choose(probabilities) for probabilities in model.model.detect_language(heard)]
        prompts = [
            [self._start, *([self.languages[name]] if self.languages[name] >= 0 else []), *self._prompt_end]
            for name, _ in spoken
        ]
        results = model.model.generate(
            heard, prompts, beam_size=self.beam, length_penalty=0, return_scores=True, max_length=model.max_length
        )
        for (start, end), (name, probability), result in zip(pieces, spoken, results, strict=True):
            tokens = result.sequences_ids[0]
            text = model.hf_tokenizer.decode(tokens).strip()
            yield Segment(start / RATE, end / RATE, text, name, probability, exp(result.scores[0] / (len(tokens) + 1)))

    def foreign(self, waveform: np.ndarray) -> tuple[str, float] | None:
        """See `Recogniser.foreign`."""
        if set(self.model.supported_languages) <= set(self.languages):
            return None
        language, probability, _ = self.model.detect_language(waveform)
        return language, probability

    def _choose(self, probabilities: list[tuple[str, float]]) -> tuple[str, float]:
        allowed = {token[2:-2]: value for token, value in probabilities if token[2:-2] in self.languages}
        best = max(allowed, key=lambda name: allowed[name])
        return best, allowed[best] / max(sum(allowed.values()), 1e-9)


class TranscriptStream:
    """Speech as it arrives: `push` chunks, get the segments that are complete; `finish` gives the rest.

    A segment is complete when a pause follows it, or when it is as long as the model takes.
    """

    def __init__(self, transcriber: Recogniser, sample_rate: int, language: str | None) -> None:
        self._transcriber, self._rate, self._language = transcriber, sample_rate, language
        self._audio = np.zeros(0, np.float32)
        self._new: list[np.ndarray] = []
        """Chunks that were not searched yet."""
        self._before = 0.0
        """s that were written down and dropped."""

    def push(self, chunk: np.ndarray) -> list[Segment]:
        """float32 [samples] at the stream's rate."""
        self._new.append(np.asarray(chunk, np.float32))
        return self._take(last=False) if sum(map(len, self._new)) >= INTERVAL * self._rate else []

    def finish(self) -> list[Segment]:
        """No more is to come."""
        return self._take(last=True)

    def _take(self, last: bool) -> list[Segment]:
        self._audio, self._new = np.concatenate([self._audio, *self._new]), []
        audio = resample(self._audio, self._rate, RATE)
        pieces = speech_pieces(audio, self._transcriber.longest)
        complete = [piece for piece in pieces if last or len(audio) - piece[1] > (TRANSCRIPT_PAUSES.pause + 0.1) * RATE]
        if last:
            keep = 0
        elif complete:
            keep = len(self._audio) - round(complete[-1][1] / RATE * self._rate)
        else:  # of silence a second is enough: a word may just be beginning
            keep = len(self._audio) if pieces else self._rate
        before = self._before
        cut = max(0, len(self._audio) - keep)
        self._audio, self._before = self._audio[cut:], self._before + cut / self._rate
        if not complete:
            return []
        written = self._transcriber._write_down(audio, complete, self._language)
        return [replace(segment, start=segment.start + before, end=segment.end + before) for segment in written]


def _known(model: WhisperModel) -> list[str]:
    matches = (re.fullmatch(r"<\|([a-z]{2,3})\|>", token) for token in model.hf_tokenizer.get_vocab())
    return sorted(match[1] for match in matches if match)
