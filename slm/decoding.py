"""Audio files -> samples, for files that nobody has checked.

What is opened is the file that was named, by its descriptor: never a name that the file carries, nor a format that its name
or content asks for beyond a list. Decoding happens in a process of its own (`slm.decoder`), which can open nothing else and
is ended when it takes too long or too much memory. Lengths in headers are not believed: decoding stops where the limit is
passed. Whatever a decoder raises, and however its process ends, becomes one `TresseError`.

Costs 0.2 s for the first file; then a process of 60 MB waits for the next one, and ends with this one.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from slm.decoder import (
    BEGIN,
    BLOCK,
    END,
    FRAMES,
    HEADER,
    LIMIT,
    MAX_CHANNELS,
    MAX_SAMPLES,
    NOT_AUDIO,
    READY,
    REFUSED,
    SHAPE,
)
from slm.errors import MachineError, TresseError, cannot_read, writing

MAX_PIPE = 256_000_000
"""Bytes that are read from a pipe."""
SILENCE = 60.0
"""s without a word from a decoding process after which it is ended: a disk or a network drive may be slow."""
GRACE = 1.0
"""s that a process may take to end by itself."""
AT_ONCE = max(2, os.cpu_count() or 1)
"""Processes that decode side by side; others wait."""
TOO_SLOW = "takes too long to decode: export it as wav"
WAITING = 2
"""Processes that are kept when there is nothing to decode."""
_SCRIPT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from slm.decoder import serve; serve(int(sys.argv[2]))"
)


def decode(path: Path, max_seconds: float | None = None) -> tuple[np.ndarray, int]:
    """An audio file as float32 [samples, channels] and its rate in Hz, at most `max_seconds` + SLACK of it and a block.

    Raises TresseError where it cannot be opened, is no audio of a format of the list, or passes the limits; MachineError
    where no file could be read.
    """
    with _open(path) as file, _slots:
        while True:
            process = _take()
            try:
                samples, rate = process.decode(file.fileno(), max_seconds)
            except _Refused as error:
                _give_back(process)
                raise TresseError(f"{path} {error}") from error
            except OSError as error:
                slow = process.end() == -signal.SIGPROF or isinstance(error, TimeoutError)
                if process.used and not slow:
                    continue  # it may have ended before, or have kept memory of other files
                raise TresseError(f"{path} {TOO_SLOW if slow else NOT_AUDIO}") from error
            except BaseException:
                process.end()
                raise
            _give_back(process)
            return samples, rate


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
        file = path.open("rb")
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return file
        with file:
            return _all_of(file, path)
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:  # a null character in the name
        raise TresseError(f"no such file: {path}") from error


def _all_of(pipe: BinaryIO, path: Path) -> BinaryIO:
    """What a pipe gives, as a file without a name."""
    size = 0
    with writing(tempfile.gettempdir()):
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            while data := pipe.read(1 << 20):
                file.write(data)
                size += len(data)
                if size > MAX_PIPE:
                    raise TresseError(f"{path} gives more than {MAX_PIPE // 1_000_000} MB: cut it shorter")
            if size == 0:
                raise TresseError(f"{path} is empty: record or export it again")
            file.flush()
        except BaseException:
            file.close()
            raise
    return file  # type: ignore[return-value]


class _Refused(Exception):
    """The process says why it does not read a recording."""


class _Process:
    """A decoding process and the socket to it. Raises MachineError where it does not start."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(SILENCE)
        self._socket = ours
        self.used = False
        path = sys.path
        with suppress(FileNotFoundError):  # the working folder was removed
            path = [os.path.abspath(folder) for folder in sys.path]
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, json.dumps(path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libmpg123 and others print what they think of a file
                pass_fds=[theirs.fileno()],
                cwd=os.sep,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            ours.close()
            raise MachineError(f"cannot start a decoder ({error.strerror}): close other programs") from error
        finally:
            theirs.close()
        try:
            started = self._receive()[0] == READY
        except OSError:
            started = False
        if not started:
            self.end()
            raise MachineError("the decoder does not start: free some memory, or reinstall soundfile and av")

    def decode(self, descriptor: int, max_seconds: float | None) -> tuple[np.ndarray, int]:
        """float32 [samples, channels] and the rate. Raises _Refused, and OSError where the process ends or is silent."""
        limit = math.nan if max_seconds is None else float(max_seconds)
        socket.send_fds(self._socket, [LIMIT.pack(limit)], [descriptor])
        blocks: list[np.ndarray] = []
        rate, channels, count = 16000, 1, 0
        while True:
            kind, data = self._receive()
            if kind == BEGIN:
                rate, channels = SHAPE.unpack(data)
                blocks, count = [], 0
            elif kind == BLOCK:
                blocks.append(np.frombuffer(data, np.float32).reshape(-1, channels))
                count += blocks[-1].size
                if count > MAX_SAMPLES + FRAMES * MAX_CHANNELS:
                    raise OSError("more than was asked for")
            elif kind == END:
                return np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32), rate
            elif kind == REFUSED:
                raise _Refused(data.decode())

    def _receive(self) -> tuple[bytes, bytearray]:
        """A message: its kind and its bytes. Raises OSError where none comes."""
        kind, size = HEADER.unpack(self._bytes(HEADER.size))
        if size > 1 << 30:
            raise OSError("no message")
        return kind, self._bytes(size)

    def _bytes(self, size: int) -> bytearray:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            received = self._socket.recv_into(view[done:])
            if received == 0:
                raise ConnectionError("the process has ended")
            done += received
        return data

    def end(self) -> int:
        """End it; the status that it ends or has ended with."""
        self._socket.close()
        try:
            return self._child.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()


_slots = threading.BoundedSemaphore(AT_ONCE)
_lock = threading.Lock()
_idle: list[_Process] = []


def start() -> None:
    """Have a process ready, so that the first file does not wait for it."""
    with _lock:
        _idle.append(_Process())


def _take() -> _Process:
    with _lock:
        if _idle:
            return _idle.pop()
    return _Process()


def _give_back(process: _Process) -> None:
    process.used = True
    with _lock:
        if len(_idle) < WAITING:
            _idle.append(process)
            return
    process.end()


def _forget() -> None:
    """In a forked process: the parent's decoding processes are not ours."""
    global _lock, _slots
    _lock, _slots = threading.Lock(), threading.BoundedSemaphore(AT_ONCE)
    _idle.clear()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget)
