"""Any transformers VITS checkpoint as a synthesiser: a folder or a hub id, one model a language or one for several.

Kim et al. 2021, "Conditional Variational Autoencoder with Adversarial Learning for End-to-End Text-to-Speech"; the
MMS-TTS voices (Pratap et al. 2023) cover over 1,100 languages, one model each. VITS draws noise: here from a seed made of
the request, on one thread, so that the same request gives the same audio. A speaker may be shifted in pitch and rate, so
that even a model of one voice gives several speakers. A few times real time on one core for models of the usual size.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field

from slm.audio import resample
from slm.errors import TresseError
from slm.units.hub import is_path


@dataclass(frozen=True)
class VitsVoice:
    """A checkpoint (folder or hub id) and, where it has several, the number of the speaker in it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    model: str
    speaker_id: Annotated[int, Field(ge=0)] | None = None


def voices_of(entry: Any) -> Any:
    """A `vits:` entry of a voices file, with a bare `language: model` written out."""
    if not isinstance(entry, Mapping):
        return entry
    return {language: {"model": voice} if isinstance(voice, str) else voice for language, voice in entry.items()}


@dataclass(frozen=True)
class VitsSpeaker:
    """A voice that speaks the languages it has a checkpoint for.

    rate: times the model's own speed; semitones: pitch shift of what the model says.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: ClassVar[str] = "vits"
    name: str
    vits: Annotated[dict[str, VitsVoice], Field(min_length=1), BeforeValidator(voices_of)]
    rate: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    semitones: Annotated[float, Field(ge=-12, le=12)] = 0.0


@dataclass(frozen=True)
class Vits:
    """The back end (see `train.speech.voices.Synthesiser`)."""

    sample_rate: int = 16000
    name = "vits"

    def speak(self, text: str, language: str, speaker: VitsSpeaker) -> np.ndarray:
        """float32 [samples] at 16 kHz; empty where the text holds no letter the model knows.

        Raises TresseError where the speaker lacks the language or its checkpoint cannot be used.
        """
        import torch

        from train.speech.augmentation import pitch

        voice = _voice(language, speaker)
        folder = find_model(voice.model, speaker.name)
        model, tokenizer = load_vits(folder, _stamp(folder))
        request = f"{voice.speaker_id}\n{language}\n{text}"
        seed = int.from_bytes(hashlib.blake2b(request.encode(), digest_size=7).digest(), "big")
        with torch.inference_mode(), torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(seed)
            try:
                inputs = tokenizer(text, return_tensors="pt")
            except ImportError as error:
                raise TresseError(
                    f"voice {speaker.name}: {voice.model} reads phonemes: install the package phonemizer"
                ) from error
            if inputs["input_ids"].shape[1] < 2:  # an empty text is one blank, or nothing
                return np.zeros(0, np.float32)
            ids = None if voice.speaker_id is None else int(voice.speaker_id)
            rate = speaker.rate * model.config.speaking_rate
            waveform = model(**inputs, speaker_id=ids, speaking_rate=rate).waveform[0].numpy()
            waveform = resample(np.ascontiguousarray(waveform), model.config.sampling_rate, self.sample_rate)
            if speaker.semitones:
                waveform = pitch(waveform, speaker.semitones)
        # Models differ in level: to one peak, for the caller's threshold of silence to mean the same for all.
        return waveform * (0.5 / max(1e-6, float(np.abs(waveform).max())))

    def check(self, language: str, speaker: VitsSpeaker) -> None:
        """Raise TresseError where this speaker cannot speak the language; reads the checkpoint's configuration only."""
        voice = _voice(language, speaker)
        folder = find_model(voice.model, speaker.name)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["model_type"] != "vits":
                raise ValueError(f"its model type is {config['model_type']}")
            for name in ("model.safetensors", "vocab.json"):
                if not (folder / name).exists():
                    raise ValueError(f"{name} is missing")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TresseError(f"voice {speaker.name}: {voice.model} is no VITS checkpoint: {_line(error)}") from error
        known = config.get("num_speakers", 1)
        if voice.speaker_id is not None and voice.speaker_id >= known:
            raise TresseError(f"voice {speaker.name}: {voice.model} has {known} speakers: speaker_id is 0..{known - 1}")
        if voice.speaker_id is None and known > 1:
            raise TresseError(f"voice {speaker.name}: {voice.model} has {known} speakers: give a speaker_id")

    def fingerprint(self, speaker: VitsSpeaker) -> str:
        """All that its speech depends on beside text and language: the weights, not where they lie."""
        voices = {
            language: (_digest(folder := find_model(voice.model, speaker.name), _stamp(folder)), voice.speaker_id)
            for language, voice in sorted(speaker.vits.items())
        }
        return f"{self.name} {speaker.name} {voices} {speaker.rate} {speaker.semitones}"


def _voice(language: str, speaker: VitsSpeaker) -> VitsVoice:
    if language not in speaker.vits:
        known = ", ".join(speaker.vits)
        raise TresseError(f"voice {speaker.name} does not speak {language!r}: add a `vits` entry (it has {known})")
    return speaker.vits[language]


@functools.cache
def find_model(model: str, speaker: str) -> Path:
    """The folder of a checkpoint, downloaded where `model` is a hub id. Raises TresseError where there is none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if "/" not in model or is_path(model):
        raise TresseError(f"voice {speaker}: there is no folder {model}: give a VITS checkpoint's folder or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # network, authorisation, no such repository
        raise TresseError(f"voice {speaker}: there is no folder {model}, and the hub does not give it") from error


@functools.lru_cache(maxsize=8)
def load_vits(folder: Path, stamp: tuple) -> tuple[Any, Any]:
    """VitsModel and VitsTokenizer of a folder; safetensors only. stamp: what was in it, so that a changed one is read anew.

    Raises TresseError where they cannot be read.
    """
    from transformers import VitsModel, VitsTokenizer

    try:
        tokenizer = VitsTokenizer.from_pretrained(folder)
        return VitsModel.from_pretrained(folder, use_safetensors=True).eval(), tokenizer
    except Exception as error:  # transformers raises many kinds on missing or damaged files
        raise TresseError(f"cannot read the VITS checkpoint in {folder}: {_line(error)}") from error


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])


def _stamp(folder: Path) -> tuple:
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in _files(folder))


@functools.cache
def _digest(folder: Path, stamp: tuple) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: the order of its sums, and so the last bits, depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
