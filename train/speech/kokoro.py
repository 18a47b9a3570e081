"""Kokoro-82M as a synthesiser: natural voices at 24 kHz, from an ONNX file.

A style is [256]: the first 128 numbers are timbre, the last 128 prosody. With the same prosody half another timbre says
the same text in exactly as many samples, so utterances of several voices can be compared frame by frame. Styles may be
mixed: an English timbre speaks French without an accent where about half of it is a French voice's. espeak-ng reads the
text. The model is batched by processes, not within one: a sentence depends on its request alone.

The folder holds `kokoro.onnx` (inputs tokens int64 [1, N], style [1, 256], speed [1], f0_scale [1]; outputs the waveform
and durations [1, N] in frames of 600 samples), `vocab.json` (IPA character -> token) and `voices/NAME.bin` (float32
[510, 1, 256], a row for each number of tokens). `train.speech.kokoro_network` runs it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from slm.audio import resample
from slm.errors import TresseError
from train.speech.espeak import Phoneme
from train.speech.kokoro_network import load_runner, runtime
from train.speech.reading import read

RATE = 24000
"""Hz of the model's waveform."""
FRAME = 600
"""Samples of a frame of its durations."""
MOST_TOKENS = 508
"""IPA characters of one run; a longer text is spoken in pieces."""
HALF = 128
"""Numbers of a style that are timbre; the others are prosody."""

Mixture = Annotated[dict[str, float], Field(min_length=1)]
"""Voices and their weights. A voice is a name of voices/, or a file of a style of one's own (.bin or .npy, float32 [256]
or a row for each number of tokens), relative to the model's folder."""


@dataclass(frozen=True)
class KokoroStyle:
    """How a speaker sounds in one language.

    timbre, prosody: mixtures of voices (prosody: as timbre where it is not given); speed: times the usual; pitch: times
    the predicted one; reading: the espeak-ng voice that reads the text (default: the language's), for an accent.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    timbre: Mixture
    prosody: Mixture | None = None
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    pitch: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    reading: str | None = None


@dataclass(frozen=True)
class KokoroSpeaker:
    """A voice that speaks the languages it has a style for."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: ClassVar[str] = "kokoro"
    name: str
    kokoro: Annotated[dict[str, KokoroStyle], Field(min_length=1)]


