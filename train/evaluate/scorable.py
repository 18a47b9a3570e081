"""What the evaluations need of a system: protocols, so that a small stand-in can be evaluated as well as a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from slm.continuation import Prompt, Sentence
from slm.speaking import Chunk
from slm.transcribe import Transcript
from slm.units import UnitEncoder, UnitVocabulary
from vocoder import Vocoder


class Scorable(Protocol):
    """A system that finds speech more or less likely: `slm.bundle.Bundle` is one."""

    @property
    def languages(self) -> Sequence[str]:
        """Codes of the languages that it knows."""
        ...

    @property
    def units(self) -> UnitEncoder:
        """Its unit encoder."""
        ...

    @property
    def vocabulary(self) -> UnitVocabulary:
        """Its unit vocabulary."""
        ...

    @property
    def path(self) -> Path:
        """The folder that it was read from."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """What its bundle.json says."""
        ...

    @property
    def language_model(self) -> nn.Module:
        """A transformers causal language model over the vocabulary."""
        ...


class Talking(Scorable, Protocol):
    """A system that also goes on with a story, and speaks units."""

    @property
    def vocoder(self) -> Vocoder:
        """Its vocoder."""
        ...

    @property
    def speakers(self) -> Sequence[str]:
        """Names of the vocoder's speakers."""
        ...

    @property
    def sample_rate(self) -> int:
        """Hz of the speech that it makes."""
        ...

    def prompt(self, waveform: np.ndarray, sample_rate: int, before: Iterable[Sentence] = ()) -> Prompt:
        """float32 [samples] at `sample_rate` Hz, understood. before: the story so far."""
        ...

    def continue_speech(
        self, waveform: np.ndarray, sample_rate: int, to: str | Sequence[str], **settings: Any
    ) -> Iterator[Chunk]:
        """float32 [samples] at `sample_rate` Hz -> the continuation in the language `to`, as it is made."""
        ...


class Transcribing(Protocol):
    """A recogniser: `slm.transcribe.Transcriber` is one."""

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str | None = None) -> Transcript:
        """float32 [samples] at `sample_rate` Hz -> what was said. language: None where it is to be recognised."""
        ...
