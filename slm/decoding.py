"""Audio files -> samples, for files that nobody has checked.

What is opened is the file that was named, by its descriptor: never a name that the file carries, nor a format that its name
or content asks for beyond the list. libsndfile reads WAV, FLAC, OGG, MP3, AIFF, CAF and AU; PyAV, which brings FFmpeg's
decoders, the containers of phones and browsers. Lengths in headers are not believed: decoding stops where the limit is
passed. Channels, rates and the size of what is decoded are limited before anything is decoded. Whatever a decoder raises
becomes one `TresseError`.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from slm.errors import TresseError

MAX_CHANNELS = 8
RATES = range(1000, 384001)
"""Hz."""
MAX_SAMPLES = 400_000_000
"""Of all channels together, in a file without a limit of its length: 1.6 GB."""
SLACK = 0.25
"""s that encoders may add to a recording (priming and padding of AAC and MP3)."""
MAX_PIPE = 256_000_000
"""Bytes that are read from a pipe."""
BLOCK = 1 << 16
"""Frames decoded at a time."""
SNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "CAF", "AU"}
AV_FORMATS = "aac,aiff,asf,caf,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,wav,w64,amr,au"
"""FFmpeg's demuxers that may be chosen: none of them opens another file."""


def decode(path: Path, max_seconds: float | None = None) -> tuple[np.ndarray, int]:
    """An audio file as float32 [samples, channels] and its rate in Hz, at most `max_seconds` + SLACK of it and a block.

    Raises TresseError where it cannot be opened, is no audio of a format of the list, or passes the limits.
    """
    with _open(path) as file:
        for read in (_with_soundfile, _with_av):
            file.seek(0)
            try:
                decoded = read(file, str(path), max_seconds)
            except TresseError:
                raise
            except Exception:  # each decoder raises whatever it runs into
                decoded = None
            if decoded is not None:
                return decoded
    raise TresseError(f"{path} is not audio that can be read: give wav, flac, mp3, ogg, m4a or webm")


def mono(samples: np.ndarray) -> np.ndarray:
    """[samples, channels] -> their mean [samples]; the loudest channel where most of the sound would cancel."""
    if samples.shape[1] == 1 or len(samples) == 0:
        return samples[:, 0]
    mean = samples.mean(axis=1)
    energy = np.square(samples, dtype=np.float64).mean(axis=0)
    if np.square(mean, dtype=np.float64).mean() < 0.16 * energy.max():  # of one channel alone the mean keeps 1 / n**2
        silent = energy < 1e-3 * energy.max()
        return samples[:, ~silent].mean(axis=1) if (~silent).sum() == 1 else samples[:, int(energy.argmax())]
    return mean


def _open(path: Path) -> BinaryIO:
    """The file, to read from and to seek in; of a pipe all that comes. Raises TresseError where it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        mode = os.fstat(descriptor).st_mode
        file = os.fdopen(descriptor, "rb")
    except OSError as error:
        raise TresseError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    if stat.S_ISREG(mode):
        return file
    with file:
        data = file.read(MAX_PIPE + 1)
    if not data:
        raise TresseError(f"{path} is empty: record or export it again")
    if len(data) > MAX_PIPE:
        raise TresseError(f"{path} gives more than {MAX_PIPE // 1_000_000} MB: cut it shorter")
    return io.BytesIO(data)


class _Kept:
    """Blocks of samples up to a limit, which is enforced by what was decoded."""

    def __init__(self, name: str, rate: int, channels: int, max_seconds: float | None) -> None:
        if not 1 <= channels <= MAX_CHANNELS:
            raise TresseError(f"{name} has {channels} channels: give at most {MAX_CHANNELS}")
        if rate not in RATES:
            raise TresseError(f"{name} has a sample rate of {rate} Hz: give {RATES[0]:,} to {RATES[-1]:,} Hz")
        self.name, self.rate, self.channels = name, rate, channels
        self.most = MAX_SAMPLES // channels
        if max_seconds is not None:
            self.most = min(self.most, int((max_seconds + SLACK) * rate))
        self._blocks: list[np.ndarray] = []
        self._count = 0

    def add(self, block: np.ndarray) -> bool:
        """float32 [n, channels]; whether there is room for more: what lies behind the limit is not decoded."""
        self._blocks.append(block)
        self._count += len(block)
        return self._count <= self.most

    def samples(self) -> np.ndarray:
        """All of them: float32 [samples, channels]."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros((0, self.channels), np.float32)


def _with_soundfile(file: BinaryIO, name: str, max_seconds: float | None) -> tuple[np.ndarray, int] | None:
    """By libsndfile; None where it does not know the file, or FFmpeg knows it better."""
    import soundfile

    if _is_chained(file):
        return None  # libsndfile reads the first stream of several
    file.seek(0)
    with soundfile.SoundFile(_Nameless(file)) as sound:
        if sound.format not in SNDFILE_FORMATS:
            raise TresseError(f"{name} is {sound.format} audio: give wav, flac, mp3, ogg, m4a or webm")
        kept = _Kept(name, int(sound.samplerate), sound.channels, max_seconds)
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            if not kept.add(block):
                break
    samples = kept.samples()
    return (samples, kept.rate) if len(samples) else None  # a header may say that there is nothing


def _with_av(file: BinaryIO, name: str, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """By FFmpeg. Raises TresseError where there is no audio in it, and what PyAV raises."""
    import av
    from av.audio.resampler import AudioResampler

    options = {"format_whitelist": AV_FORMATS, "protocol_whitelist": ""}
    with av.open(
        _Nameless(file), "r", metadata_errors="ignore", options=options, container_options=options
    ) as container:
        if not container.streams.audio:
            raise TresseError(f"{name} has no audio in it: give a recording of speech")
        stream = container.streams.audio[0]
        context = stream.codec_context
        kept = _Kept(name, int(context.sample_rate or 16000), int(context.channels), max_seconds)
        resampler = AudioResampler(format="flt", rate=kept.rate)

        def add(frame: Any) -> bool:
            return all([kept.add(part.to_ndarray().reshape(-1, kept.channels)) for part in resampler.resample(frame)])

        for frame in container.decode(stream):
            frame.pts = None
            if not add(frame):
                return kept.samples(), kept.rate
        add(None)
    return kept.samples(), kept.rate


class _Nameless:
    """A file without a name: decoders choose a format by what a name ends in."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.readinto = file.readinto  # type: ignore[attr-defined]

    def write(self, data: bytes) -> int:
        """Nothing is ever written."""
        raise OSError("this file is only read")


def _is_chained(file: BinaryIO) -> bool:
    """Whether an Ogg file holds streams one after another: a page that begins a stream follows one that ends another."""
    ended = False
    while len(header := file.read(27)) == 27 and header.startswith(b"OggS"):
        table = file.read(header[26])
        if ended and header[5] & 2:
            return True
        ended = ended or bool(header[5] & 4)
        file.seek(sum(table), os.SEEK_CUR)
    return False
