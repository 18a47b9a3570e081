"""Piper voices as synthesisers: VITS networks in ONNX files with a .json beside each, one voice (or several) a file.

espeak-ng reads the text, as for the training of these voices. The networks draw noise; here none, so that a sentence
depends on its request alone. About real time on one core, by ONNX Runtime.
"""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from slm.audio import resample
from slm.errors import TresseError
from train.speech.reading import read

BEGIN, PAD, END = "^", "_", "$"


@dataclass(frozen=True)
class PiperSpeaker:
    """piper: the .onnx file for each language, relative to the folder piper/ of the models; speed: times the usual;
    speaker_id: the speaker in files that have several."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: ClassVar[str] = "piper"
    name: str
    piper: Annotated[dict[str, str], Field(min_length=1)]
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    speaker_id: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Piper:
    """The back end (see `train.speech.voices.Synthesiser`). folder: of the files."""

    folder: Path
    sample_rate: int = 16000
    name = "piper"

    def speak(self, text: str, language: str, speaker: PiperSpeaker) -> np.ndarray:
        """float32 [samples] at `sample_rate` Hz. Raises TresseError where the speaker lacks the language."""
        self.check(language, speaker)
        path = self.folder / speaker.piper[language]
        config = _config(path)
        spoken = read(text, config["espeak"]["voice"])
        if not spoken:
            return np.zeros(0, np.float32)
        ids = np.array([token_ids(spoken, config["phoneme_id_map"])], np.int64)
        scales = np.array([0.0, config["inference"]["length_scale"] / speaker.speed, 0.0], np.float32)
        inputs = {"input": ids, "input_lengths": np.array([ids.shape[1]], np.int64), "scales": scales}
        if config.get("num_speakers", 1) > 1:
            inputs["sid"] = np.array([speaker.speaker_id], np.int64)
        waveform = _session(path).run(None, inputs)[0].reshape(-1)
        return resample(waveform, config["audio"]["sample_rate"], self.sample_rate)

    def check(self, language: str, speaker: PiperSpeaker) -> None:
        """Raise TresseError where the file is missing, or the speaker lacks the language."""
        if language not in speaker.piper:
            known = ", ".join(speaker.piper)
            raise TresseError(f"voice {speaker.name} does not speak {language!r}: add a `piper` file (it has {known})")
        path = self.folder / speaker.piper[language]
        for file in (path, path.with_name(path.name + ".json")):
            if not file.is_file():
                raise TresseError(
                    f"voice {speaker.name}: there is no Piper voice {file}: "
                    "set TRESSE_MODELS, or `models` in the voices file, to the folder that holds piper/"
                )
        if speaker.speaker_id >= _config(path).get("num_speakers", 1):
            raise TresseError(
                f"voice {speaker.name}: {path.name} has no speaker {speaker.speaker_id}: give a smaller one"
            )

    def fingerprint(self, speaker: PiperSpeaker) -> str:
        """All that its speech depends on beside text and language: the files, what reads and runs, the settings."""
        for language in speaker.piper:
            self.check(language, speaker)
        files = [self.folder / file for _, file in sorted(speaker.piper.items())]
        digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
        versions = f"espeak-ng {version('espeakng-loader')} onnxruntime {version('onnxruntime')}"
        return f"{self.name} {digest.hexdigest()[:16]} {versions} {speaker}"


def token_ids(spoken: str, ids: Mapping[str, list[int]]) -> list[int]:
    """IPA -> ids with a pad behind each, between BEGIN and END; characters that the voice does not know are left out."""
    known = [mark for mark in unicodedata.normalize("NFD", spoken) if mark in ids]
    return [number for mark in [BEGIN, *known] for number in (*ids[mark], *ids[PAD])] + list(ids[END])


@functools.cache
def _config(path: Path) -> Mapping[str, Any]:
    return json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))


@functools.cache
def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # lengths are ever new: the arena would only grow
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
