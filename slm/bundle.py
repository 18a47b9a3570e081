"""A bundle: one directory that holds everything needed to talk. safetensors and JSON only: loading never unpickles.

This is the only module of slm that knows the vocoder: here units become sound.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.continuation import Prompt, Sentence, continue_prompt, fitting, hear, understand
from slm.defaults import MAX_SECONDS, TEMPERATURE, TOP_P
from slm.engines import CTranslate2Engine, Engine, Sampling, TorchEngine
from slm.errors import TresseError
from slm.model import BUNDLES, load_model
from slm.prompt_stream import PromptStream
from slm.scheduling import Cores
from slm.units import UnitEncoder, Units, UnitVocabulary, collapses, load_encoder
from slm.units.hub import is_path
from slm.voice_activity import RATE, speech_segments
from vocoder import Vocoder

FORMAT = 1
SHIPPED = BUNDLES / "braid"
SENTENCE_PAUSE = 0.2
"""s of silence between two sentences of a continuation, beside the sentences' own."""
FIRST_SECONDS = 0.06
"""s of sound with which a reply begins, at least: the next must be made meanwhile."""
MAX_REPLY_SECONDS = 60.0


@dataclass(frozen=True)
class Example:
    """A short prompt shipped with the bundle."""

    path: Path
    language: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a continuation: float32 [samples] at the bundle's rate, the units it was spoken from (those new since the
    chunk before), tokens generated so far, s since the prompt was given, and the prompt as it was heard.

    sentence: int64 [N], for each unit the number of its sentence in the continuation, -1 in the pauses between them;
    languages: of the sentences begun so far."""

    audio: np.ndarray
    units: Units
    tokens: int
    elapsed: float
    prompt: Prompt
    sentence: np.ndarray
    languages: tuple[str, ...]


def told(chunks: Iterable[Chunk]) -> list[Sentence]:
    """The sentences of a continuation, as the story goes on from them."""
    held = list(chunks)
    if not held:
        return []
    units, number = Units.concatenate([c.units for c in held]), np.concatenate([c.sentence for c in held])
    parts = [(units.ids[number == k], units.run_lengths[number == k]) for k in range(len(held[-1].languages))]
    return [
        Sentence(Units(ids, lengths, units.frame_rate), language)
        for (ids, lengths), language in zip(parts, held[-1].languages, strict=True)
        if len(ids)
    ]


class Bundle:
    """Unit encoder, unit vocabulary, language model and vocoder, ready to talk. See `Bundle.load`."""

    def __init__(self, path: Path, info: dict[str, Any], device: str) -> None:
        self.path, self.info, self.device = path, info, device
        self.languages: list[str] = info["languages"]
        self.max_prompt_seconds: float = info["max_prompt_seconds"]
        self.units: UnitEncoder = load_encoder(path / "units").to(device)
        self.vocabulary = UnitVocabulary.load(path / "slm")
        try:
            self.vocoder = Vocoder.load(path / "vocoder").to(device)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise TresseError(f"cannot read the vocoder in {path / 'vocoder'}: restore the bundle's files") from error
        self.sample_rate: int = self.vocoder.config.sample_rate
        self.speakers: list[str] = list(self.vocoder.config.speakers)
        self._lock = threading.Lock()
        self._warm = False
        self._cores = Cores(os.cpu_count() or 1)
        unspoken = [language for language in self.languages if language not in self.vocabulary.tag_ids]
        sizes = {self.vocabulary.codebook_size, self.units.codebook_size, self.vocoder.config.codebook_size}
        if unspoken or len(sizes) > 1 or self.vocoder.config.frame_rate != self.units.frame_rate:
            raise TresseError(f"the parts of the bundle {path} do not fit together: restore the bundle's files")

    @classmethod
    def load(cls, path_or_hub_id: str | Path | None = None, device: str = "auto") -> Bundle:
        """Load a bundle from a folder or a hub id; the shipped one by default. device: auto, cpu, cuda, cuda:1 ...

        Raises TresseError where there is none, or its files are missing or damaged.
        """
        path = _find(path_or_hub_id)
        try:
            info = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
            if info["format"] > FORMAT:
                raise TresseError(f"{path} has bundle format {info['format']}: upgrade tresse to read it")
            missing = [key for key in ("languages", "max_prompt_seconds") if key not in info]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TresseError(
                f"{path} is not a bundle (bundle.json is missing or damaged): restore its files"
            ) from error
        if missing:
            raise TresseError(f"{path}/bundle.json lacks {missing[0]!r}: restore the bundle's files")
        return cls(path, info, choose_device(device))

    @cached_property
    def language_model(self) -> Any:
        """The transformers causal LM in float32, on the bundle's device."""
        return load_model(self.path / "slm")[0].to(self.device)

    @property
    def engine(self) -> Engine:
        """The decoding engine: CTranslate2 on a CPU where it knows the architecture, else PyTorch. Made on first use."""
        with self._lock:
            return self._engine

    @cached_property
    def _engine(self) -> Engine:
        if self.device == "cpu" and _architecture(self.path) in _CTRANSLATE2:
            return CTranslate2Engine(self.path / "slm", self.vocabulary)
        return TorchEngine(self.language_model, self.vocabulary)

    @cached_property
    def context(self) -> int:
        """Tokens the language model can look back on, prompt and continuation together."""
        config = json.loads((self.path / "slm" / "config.json").read_text(encoding="utf-8"))
        return int(config["max_position_embeddings"])

    @cached_property
    def silence(self) -> int:
        """The unit that stands for silence."""
        units = self.units.encode(np.zeros(self.units.sample_rate, np.float32), self.units.sample_rate)
        return int(units.ids[units.run_lengths.argmax()])

    @cached_property
    def examples(self) -> list[Example]:
        """Prompts that come with the bundle; none was seen in training."""
        listing = self.path / "examples" / "examples.json"
        if not listing.exists():
            return []
        entries = json.loads(listing.read_text(encoding="utf-8"))
        return [Example(listing.parent / entry["file"], entry["language"], entry["text"]) for entry in entries]

    def warm_up(self) -> None:
        """Make the first reply as fast as the others: converts the model if need be and runs every part, once."""
        if self._warm:
            return
        speech_segments(np.zeros(RATE, np.float32), RATE)
        sentence = Units(np.array([self.silence]), np.array([10]), self.units.frame_rate)
        understand([sentence], self.engine, self.vocabulary)
        prompt = Prompt([sentence], self.languages[0], sentence.seconds)
        for _ in self.speak(prompt, self.languages[0], Sampling(max_tokens=8, min_tokens=8), 1.0):
            pass
        self._warm = True

    def continue_speech(
        self,
        waveform: np.ndarray,
        sample_rate: int,
        to: str | Sequence[str],
        *,
        seed: int = 0,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        max_seconds: float = MAX_SECONDS,
        speaker: str | None = None,
        before: Iterable[Sentence] = (),
    ) -> Iterator[Chunk]:
        """Go on with the story spoken in float32 [samples], in language `to`; yields Chunks as they are ready.

        to: a language, or several that take turns sentence by sentence. before: the story so far; where the prompt is
        not familiar (see `Prompt`), the continuation goes on from that alone. The same arguments give the same
        continuation. Closing the iterator ends the generation. Raises TresseError for a prompt without speech, too short
        or too long, an unknown language or speaker, or settings out of range.
        """
        started = time.perf_counter()
        self.check_settings(to, temperature, top_p, max_seconds, speaker)
        yield from self.reply(
            self.prompt(waveform, sample_rate, before),
            to,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_seconds=max_seconds,
            speaker=speaker,
            started=started,
        )

    def prompt(self, waveform: np.ndarray, sample_rate: int, before: Iterable[Sentence] = ()) -> Prompt:
        """What was said in float32 [samples], in which language, and whether the model can make it out. before: the story
        so far. Raises TresseError as `hear` does."""
        sentences, seconds = hear(waveform, sample_rate, self.units, self.max_prompt_seconds)
        return self.understand(sentences, seconds, before)

    def prompt_stream(self, sample_rate: int) -> PromptStream:
        """A prompt that is still being spoken: push samples as they come; `understand` what `finish` returns."""
        return PromptStream(self.units, sample_rate, self.max_prompt_seconds)

    def understand(self, sentences: list[Units], seconds: float, before: Iterable[Sentence] = ()) -> Prompt:
        """Sentences of units, heard in so many s, with their language and whether the model can make them out."""
        told = tuple(before)
        language, familiar = understand(sentences, self.engine, self.vocabulary, told)
        return Prompt(sentences, language, seconds, told, familiar)

    def reply(
        self,
        prompt: Prompt,
        to: str | Sequence[str],
        *,
        seed: int = 0,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        max_seconds: float = MAX_SECONDS,
        speaker: str | None = None,
        started: float | None = None,
    ) -> Iterator[Chunk]:
        """`continue_speech` for a prompt that was heard already; `started`: time.perf_counter() when it was given."""
        self.check_settings(to, temperature, top_p, max_seconds, speaker)
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_tokens=self._max_tokens(max_seconds))
        yield from self.speak(prompt, to, sampling, max_seconds, speaker, started)

    def context_use(self, story: Sequence[Sentence], max_seconds: float) -> tuple[int, int, int]:
        """Tokens of a story that a further reply looks back on, how many it could, and how many of the oldest sentences
        are forgotten."""
        limit = self.context - self._max_tokens(max_seconds)
        kept = fitting(story, self.vocabulary, limit - 2)
        return sum(len(tokens) for tokens in kept), limit, len(story) - len(kept)

    def speak(
        self,
        prompt: Prompt,
        to: str | Sequence[str],
        sampling: Sampling,
        max_seconds: float,
        speaker: str | None = None,
        started: float | None = None,
    ) -> Iterator[Chunk]:
        """`reply`, with all that can be set."""
        started = time.perf_counter() if started is None else started
        stream = self.vocoder.stream(speaker)
        rate = self.units.frame_rate
        limit = int(max_seconds * self.sample_rate)
        samples, tokens, pending = 0, 0, Units.empty(rate)
        audio = np.zeros(0, np.float32)
        due = started  # when its sound runs out: who has none yet is late
        languages: list[str] = []
        owners: list[np.ndarray] = []
        pause, begins = np.array([max(1, round(SENTENCE_PAUSE * rate))]), True

        def chunk(audio: np.ndarray) -> Chunk:
            owner = np.concatenate(owners) if owners else np.zeros(0, np.int64)
            elapsed = time.perf_counter() - started
            return Chunk(audio, pending, tokens, elapsed, prompt, owner, tuple(languages))

        for step in continue_prompt(prompt, to, self.engine, self.vocabulary, sampling, self.context):
            tokens += 1
            if step.boundary or not languages:
                languages.append(step.language)
            ids, lengths = (np.array([self.silence]), pause) if step.boundary else (step.unit_ids, None)
            if not collapses(self.units):  # a unit is a frame
                ids = np.repeat(ids, pause[0]) if step.boundary else ids
                lengths = np.ones_like(ids)
            with self._cores.one(due):
                made = stream.push(ids, lengths, language=step.language, begins=begins)
            audio = np.concatenate([audio, made])
            begins = step.boundary
            pending = Units.concatenate([pending, Units(ids, stream.run_lengths, rate)])
            owners.append(np.full(len(ids), -1 if step.boundary else len(languages) - 1))
            if len(audio) > (0 if samples else FIRST_SECONDS * self.sample_rate):
                if samples + len(audio) >= limit:
                    yield chunk(_fade_out(audio[: limit - samples], self.sample_rate))
                    return
                due = (due if samples else time.perf_counter()) + len(audio) / self.sample_rate
                samples += len(audio)
                yield chunk(audio)
                audio, pending, owners = audio[:0], Units.empty(rate), []
        audio = np.concatenate([audio, stream.flush()])[: limit - samples]
        if len(audio):
            yield chunk(audio)

    def check_settings(
        self, to: str | Sequence[str], temperature: float, top_p: float, max_seconds: float, speaker: str | None
    ) -> None:
        """Raises TresseError, naming what is allowed, where a setting is not."""
        for language in [to] if isinstance(to, str) else to:
            if language not in self.languages:
                raise TresseError(f"unknown language {language!r}: this bundle speaks {', '.join(self.languages)}")
        if not 0 <= temperature <= 5:
            raise TresseError(f"temperature must lie between 0 and 5, not {temperature}")
        if not 0 < top_p <= 1:
            raise TresseError(f"top-p must lie between 0 (excluded) and 1, not {top_p}")
        if not 0.5 <= max_seconds <= MAX_REPLY_SECONDS:
            raise TresseError(f"max-seconds must lie between 0.5 and {MAX_REPLY_SECONDS:g}, not {max_seconds}")
        if speaker is not None and speaker not in self.speakers:
            raise TresseError(f"unknown speaker {speaker!r}: choose one of {', '.join(self.speakers)}")

    def _max_tokens(self, max_seconds: float) -> int:
        """Tokens that surely suffice for so many seconds, but leave half of the context to the prompt."""
        return min(int(max_seconds * self.units.frame_rate) + 8, self.context // 2)


_CTRANSLATE2 = {"llama", "qwen2", "opt", "mistral", "gpt2", "phi", "gemma"}
"""Architectures that are decoded with CTranslate2 (of those that it converts)."""


def _architecture(path: Path) -> str:
    try:
        return str(json.loads((path / "slm" / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise TresseError(f"cannot read {path / 'slm' / 'config.json'}: restore the bundle's files") from error


def _find(path_or_hub_id: str | Path | None) -> Path:
    if path_or_hub_id is None:
        return SHIPPED
    path = Path(path_or_hub_id)
    if path.exists():
        return path
    name = str(path_or_hub_id)
    if "/" in name and not is_path(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md", "*.flac", "*.bin"]))
        except Exception as error:  # network, authorisation, no such repository
            raise TresseError(
                f"there is no folder {name}, and no bundle of that name on the hub can be reached"
            ) from error
    raise TresseError(f"there is no bundle at {name}: give a folder that holds a bundle.json, or a hub id")


def choose_device(device: str) -> str:
    """`auto` -> cuda where there is a GPU, else cpu. Raises TresseError for a device that is not here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise TresseError(f"this machine has no device {device}: use --device cpu or auto")
        torch.empty(0, device=device)
    except RuntimeError as error:
        raise TresseError(f"this machine has no device {device}: use --device cpu or auto") from error
    return device


def _fade_out(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    count = min(len(audio), sample_rate // 50)
    audio = audio.copy()
    audio[len(audio) - count :] *= np.linspace(1, 0, count, dtype=np.float32)
    return audio
