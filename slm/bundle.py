"""A bundle: one directory that holds everything needed to talk. safetensors and JSON only: loading never unpickles.

This is the only module of slm that knows the vocoder: here units become sound.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.continuation import (
    Prompt,
    Sentence,
    Time,
    continue_prompt,
    ending,
    expected_tokens,
    fitting,
    kept_free,
    most_tokens,
    understand,
)
from slm.engines import CTranslate2Engine, Engine, Sampling, TorchEngine
from slm.errors import TresseError
from slm.model import BUNDLES, load_model
from slm.prompt_stream import PromptStream
from slm.scheduling import Scheduler
from slm.schema import read_examples, read_info, read_model_config
from slm.settings import ReplySettings
from slm.speaking import SENTENCE_PAUSE, Chunk, ReplySpeaker
from slm.topics import Topics
from slm.units import UnitEncoder, Units, UnitVocabulary, collapses, load_encoder
from slm.units.hub import is_path
from slm.voice_activity import RATE, speech_segments
from vocoder import Vocoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHIPPED = BUNDLES / "natural"
LEAST_CONTEXT = 32
"""Tokens of the shortest context that a bundle can talk with."""


@dataclass(frozen=True)
class Example:
    """A short prompt shipped with the bundle."""

    path: Path
    language: str
    text: str


class Bundle:
    """Unit encoder, unit vocabulary, language model and vocoder, ready to talk. See `Bundle.load`."""

    def __init__(self, path: Path, info: dict[str, Any], device: str) -> None:
        self.path, self.info, self.device = path, info, device
        self.languages: list[str] = info["languages"]
        self.max_prompt_seconds = float(info["max_prompt_seconds"])
        self.candidates = int(info.get("candidates", 1))
        """Sentences that are drawn for each one of a reply (`slm.choosing`)."""
        self.unit_shares: dict[str, list[float]] | None = info.get("unit_shares")
        """How often each unit occurs in the speech that the language model learnt from, by language; where it is known."""
        self.examples = [
            Example(path / "examples" / entry.file, entry.language, entry.text)
            for entry in read_examples(path / "examples")
        ]
        """Prompts that come with the bundle; none was seen in training."""
        self.context = _context(path / "slm")
        """Tokens the language model can look back on, prompt and continuation together."""
        self.units: UnitEncoder = load_encoder(path / "units").to(device)
        self.vocabulary = UnitVocabulary.load(path / "slm")
        self.topics: Topics | None = Topics.load(path / "slm", len(self.vocabulary))
        """What tokens are about; where it is known."""
        try:
            self.vocoder = Vocoder.load(path / "vocoder").to(device)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise TresseError(f"cannot read the vocoder in {path / 'vocoder'}: restore the bundle's files") from error
        self.sample_rate: int = self.vocoder.config.sample_rate
        self.speakers: list[str] = list(self.vocoder.config.speakers)
        self._lock = threading.Lock()
        self._warm = False
        self._scheduler = Scheduler(os.cpu_count() or 1)
        spoken = self.vocabulary.tag_ids.keys() & set(self.vocoder.config.languages)
        unknown = [language for language in self.languages if language not in spoken]
        sizes = {self.vocabulary.codebook_size, self.units.codebook_size, self.vocoder.config.codebook_size}
        sizes.update(len(shares) for shares in (self.unit_shares or {}).values())
        if unknown or len(sizes) > 1 or self.vocoder.config.frame_rate != self.units.frame_rate:
            raise TresseError(f"the parts of the bundle {path} do not fit together: restore the bundle's files")

    @classmethod
    def load(cls, path_or_hub_id: str | Path | None = None, device: str = "auto") -> Bundle:
        """Load a bundle from a folder or a hub id; the shipped one by default. device: auto, cpu, cuda, cuda:1 ...

        Raises TresseError where there is none, or its files are missing or damaged.
        """
        path = _find(path_or_hub_id)
        return cls(path, read_info(path), choose_device(device))

    @cached_property
    def language_model(self) -> PreTrainedModel:
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

    @property
    def tags(self) -> bool:
        """Whether the language model was trained with language tags. Without them it chooses the language itself, and a
        language that is asked for is only how the vocoder speaks."""
        return self.vocabulary.tags

    @cached_property
    def silence(self) -> int:
        """The unit that stands for silence: the commonest frame of a second of it."""
        units = self.units.encode(np.zeros(self.units.sample_rate, np.float32), self.units.sample_rate)
        return int(np.bincount(units.frames()).argmax())

    def warm_up(self) -> None:
        """Make the first reply as fast as the others: converts the model if need be and runs every part, once."""
        if self._warm:
            return
        speech_segments(np.zeros(RATE, np.float32), RATE)
        sentence = Units(np.array([self.silence]), np.array([10]), self.units.frame_rate)
        understand([sentence], self.engine, self.vocabulary, context=self.context)
        prompt = Prompt([sentence], self.languages[0], sentence.seconds)
        settings = ReplySettings((self.languages[0],), max_seconds=1.0)
        for _ in self._speak(prompt, settings, Sampling(max_tokens=8, min_tokens=8), time.perf_counter()):
            pass
        self._warm = True

    def continue_speech(
        self,
        waveform: np.ndarray,
        sample_rate: int,
        to: str | Sequence[str] | ReplySettings,
        *,
        before: Iterable[Sentence] = (),
        **options: Any,
    ) -> Iterator[Chunk]:
        """Go on with the story spoken in float32 [samples]; yields Chunks as they are ready.

        to: a language, several that take turns sentence by sentence, or all `ReplySettings`; options: the other fields of
        these (seed, temperature, top_p, max_seconds, speaker, candidates). before: the story so far; where the prompt is
        out of domain (see `Prompt`), the continuation goes on from that alone. The same arguments give the same
        continuation. Closing the iterator ends the generation. Raises TresseError for a prompt without speech, too short or
        too long, an unknown language or speaker, or settings out of range.
        """
        started = time.perf_counter()
        if isinstance(to, ReplySettings):
            settings = replace(to, **options)
        else:
            settings = ReplySettings((to,) if isinstance(to, str) else tuple(to), **options)
        settings.check(self.languages, self.speakers, tags=self.tags)
        yield from self.reply(self.prompt(waveform, sample_rate, before), settings, started)

    def prompt(self, waveform: np.ndarray, sample_rate: int, before: Iterable[Sentence] = ()) -> Prompt:
        """What was said in float32 [samples], in which language, and whether it is in domain. before: the story so far.

        Raises TresseError where it is too short, too long, not finite, or holds no speech.
        """
        return self.prompt_stream(sample_rate).read(waveform, before)

    def prompt_stream(self, sample_rate: int) -> PromptStream:
        """A prompt that is still being spoken: push samples at `sample_rate` Hz as they come, then `finish`."""
        return PromptStream(
            self.units,
            sample_rate,
            self.max_prompt_seconds,
            lambda sentences, before: understand(
                sentences, self.engine, self.vocabulary, before, context=self.context, shares=self.unit_shares
            ),
        )

    def ending(self, prompt: Prompt) -> float | None:
        """Log-odds that a sentence ends with the last unit of the prompt; None where it is out of domain, and the language
        model cannot tell."""
        return ending(prompt, self.engine, self.vocabulary, context=self.context) if prompt.in_domain else None

    def reply(self, prompt: Prompt, settings: ReplySettings, started: float | None = None) -> Iterator[Chunk]:
        """`continue_speech` for a prompt that was understood already; `started`: time.perf_counter() when it was given.

        Raises TresseError for settings that the bundle does not allow.
        """
        settings.check(self.languages, self.speakers, tags=self.tags)
        sampling = Sampling.for_reply(settings, most_tokens(settings.max_seconds, self.units.frame_rate))
        yield from self._speak(prompt, settings, sampling, time.perf_counter() if started is None else started)

    def context_use(self, story: Sequence[Sentence], max_seconds: float) -> tuple[int, int, int]:
        """Tokens of a story that a further reply looks back on, how many it could, and how many of the oldest sentences
        are forgotten."""
        most, expected = self._reply_tokens(story, max_seconds)
        limit = self.context - kept_free(self.context, most, expected)
        kept = fitting(story, self.vocabulary, limit - 1 - self.tags)
        return sum(len(tokens) for tokens in kept), limit, len(story) - len(kept)

    def _speak(self, prompt: Prompt, settings: ReplySettings, sampling: Sampling, started: float) -> Iterator[Chunk]:
        speaker = ReplySpeaker(
            self.sample_rate, self.units.frame_rate, self.silence, collapses(self.units), self._scheduler
        )
        expected = self._reply_tokens(prompt.story, settings.max_seconds)[1]

        def lasts(ids: np.ndarray, language: str) -> float:
            if not collapses(self.units):
                return len(ids) / self.units.frame_rate
            return self.vocoder.seconds(ids, settings.speaker, language)

        steps = continue_prompt(
            prompt,
            settings.languages,
            self.engine,
            self.vocabulary,
            sampling,
            self.context,
            expected,
            self.candidates if settings.candidates is None else settings.candidates,
            Time(settings.max_seconds, lasts, SENTENCE_PAUSE),
            self.topics,
        )
        voice = self.vocoder.stream(settings.speaker)
        return speaker.speak(steps, voice, prompt, settings.max_seconds, started)

    def _reply_tokens(self, story: Sequence[Sentence], max_seconds: float) -> tuple[int, int]:
        """Tokens that a reply to this story needs, in so many s: at the very most, and at most as far as can be expected."""
        rate = self.units.frame_rate
        return most_tokens(max_seconds, rate), expected_tokens(story, self.vocabulary, max_seconds, rate, self.context)


_CTRANSLATE2 = {"llama", "qwen2", "opt", "mistral", "gpt2", "phi", "gemma"}
"""Architectures that are decoded with CTranslate2 (of those that it converts)."""


def _architecture(path: Path) -> str:
    return str(read_model_config(path / "slm").get("model_type"))


def _context(folder: Path) -> int:
    """Positions that a language model knows. Raises TresseError where its config.json does not say how many."""
    values = read_model_config(folder)
    positions = values.get("max_position_embeddings") or values.get("n_positions")  # the latter is GPT-2's name
    if not isinstance(positions, int) or positions < LEAST_CONTEXT:
        raise TresseError(f"{folder / 'config.json'} names no context that suffices: restore the bundle's files")
    return positions


def _find(path_or_hub_id: str | Path | None) -> Path:
    if path_or_hub_id is None:
        return SHIPPED
    path = Path(path_or_hub_id)
    if path.exists():
        return path
    name = str(path_or_hub_id)
    if not is_path(name) and (BUNDLES / name / "bundle.json").exists():
        return BUNDLES / name
    if "/" in name and not is_path(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md", "*.flac", "*.bin"]))
        except Exception as error:  # network, authorisation, no such repository
            raise TresseError(
                f"there is no folder {name}, and no bundle of that name on the hub can be reached"
            ) from error
    raise TresseError(
        f"there is no bundle at {name}: give a folder that holds a bundle.json, a hub id, or a name ({_shipped()})"
    )


def _shipped() -> str:
    """The names of the shipped bundles."""
    return ", ".join(sorted(path.parent.name for path in BUNDLES.glob("*/bundle.json")))


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
