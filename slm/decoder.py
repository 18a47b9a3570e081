"""What a decoding process runs: one recording after another, each given as an open descriptor (see `slm.decoding`).

libsndfile reads WAV, FLAC, OGG, MP3, AIFF, CAF and AU; PyAV, which brings FFmpeg's decoders, the containers of phones and
browsers. Both are large C libraries reading what nobody has checked, so the process is confined: it can open no file beside
the recording, write none, and has MEMORY bytes and CPU_SECONDS of processor time, after which the system ends it, in
whatever loop it is. What the decoders print goes nowhere.

A recording comes as 8 bytes (the limit of its length in s, NaN for none) with its descriptor. Back go messages, each a kind
and a size: BEGIN (rate, channels), BLOCK (float32 samples, channels side by side), then END or REFUSED (why). A second BEGIN
takes the first one back.
"""

from __future__ import annotations

import io
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

MAX_CHANNELS = 8
RATES = range(1000, 384001)
"""Hz."""
MAX_SAMPLES = 400_000_000
"""Of all channels together, in a file without a limit of its length: 1.6 GB."""
SLACK = 0.25
"""s that encoders may add to a recording (priming and padding of AAC and MP3)."""
FRAMES = 1 << 16
"""Frames decoded at a time."""
MEMORY = 1_000_000_000
"""Bytes of address space, the libraries included (where the system counts it), and of memory beyond what the process began
with: macOS knows no limit, so a thread watches it."""
WATCH = 0.01
"""s between two looks at the memory in use, while a recording is decoded."""
CPU_SECONDS = 5.0
"""s of processor time that a recording may take, and one more for every SPEED s that are decoded of it."""
SPEED = 20.0
SNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "CAF", "AU"}
AV_FORMATS = "aac,aiff,asf,caf,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,wav,w64,amr,au"
"""FFmpeg's demuxers that may be chosen: none of them opens another file."""

READY, BEGIN, BLOCK, END, REFUSED = b"R", b"H", b"S", b".", b"E"
HEADER = struct.Struct("<cQ")
SHAPE = struct.Struct("<II")
LIMIT = struct.Struct("<d")
NOT_AUDIO = "is not audio that can be read: give wav, flac, mp3, ogg, m4a or webm"

Send = Callable[[bytes, bytes], None]
"""Called with a message's kind and its bytes."""


class Refused(Exception):
    """Why a recording is not read; the text goes on after the file's name."""


def serve(descriptor: int) -> None:
    """Decode what comes over a socket until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group: the parent decides
    connection = socket.socket(fileno=descriptor)

    def send(kind: bytes, data: bytes = b"") -> None:
        connection.sendall(HEADER.pack(kind, len(data)) + data)

    _load_everything()
    _confine()
    decoding = _watch_memory()
    send(READY)
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, LIMIT.size, 1)
        if not request or not descriptors:
            return
        (limit,) = LIMIT.unpack(request)
        decoding.set()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF, which nobody catches, ends the process
        with os.fdopen(descriptors[0], "rb") as file:
            try:
                decode_file(file, None if math.isnan(limit) else limit, send)
                send(END)
            except Refused as error:
                send(REFUSED, str(error).encode())
        signal.setitimer(signal.ITIMER_PROF, 0)
        decoding.clear()


def decode_file(file: BinaryIO, max_seconds: float | None, send: Send) -> None:
    """Decode by the first library that can, at most `max_seconds` + SLACK and FRAMES. Raises Refused where none can."""
    for read in (_with_soundfile, _with_av):
        file.seek(0)
        try:
            if read(file, max_seconds, send):
                return
        except (Refused, MemoryError):
            raise
        except Exception:  # each decoder raises whatever it runs into
            continue
    raise Refused(NOT_AUDIO)


def _load_everything() -> None:
    """Decode a little by each library: afterwards no module can be opened any more."""
    import soundfile

    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(1600, np.float32), 16000, format="WAV", subtype="PCM_16")
    for read in (_with_soundfile, _with_av):
        sound.seek(0)
        if not read(sound, None, _drop):
            raise RuntimeError("a decoder does not work")


def _drop(kind: bytes, data: bytes) -> None:
    """What the first sound becomes is of no interest."""


def _confine() -> None:
    """No file beside the one that comes, nothing written, so much memory."""
    import resource

    free = os.dup(0)
    os.close(free)
    for limit, most in (
        (resource.RLIMIT_NOFILE, free + 1),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, MEMORY),
    ):
        with suppress(ValueError, OSError):  # not every system knows every limit
            resource.setrlimit(limit, (most, most))


def _watch_memory() -> threading.Event:
    """While the event that is returned is set, the process ends once it has taken more than MEMORY. FFmpeg and libsndfile
    work without Python's lock, so that the thread runs beside them."""
    decoding, most = threading.Event(), _most_memory() + MEMORY

    def watch() -> None:
        while decoding.wait():
            if _most_memory() > most:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(WATCH)

    threading.Thread(target=watch, daemon=True).start()
    return decoding


