"""Waveforms: read, check, resample, write. A waveform is float32 mono [samples] in -1..1.

Files are decoded in `slm.decoding`.
"""

from __future__ import annotations

import functools
import io
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from slm.decoder import MAX_CHANNELS, SLACK
from slm.decoding import decode, mono
from slm.errors import TresseError, writing

MIN_SECONDS = 0.3
"""Shorter than any word: nothing could be heard in it."""
QUIETEST = 1e-4
"""Largest amplitude of what counts as silent."""
MARGIN = 0.02
"""s on either side of a piece that resampling looks at."""
SUFFIXES = frozenset({".wav", ".wave", ".w64", ".rf64", ".flac", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"})
SUFFIXES |= {".ogg", ".oga", ".opus", ".mp3", ".aac", ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".webm", ".mka", ".mkv"}
SUFFIXES |= {".amr", ".wma"}
"""What names of audio files end in. A file that is named is read whatever it is called; a folder is searched for these."""


def read_audio(path: str | os.PathLike[str], max_seconds: float | None = None) -> tuple[np.ndarray, int]:
    """Read an audio file as float32 mono [samples] and its sample rate in Hz.

    Raises TresseError where the file is missing, empty, not audio, silent, damaged or longer than `max_seconds`.
    """
    path = Path(path)
    samples, sample_rate = decode(path, max_seconds)
    if max_seconds is not None and len(samples) <= (max_seconds + SLACK) * sample_rate:
        samples = samples[: int(max_seconds * sample_rate)]  # what an encoder added is not the speaker's fault
    return check_waveform(samples, sample_rate, max_seconds, name=str(path)), sample_rate


def check_waveform(
    waveform: np.ndarray, sample_rate: int, max_seconds: float | None = None, name: str = "the prompt"
) -> np.ndarray:
    """The waveform as float32 mono [samples]. Integers are scaled to -1..1; of [samples, channels] or [channels, samples]
    the mean is taken, or the loudest channel where the others would cancel it (`slm.decoding.mono`).

    Raises TresseError for NaN or infinite samples, silence, an odd rate, or a length outside 0.3 s..`max_seconds`.
    """
    waveform = np.asarray(waveform)
    if not 1000 <= sample_rate <= 384000 or sample_rate != int(sample_rate):
        raise TresseError(f"{name} has a sample rate of {sample_rate} Hz: give a whole number, 1,000 to 384,000 Hz")
    if waveform.ndim > 2 or waveform.ndim == 0:
        raise TresseError(f"{name} has {waveform.ndim} dimensions: give [samples] or [samples, channels]")
    if np.issubdtype(waveform.dtype, np.integer):
        limits = np.iinfo(waveform.dtype)
        middle = 0.0 if limits.min else (limits.max + 1) / 2
        waveform = (waveform - middle) / (limits.max - middle)
    if waveform.ndim == 2:
        waveform = mono(waveform.T if len(waveform) <= MAX_CHANNELS < waveform.shape[1] else waveform)
    seconds = len(waveform) / sample_rate
    if seconds < MIN_SECONDS:
        raise TresseError(f"{name} lasts {seconds:.2f} s: say at least a few words ({MIN_SECONDS} s or more)")
    _check_length(seconds, max_seconds, name)
    if not np.isfinite(waveform).all():
        raise TresseError(f"{name} contains samples that are not numbers (NaN or infinity): export it again")
    if float(np.abs(waveform).max()) < QUIETEST:
        raise TresseError(f"no speech found in {name}: it is silent; check the microphone or the file")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _check_length(seconds: float, max_seconds: float | None, name: str) -> None:
    if max_seconds is not None and seconds > max_seconds:
        raise TresseError(f"{name} lasts over {max_seconds:.0f} s: the limit is {max_seconds:.0f} s; cut it shorter")


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """float32 [samples] at `rate` Hz -> float32 [ceil(samples * new_rate / rate)] at `new_rate` Hz (windowed sinc)."""
    if rate == new_rate or not len(waveform):
        return waveform
    import torch

    with torch.inference_mode():
        return _resampler(rate, new_rate)(torch.from_numpy(np.asarray(waveform, np.float32))).numpy()


def _ratio(rate: int, new_rate: int) -> tuple[int, int]:
    """The rates as smallest whole numbers; of odd rates nearly, since a kernel for each output phase would be huge."""
    if max(rate, new_rate) // math.gcd(rate, new_rate) > 1000:
        rate, new_rate = round(rate / 50), round(new_rate / 50)
    divisor = math.gcd(rate, new_rate)
    return rate // divisor, new_rate // divisor


@functools.lru_cache(maxsize=16)
def _resampler(rate: int, new_rate: int):  # type: ignore[no-untyped-def]
    import torchaudio

    return torchaudio.transforms.Resample(*_ratio(rate, new_rate))


class ResampleStream:
    """`resample` for chunks of any size: the same samples, held back by `MARGIN` s."""

    def __init__(self, rate: int, new_rate: int) -> None:
        self._rate, self._new_rate = rate, new_rate
        self._step, self._new_step = _ratio(rate, new_rate)
        self._margin = math.ceil(MARGIN * rate / self._step)
        """In steps: the shortest pieces whose lengths are whole numbers of samples at both rates."""
        self._recent = np.zeros(0, np.float32)
        self._left = 0
        """Steps at the beginning of what is kept that were given out before."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> float32 [k] that no later sample can change."""
        if self._rate == self._new_rate:
            return samples
        self._recent = np.concatenate([self._recent, samples])
        certain = len(self._recent) // self._step - self._margin
        if certain <= self._left:
            return np.zeros(0, np.float32)
        out = resample(self._recent, self._rate, self._new_rate)[self._left * self._new_step : certain * self._new_step]
        dropped = max(0, certain - self._margin)
        self._recent, self._left = self._recent[dropped * self._step :], certain - dropped
        return out

    def flush(self) -> np.ndarray:
        """The rest: nothing follows."""
        if self._rate == self._new_rate:
            return np.zeros(0, np.float32)
        out = resample(self._recent, self._rate, self._new_rate)[self._left * self._new_step :]
        self._recent, self._left = self._recent[:0], 0
        return out


def write_wav(path: str | os.PathLike[str], waveform: np.ndarray, sample_rate: int) -> None:
    """Write float32 [samples] as a 16-bit WAV, atomically: a full disk leaves no half file behind.

    Raises MachineError for a full disk, a read-only folder and the like, TresseError for a name that cannot be written.
    """
    import soundfile

    path = Path(path)
    sound = io.BytesIO()  # libsndfile does not say why it could not write
    soundfile.write(sound, np.clip(waveform, -1, 1), sample_rate, subtype="PCM_16", format="WAV")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(sound.getbuffer())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
