"""Decoders that hang, crash, eat memory or reach for other files: a line for the user, and the next file is read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slm import decoding
from slm.audio import read_audio
from slm.errors import MachineError, TresseError
from tests.bundles import BRAID
from tests.slm.test_decoding import EXAMPLE, tone, wav_bytes

ROOT = BRAID.parents[2]
SLOW, BAD = "takes too long to decode", "not audio that can be read"
HOSTILE = {
    "python loop": ("while True: pass", SLOW),
    "loop in c": ("import itertools; sum(itertools.repeat(0))", SLOW),
    "abort": ("os.abort()", BAD),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", BAD),
    "exit": ("os._exit(0)", BAD),
    "memory": ("x = bytearray(3_000_000_000)", BAD),
    "memory in pieces": ("x = []\n    while True: x.append(bytes(10_000_000))", f"{SLOW}|{BAD}"),
    "another file": ("open('/etc/passwd').read()", BAD),
    "a new file": ("open('/tmp/tresse-was-here', 'w').write('x')", BAD),
    "a program": ("os.execv('/bin/sleep', ['sleep', '60'])", BAD),
    "noise": ("os.write(1, b'x' * 100); os.write(2, b'warning: id3 tag\\n' * 1000)", BAD),
    "half a message": ("send.__closure__[0].cell_contents.sendall(b'S\\xff'); os._exit(0)", BAD),
    "a huge message": (
        "send.__closure__[0].cell_contents.sendall(b'S' + b'\\xff' * 8); import time; time.sleep(600)",
        BAD,
    ),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No process of another test decodes."""
    decoding._end_all()
    yield
    decoding._end_all()


def replace_decoder(monkeypatch: pytest.MonkeyPatch, code: str, before: str = "") -> None:
    """Decoding processes run `code` once they have a file; before: what else is changed in them."""
    script = f"""
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from slm import decoder
load, decoder.CPU_SECONDS = decoder._load_everything, 0.3
def hostile(file, max_seconds, send):
    {code}
    return False
def load_everything():
    load()
    decoder._with_soundfile = decoder._with_av = hostile
decoder._load_everything = load_everything
{before}
decoder.serve(int(sys.argv[2]))
"""
    monkeypatch.setattr(decoding, "_SCRIPT", script)


@pytest.mark.parametrize(("code", "words"), HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_decoder_does_the_next_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: str, words: str
) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone()))
    with monkeypatch.context() as patch:
        replace_decoder(patch, code)
        with pytest.raises(TresseError, match=words) as caught:
            read_audio(tmp_path / "a.wav", max_seconds=60)
    assert str(tmp_path / "a.wav") in str(caught.value)
    decoding._end_all()
    assert len(read_audio(EXAMPLE)[0])
    assert capfd.readouterr() == ("", "")
    assert not Path("/tmp/tresse-was-here").exists()


UNLIMITED = """
import resource
setrlimit = resource.setrlimit
resource.setrlimit = lambda limit, most: None if limit == resource.RLIMIT_AS else setrlimit(limit, most)
decoder.MEMORY, decoder.CPU_SECONDS = 150_000_000, 30
"""
"""As on macOS: the system does not limit the address space."""


@pytest.mark.parametrize("piece", [100_000, 10_000_000])
def test_where_the_system_limits_no_memory_the_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone()))
    code = f"""x, most = [], decoder._most_memory() + 600_000_000
    while len(x) * {piece} < most: x.append(bytearray(b"x" * {piece}))
    raise decoder.Refused("took all it wanted")"""
    replace_decoder(monkeypatch, code, UNLIMITED)
    with pytest.raises(TresseError, match=BAD):
        read_audio(tmp_path / "a.wav")
    monkeypatch.undo()
    decoding._end_all()
    assert len(read_audio(EXAMPLE)[0])


def test_memory_of_one_recording_is_no_fault_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given back between two recordings is not counted twice, and what a sound one takes is below the limit."""
    script = decoding._SCRIPT.replace("from slm", "from slm import decoder; decoder.MEMORY = 700_000_000; from slm")
    monkeypatch.setattr(decoding, "_SCRIPT", script)
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(60)))
    decoding.start()
    process = decoding._idle[0]
    for _ in range(20):
        assert len(read_audio(tmp_path / "a.wav")[0]) == 60 * 24000
    assert decoding._idle == [process]


def test_a_decoder_that_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone()))
    replace_decoder(monkeypatch, "import time; time.sleep(600)")
    decoding.start()
    decoding._idle[0]._socket.settimeout(0.5)
    with pytest.raises(TresseError, match="takes too long to decode"):
        read_audio(tmp_path / "a.wav")


def test_longer_recordings_have_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = decoding._SCRIPT.replace("from slm", "import slm.decoder; slm.decoder.CPU_SECONDS = 0.02; from slm")
    monkeypatch.setattr(decoding, "_SCRIPT", script)
    soundfile.write(str(tmp_path / "a.mp3"), np.tile(tone(10, 16000), 60), 16000)  # 0.3 s of work and more
    assert abs(len(read_audio(tmp_path / "a.mp3")[0]) - 600 * 16000) < 16000


def test_a_process_serves_many_files_and_threads_do_not_mix_them_up(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.wav").write_bytes(wav_bytes(tone(0.5 + number / 10)))
    lengths: dict[int, set[int]] = {number: set() for number in range(8)}

    def read(number: int) -> None:
        for _ in range(5):
            lengths[number].add(len(read_audio(tmp_path / f"{number}.wav")[0]))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lengths[number] for number in range(8)] == [{int((0.5 + number / 10) * 24000)} for number in range(8)]
    assert len(decoding._idle) <= decoding.WAITING


def test_a_refused_file_costs_no_process() -> None:
    decoding.start()
    process = decoding._idle[0]
    for _ in range(3):
        with pytest.raises(TresseError, match="not audio"):
            read_audio(Path(__file__))
    assert decoding._idle == [process]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ended_meanwhile_is_no_fault_of_a_file(number: int) -> None:
    read_audio(EXAMPLE)
    for process in decoding._idle:
        process._child.send_signal(number)
        process._child.wait(10)
    assert len(read_audio(EXAMPLE)[0])


def test_a_removed_working_folder_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.syspath_prepend("")
    assert len(read_audio(EXAMPLE)[0])


def test_without_room_for_a_process_the_machine_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(decoding.subprocess, "Popen", refuse)
    with pytest.raises(MachineError, match="cannot start a decoder"):
        read_audio(EXAMPLE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_parent(number: signal.Signals) -> None:
    code = "from slm import decoding; decoding.start(); print(decoding._idle[0]._child.pid, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    parent.send_signal(number)
    parent.wait(10)
    wait_until(lambda: not child.exists() or "Z" in (child / "stat").read_text().rsplit(")", 1)[1][:4])


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