def _most_memory() -> int:
    """The most bytes of memory that this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _Sent:
    """Blocks of samples on their way, up to a limit that is enforced by what was decoded."""

    def __init__(self, send: Send, rate: int, channels: int, max_seconds: float | None) -> None:
        if not 1 <= channels <= MAX_CHANNELS:
            raise Refused(f"has {channels} channels: give at most {MAX_CHANNELS}")
        if rate not in RATES:
            raise Refused(f"has a sample rate of {rate} Hz: give {RATES[0]:,} to {RATES[-1]:,} Hz")
        self.rate, self.channels, self.count = rate, channels, 0
        self.most = MAX_SAMPLES // channels
        if max_seconds is not None:
            self.most = min(self.most, int((max_seconds + SLACK) * rate))
        self._send = send
        send(BEGIN, SHAPE.pack(rate, channels))

    def add(self, block: np.ndarray) -> bool:
        """float32 [n, channels]; whether there is room for more: what lies behind the limit is not decoded."""
        self._send(BLOCK, block.astype(np.float32, copy=False).tobytes())
        self.count += len(block)
        left, _ = signal.getitimer(signal.ITIMER_PROF)
        if left > 0:
            signal.setitimer(signal.ITIMER_PROF, left + len(block) / self.rate / SPEED)
        return self.count <= self.most


def _with_soundfile(file: BinaryIO, max_seconds: float | None, send: Send) -> bool:
    """By libsndfile; False where it does not know the file, or FFmpeg knows it better."""
    import soundfile

    if _is_chained(file):
        return False  # libsndfile reads the first stream of several
    file.seek(0)
    with soundfile.SoundFile(_Nameless(file)) as sound:
        if sound.format not in SNDFILE_FORMATS:
            raise Refused(f"is {sound.format} audio: give wav, flac, mp3, ogg, m4a or webm")
        sent = _Sent(send, int(sound.samplerate), sound.channels, max_seconds)
        while len(block := sound.read(FRAMES, dtype="float32", always_2d=True)):
            if not sent.add(block):
                break
    return sent.count > 0  # a header may say that there is nothing


def _with_av(file: BinaryIO, max_seconds: float | None, send: Send) -> bool:
    """By FFmpeg. Raises Refused where there is no audio in it, and what PyAV raises."""
    import av
    from av.audio.resampler import AudioResampler

    options = {"format_whitelist": AV_FORMATS, "protocol_whitelist": ""}
    with av.open(
        _Nameless(file), "r", metadata_errors="ignore", options=options, container_options=options
    ) as container:
        if not container.streams.audio:
            raise Refused("has no audio in it: give a recording of speech")
        stream = container.streams.audio[0]
        context = stream.codec_context
        sent = _Sent(send, int(context.sample_rate or 16000), int(context.channels), max_seconds)
        resampler = AudioResampler(format="flt", rate=sent.rate)

        def add(frame: Any) -> bool:
            parts = [part.to_ndarray().reshape(-1, sent.channels) for part in resampler.resample(frame)]
            return all([sent.add(part) for part in parts])

        for frame in container.decode(stream):
            frame.pts = None
            if not add(frame):
                return True
        add(None)
    return True


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
