"""Worker processes leave: after the work, on Ctrl+C, and when their parent is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from train.tools.workers import _Deaf, worker_pool

SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a script's background would not hear it
from tests.train.tools.test_workers import note_and_sleep
from train.tools.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        list(pool.map(note_and_sleep, [sys.argv[1]] * 200))
"""


EARLY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from train.tools.workers import worker_pool
if __name__ == "__main__":
    try:
        with worker_pool(2) as pool:
            print("begin", flush=True)
            list(pool.map(abs, range(10**6)))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def note_and_sleep(folder: str) -> int:
    """Leave a file named after this process; take a while."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(0.5)
    return os.getpid()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_results_come_in_order_and_processes_leave(tmp_path: Path) -> None:
    with worker_pool(2) as pool:
        assert list(pool.map(abs, [-3, 2, -1])) == [3, 2, 1]
        pids = set(pool.map(note_and_sleep, [str(tmp_path)] * 2))
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("how", "whom"), [("SIGINT", "parent"), ("SIGINT", "group"), ("SIGKILL", "parent")])
def test_nobody_stays_behind(tmp_path: Path, how: str, whom: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    if whom == "group":
        os.killpg(process.pid, getattr(signal, how))
    else:
        process.send_signal(getattr(signal, how))
    process.wait(timeout=20)
    assert process.returncode != 0
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 1.0])
def test_ctrl_c_while_workers_start_prints_nothing_of_theirs(after: float) -> None:
    """Their interpreters begin before any code of ours could ignore it."""
    process = subprocess.Popen(
        [sys.executable, "-c", EARLY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""


class _Interrupted(_Deaf):
    """Ctrl+C reaches its parent while it is being started, through a thread that does not block it."""

    _Popen = staticmethod(lambda process: (_interrupt(), SpawnProcess._Popen(process))[1])


def _interrupt() -> None:
    """SIGINT to this process, taken by another thread; returns once the main thread has had time to notice."""
    thread = threading.Thread(
        target=lambda: (
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]),
            signal.pthread_kill(threading.get_ident(), signal.SIGINT),
        )
    )
    thread.start()
    thread.join()
    time.sleep(0.05)


def test_ctrl_c_while_a_worker_is_started_waits_until_it_has_started() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = _Interrupted(target=time.sleep, args=(30,))
    try:
        with pytest.raises(KeyboardInterrupt):
            process.start()
        assert process.is_alive()
        assert process in multiprocessing.active_children()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        if process.pid is not None:
            process.kill()
            process.join()