@dataclass(frozen=True)
class Kokoro:
    """The back end (see `train.speech.voices.Synthesiser`). folder: of the model; languages: who reads each for it."""

    folder: Path
    languages: Mapping[str, str]
    sample_rate: int = 16000
    name = "kokoro"

    def speak(self, text: str, language: str, speaker: KokoroSpeaker) -> np.ndarray:
        """float32 [samples] at `sample_rate` Hz. Raises TresseError where the speaker lacks the language."""
        return self.speak_with_phonemes(text, language, speaker)[0]

    def speak_with_phonemes(self, text: str, language: str, speaker: KokoroSpeaker) -> tuple[np.ndarray, list[Phoneme]]:
        """Like `speak`, with the time at which each IPA character begins, by the model's own durations.

        Stress and length marks, spaces and punctuation are characters too; the last entry is "", the end of speech.
        """
        style = self._style(language, speaker)
        spoken = self.read(text, language, speaker)
        if not spoken:
            return np.zeros(0, np.float32), []
        run, waveforms, marks, samples = load_runner(self.folder), [], [], 0
        for piece in pieces(spoken):
            tokens = np.array([0, *(_vocabulary(self.folder)[mark] for mark in piece), 0], np.int64)
            vector = self.style_vector(style, len(piece), speaker.name)
            waveform, durations = run(tokens, vector, style.speed, style.pitch)
            starts = samples + FRAME * np.cumsum(np.round(durations).astype(int))[:-1]
            marks += [Phoneme(mark, int(start) / RATE) for mark, start in zip([*piece, ""], starts, strict=True)]
            waveforms.append(np.asarray(waveform, np.float32))
            samples += len(waveform)
        return resample(np.concatenate(waveforms), RATE, self.sample_rate), marks

    def read(self, text: str, language: str, speaker: KokoroSpeaker) -> str:
        """The IPA that the model is given for a text; characters that it does not know are left out."""
        spoken = read(text, self._style(language, speaker).reading or self.languages[language])
        return "".join(mark for mark in spoken if mark in _vocabulary(self.folder))

    def style_vector(self, style: KokoroStyle, tokens: int, name: str) -> np.ndarray:
        """The mixed style float32 [256] for an utterance of so many IPA characters. name: the speaker's, for errors."""
        halves = ((style.timbre, slice(0, HALF)), (style.prosody or style.timbre, slice(HALF, None)))
        return np.concatenate(
            [
                np.sum([weight * _voice(self.folder, v, name)[tokens, half] for v, weight in mixture.items()], axis=0)
                for mixture, half in halves
            ]
        ).astype(np.float32)

    def check(self, language: str, speaker: KokoroSpeaker) -> None:
        """Raise TresseError where the model's files are missing, or the speaker lacks the language."""
        style = self._style(language, speaker)
        for file in ("kokoro.onnx", "vocab.json", "voices"):
            if not (self.folder / file).exists():
                raise TresseError(
                    f"voice {speaker.name}: there is no Kokoro model in {self.folder} ({file} is missing): "
                    "set TRESSE_MODELS, or `models` in the voices file, to the folder that holds kokoro/"
                )
        read("1", style.reading or self.languages[language])
        self.style_vector(style, 1, speaker.name)
        runtime(speaker.name)

    def fingerprint(self, speaker: KokoroSpeaker) -> str:
        """All that its speech depends on beside text and language: model, styles, settings, and what runs the model."""
        for language in speaker.kokoro:
            self.check(language, speaker)
        voices = {
            voice
            for style in speaker.kokoro.values()
            for mixture in (style.timbre, style.prosody or {})
            for voice in mixture
        }
        files = [
            self.folder / "kokoro.onnx",
            self.folder / "vocab.json",
            *(_file(self.folder, v) for v in sorted(voices)),
        ]
        digest = hashlib.sha256("".join(_digest(file, file.stat().st_mtime_ns) for file in files).encode())
        reader = f"espeak-ng {version('espeakng-loader')} {sorted(self.languages.items())}"
        return f"{self.name} {digest.hexdigest()[:16]} {runtime(speaker.name)} {reader} {speaker}"

    def _style(self, language: str, speaker: KokoroSpeaker) -> KokoroStyle:
        if language not in speaker.kokoro:
            known = ", ".join(speaker.kokoro)
            raise TresseError(
                f"voice {speaker.name} does not speak {language!r}: add a `kokoro` style (it has {known})"
            )
        if language not in self.languages and speaker.kokoro[language].reading is None:
            raise TresseError(f"no espeak-ng voice reads {language!r} to voice {speaker.name}: add it to `languages`")
        return speaker.kokoro[language]


def pieces(spoken: str) -> Iterator[str]:
    """IPA cut so that no piece has more than MOST_TOKENS characters: behind a mark, or else between words."""
    while len(spoken) > MOST_TOKENS:
        ends = [spoken.rfind(mark, MOST_TOKENS // 2, MOST_TOKENS) for mark in (". ", "! ", "? ", "; ", ", ", " ")]
        cut = next((end + 1 for end in ends if end > 0), MOST_TOKENS)
        yield spoken[:cut].strip()
        spoken = spoken[cut:].strip()
    yield spoken


def _file(folder: Path, voice: str) -> Path:
    return folder / voice if Path(voice).suffix in (".bin", ".npy") else folder / "voices" / f"{voice}.bin"


def _voice(folder: Path, voice: str, speaker: str) -> np.ndarray:
    """The styles of a voice: float32 [MOST_TOKENS + 2, 256]."""
    path = _file(folder, voice)
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in (folder / "voices").glob("*.bin")))
        raise TresseError(f"voice {speaker}: Kokoro has no voice {voice}: choose of {known}")
    try:
        return _styles(path, path.stat().st_mtime_ns)
    except (ValueError, OSError) as error:
        raise TresseError(f"voice {speaker}: {path} is no style: give float32 [256] or [510, 256]") from error


@functools.lru_cache(maxsize=256)
def _styles(path: Path, stamp: int) -> np.ndarray:
    numbers = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.fromfile(path, np.float32)
    return np.broadcast_to(numbers.astype(np.float32).reshape(-1, 2 * HALF), (MOST_TOKENS + 2, 2 * HALF))


@functools.cache
def _vocabulary(folder: Path) -> Mapping[str, int]:
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8"))


@functools.cache
def _digest(path: Path, stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
