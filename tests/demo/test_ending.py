"""How commands end: by Ctrl+C, SIGTERM and worse, with open pages, and what they leave behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import ending, service, tending
from demo.app import start
from demo.cli import main
from demo.programs import Programs
from tests.bundles import BRAID
from tests.demo.test_cli import refused
from tests.fake_bundle import FakeBundle
from tests.talker import Talker

ROOT = BRAID.parents[2]
SERVER = """
import signal, sys, tempfile
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a script's background would not hear it
from pathlib import Path
import slm.bundle
from tests.fake_bundle import FakeBundle
bundle = FakeBundle(Path(sys.argv[1]), real_time_factor=1.0)
slm.bundle.Bundle.load = lambda *_: bundle
import demo.app
begin = demo.app.start
demo.app.start = lambda bundle, host, port, *rest: begin(bundle, host, 0, *rest)
from demo.cli import main
main(["demo"])
"""


def until(true: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Server:
    """`tresse demo` with a stand-in bundle, and everything temporary of it in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        environment = os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        environment.pop("GRADIO_TEMP_DIR", None)
        command = [sys.executable, "-c", SERVER, str(folder / "bundle")]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def say_something(self) -> None:
        """A program's prompt and the reply to it lie in files."""
        from gradio_client import Client, handle_file

        client = Client(self.url, verbose=False)
        prompt = BRAID / "examples" / "en-1.flac"
        client.predict(handle_file(str(prompt)), target="fr", max_seconds=1, api_name="/continue_story")
        assert len(self.sounds()) >= 2

    def sounds(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.suffix in (".wav", ".flac")]

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()  # a server that does not end would keep its port from other tests


def test_ctrl_c_ends_a_server_without_a_trace(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.say_something()
    server.end(signal.SIGINT)
    assert server.process.returncode == 0
    assert list(server.temporary.glob("tresse*")) == server.sounds() == []
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


def test_what_a_killed_server_left_goes_with_the_next_start_and_sigterm_leaves_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.say_something()
    server.end(signal.SIGKILL)
    assert server.sounds()
    again = Server(tmp_path)
    assert again.sounds() == []
    again.say_something()
    again.end(signal.SIGTERM)
    assert again.process.returncode == 143
    assert list(again.temporary.glob("tresse*")) == again.sounds() == []


def test_a_folder_in_use_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    (tmp_path / "tresse-of-nobody").mkdir()
    (tmp_path / "tresse-of-nobody" / ".lock").touch()
    (tmp_path / "another").mkdir()
    with ending.temporary_folder() as first:
        assert Path(tempfile.mkdtemp()).parent == first
        assert Path(os.environ["GRADIO_TEMP_DIR"]).parent == first
        ending._sweep(tmp_path)
        assert first.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["another", first.name])
    assert [path.name for path in tmp_path.iterdir()] == ["another"]
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_an_open_page_and_a_reply_do_not_hold_the_server_up(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=1.0, reply_seconds=30)
    served, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    pages = [Talker(url) for _ in range(3)]
    assert pages[0].problem("settings", max_seconds=30) is None
    pages[0].do("example", number=0)
    pages[0].wait("speaking")
    began = time.monotonic()
    served.close()
    assert time.monotonic() - began < 2.5  # a page without an answer would hold it for 5 s
    until(lambda: bundle.active == 0, 10)
    for page in pages:
        page.until(lambda page=page: page.closed is not None)


@pytest.fixture
def calm() -> Iterator[None]:
    """Signals end the program, those included that a script's background or nohup has it ignore."""
    usual = {
        signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL,
    }  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    with ending.ending_when_asked():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_run_every_finally(calm: None, number: int) -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as caught:
        work()
    assert cleaned
    assert caught.value.code == 128 + number


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interruption_within_a_callback_of_c_is_not_lost(calm: None, number: int, raised: type) -> None:
    """Python prints "Exception ignored" and goes on."""
    calls = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def compare(first: int, second: int) -> int:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return 0

    def work() -> None:
        ctypes.CDLL(None).qsort((ctypes.c_int * 4)(), 4, 4, compare)
        time.sleep(5)

    with pytest.raises(raised):
        work()
    assert calls


def test_the_handlers_of_others_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)], sys.unraisablehook
    main(["--help"])
    assert ([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)], sys.unraisablehook) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["continue"],
        ["continue", "--nonsense"],
        ["continue", "a.wav", "--seed", "many"],
        ["nonsense\n\x1b[31m"],
        ["demo", "--port", "0"],
        ["record", "folder"],
        ["eval", "cloze"],
        ["continue", "no\nsuch\x1b[31m.wav", "--to", "en", "--out", "out.wav"],
        ["record", "no\u2028such", "--to", "en", "--out", "out"],
        ["recipe", "no\x85such"],
    ],
)
def test_every_refusal_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    line = refused(capsys, *arguments)
    assert line.startswith("tresse: ")
    assert line.isprintable()


def test_a_full_standard_output_is_one_line() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "demo.cli", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "tresse: No space left on device: free some space there or choose another place, then run it again"
    ]


def test_a_reader_that_leaves_is_no_error() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "demo.cli", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    os.close(writing)
    assert done.stderr == ""


def test_onnxruntime_does_not_report_to_its_makers(tmp_path: Path) -> None:
    """onnxruntime 1.3x sends telemetry; where it does, it leaves a file `.ses` among the temporary ones."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = "import slm, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=ROOT)
    assert list(tmp_path.iterdir()) == []


def test_programs_stop_with_the_server(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=1.0, reply_seconds=30)
    served, _ = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    programs = Programs(served.service)
    request = type("Request", (), {"session_hash": "x"})()
    prompt = str(bundle.examples[0].path)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            programs.continue_story(prompt, "fr", 1, 1.0, 0.9, 30, "", request)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: bundle.active == 1, 20)
    served.close()
    thread.join(5)
    assert not thread.is_alive()


def test_memory_and_stories_of_closed_pages_go_without_anybody_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(tending, "give_back", lambda: given_back.append(served.service.waiting_line.busy))
    monkeypatch.setattr(tending, "TIDY_SECONDS", 0.05)
    served, url = start(FakeBundle(tmp_path / "bundle", real_time_factor=0.1), "127.0.0.1", 0)  # type: ignore[arg-type]
    talker = Talker(url)
    talker.turn(lambda: talker.do("example", number=0))
    until(lambda: given_back, 10)
    assert set(given_back) == {0}  # nobody who talks is held up
    time.sleep(0.3)
    calm = len(given_back)
    time.sleep(0.3)
    assert len(given_back) == calm
    monkeypatch.setattr(service, "KEEP_SECONDS", 0.0)
    talker.close()
    until(lambda: not served.service._sessions, 20)
    until(lambda: len(given_back) > calm, 10)
    served.close()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    kept, freed = [], []
    for number in range(100_000):
        freed.append(bytearray(1000))
        if number % 50 == 0:
            kept.append(bytearray(1000))  # so that glibc gives nothing back by itself
    full = resident()
    freed.clear()
    assert full - resident() < 30_000_000
    tending.give_back()
    assert full - resident() > 60_000_000
    assert kept
