"""How a command ends: at once when it is asked to, with nothing of it left in temporary folders."""

from __future__ import annotations

import _thread
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
AGAIN = 0.2
"""s after which an interruption that was swallowed is repeated."""
PREFIX = "tresse-of-"
LOCK = ".lock"


class Ended(SystemExit):
    """A signal asks to end: every `finally` runs on the way out."""


@contextmanager
def ending_when_asked() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the program as Ctrl+C does; a second one ends it as it is.

    Python drops an exception that a signal raises within a callback of C code, or while an object is deleted: then it is
    raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL}
    dropped, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        yield
    finally:
        sys.unraisablehook = dropped
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Ended(128 + number)


def _raise_again(dropped: Any) -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _later(signal.SIGINT)
    elif issubclass(dropped.exc_type, Ended) and dropped.exc_value is not None:
        number = int(dropped.exc_value.code) - 128
        signal.signal(number, _end)
        _later(number)
    else:
        sys.__unraisablehook__(dropped)


def _later(number: int) -> None:
    def send() -> None:
        time.sleep(AGAIN)
        os.kill(os.getpid(), number)

    _thread.start_new_thread(send, ())  # threading waits for a thread to begin: the signal could come meanwhile


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """All temporary files of this process, Gradio's too, in one folder that goes with it.

    Folders that a killed process left are removed first: nobody holds their lock any more.
    """
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        gradio = os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "gradio"))
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            if gradio == str(folder / "gradio"):
                del os.environ["GRADIO_TEMP_DIR"]
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(where: Path) -> None:
    """Remove the folders of processes that are gone. One that is just being made has no lock yet, and is left alone."""
    for folder in where.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / LOCK).open() as lock:
            if os.fstat(lock.fileno()).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
