"""Requests that no page sends: every one is answered with one line, none costs much, and the next person is served.

`TRESSE_FUZZ_REQUESTS` tries more than two hundred.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from demo import limits, sockets
from demo.app import start
from demo.archive import sound_bytes
from demo.requests import COMMANDS, PROGRAMS, Refused, SettingsAsked, read
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker

MALFORMED = int(os.environ.get("TRESSE_FUZZ_REQUESTS", "200"))
PARTS = 4
DEEP = b"[" * 9999
BODIES: tuple[bytes, ...] = (
    b"", b"null", b"[]", b"{}", b"7", b'"x"', b"true", b"NaN", b"{", DEEP, DEEP + b"]" * 9999, b'{"a":' * 9999,
    b"\x00" * 99, b"\xff\xfe\x00", b'{"turn": 1e999}', b'{"turn": ' + b"9" * 5000 + b"}", b'{"data": null}', b'{"data": []}',
    b"x" * 99_000, b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWAVEfmt ",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 10**9, 10**30, 0.5, -0.5, 1e308, "", "en", "same", "prompt", "../../etc/passwd", "x" * 5000,
    "two\nlines", "\u202e\x00", [], {}, [[]], {"path": "/etc/passwd"}, {"path": "\x00"}, {"path": 7},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"url": "http://127.0.0.1:1/"},
)  # fmt: skip
PAGE = ["tresse/upload", "tresse/talk", "tresse/do/new", "tresse/example/0", "tresse/example/" + "9" * 4300]
GETS = [
    "tresse/talk", "tresse/ticket", "tresse/sound", "tresse/story", "tresse/health", "tresse/recordings",
    "tresse/example/0.flac", "tresse/recordings/a/b", "tresse/plots/x", "tresse/benchmark/x.wav", "tresse/web/%2e%2e/app.py",
    "tresse/web/\x01", "config", "gradio_api/info", "gradio_api/file=/etc/passwd", "gradio_api/file=%00",
    "gradio_api/queue/data", "gradio_api/heartbeat/x", "gradio_api/proxy=http://127.0.0.1:1/",
    "gradio_api/call/continue_story/x", "monitoring",
]  # fmt: skip
PROGRAM = ["gradio_api/queue/join", *(f"gradio_api/call/{name}" for name in (*PROGRAMS, "dance"))]
PROGRAM += [
    "gradio_api/cancel", "gradio_api/reset", "gradio_api/upload", "gradio_api/run/undo_turn", "gradio_api/api/undo_turn",
    "gradio_api/component_server", "gradio_api/process_recording", "gradio_api/vibe-edit/", "gradio_api/stream/x", "login",
]  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = FakeBundle(tmp_path_factory.mktemp("bundle") / "bundle", real_time_factor=0.02, reply_seconds=0.3)
    page, address = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield address
    page.close()


@pytest.fixture(scope="module")
def talker(url: str) -> Iterator[Talker]:
    open_page = Talker(url)
    yield open_page
    open_page.close()


def problem(answer: httpx.Response) -> str:
    """The line of a refusal."""
    line = answer.json()["problem"]
    assert line
    assert line.isprintable()
    return str(line)


# ---- their form ------------------------------------------------------------------------------------------------------


def answered(talker: Talker, frame: str | bytes) -> dict[str, Any]:
    """The answer to a frame of another form, which names no id."""
    talker.answers.pop(None, None)
    talker.socket.send(frame)
    talker.until(lambda: None in talker.answers)
    said = talker.answers[None]["problem"]
    assert said
    assert said.isprintable()
    return talker.answers[None]


@pytest.mark.parametrize("body", BODIES)
def test_commands_of_another_form_are_answered_and_the_connection_stays(talker: Talker, body: bytes) -> None:
    answered(talker, body.decode("latin-1"))
    talker.socket.send(body)  # and as sound, with no microphone open
    assert talker.problem("stop") is None


@pytest.mark.parametrize("values", [None, [], 7, "x", [[]], {"turn": {}}])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_values_of_another_form_are_refused(talker: Talker, command: str, values: Any) -> None:
    if isinstance(values, dict):
        needs = command in ("stop", "choose", "example", "microphone", "finish")  # other fields are ignored
        assert bool(talker.problem(command, **values)) == needs or command == "again"
    else:
        answered(talker, json.dumps({"id": 1, "do": command, "values": values}))


@pytest.mark.parametrize("number", [None, -1, 0.5, "x", 10**13, []])
def test_a_command_needs_an_id(talker: Talker, number: Any) -> None:
    answered(talker, json.dumps({"id": number, "do": "stop"}))
    answered(talker, json.dumps({"do": "stop"}))


def test_a_command_that_is_too_long_is_refused_and_a_frame_closes(url: str) -> None:
    talker = Talker(url)
    assert "too much" in answered(talker, json.dumps({"id": 1, "do": "x" * limits.MAX_FORM}))["problem"]
    assert talker.problem("stop") is None
    with suppress(ConnectionClosed):
        talker.socket.send(bytes(limits.MAX_EVENT + 1))
    talker.until(lambda: talker.closed is not None)
    assert talker.closed is not None
    assert talker.closed[0] in (1009, 1006)  # what was not read may swallow the reason


def test_what_a_page_does_not_read_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MAX_UNREAD", 3000)
    talker = Talker(url)
    with suppress(KeyError):  # it is not answered
        talker.say(buzz(150, 2.0))
    talker.until(lambda: talker.closed is not None)
    assert talker.closed == (1008, "events are read too slowly")


@pytest.mark.parametrize(
    ("action", "values"),
    [
        ("example", {"number": 99}),
        ("microphone", {"rate": 1000}),
        ("microphone", {"rate": 16000, "use": "spy"}),
        ("finish", {}),
        ("settings", {"temperature": "hot"}),
        ("settings", {"patience": "hasty"}),
        ("settings", {"seed": 1.5}),
        ("settings", {"seed": -1}),
        ("settings", {"seed": 2**31}),
        ("settings", {"max_seconds": None}),
        ("settings", {"top_p": [1]}),
        ("settings", {"target": 7}),
        ("settings", {"target": "x" * 101}),
        ("stop", {"turn": -1}),
        ("stop", {"turn": "a"}),
        ("stop", {"turn": 0, "heard": -1}),
        ("stop", {"turn": 0, "heard": "inf"}),
        ("choose", {}),
        ("choose", {"turn": 0, "part": 0.5}),
    ],
)
def test_fields_of_another_type_are_named(talker: Talker, action: str, values: dict[str, Any]) -> None:
    said = str(talker.problem(action, **values))
    names = {"example": "such example", "finish": "no open microphone", "choose": "turn"}
    assert any(name in said for name in (*values, names.get(action, "?"))), said


def test_what_the_page_sends_is_understood() -> None:
    typed = {"target": "fr", "seed": "", "temperature": "0.5", "top_p": "1", "max_seconds": "4", "speaker": ""}
    settings = read(SettingsAsked, typed).settings()
    assert (settings.seed, settings.speaker, settings.temperature, settings.max_seconds) == (None, None, 0.5, 4.0)
    assert read(SettingsAsked, b"") == SettingsAsked()
    with pytest.raises(Refused):
        read(SettingsAsked, b'{"temperature": NaN}')


@pytest.mark.parametrize(
    "data", [None, 7, "x", [], [1, 2], [7] * 7, [None] * 1000, [{"path": ""}, "fr", -1, 1, 1, 4, ""]]
)
def test_inputs_of_programs_of_another_form_are_422(url: str, data: Any) -> None:
    for path, extra in (("call/continue_story", {}), ("queue/join", {"fn_index": 0, "session_hash": "abc"})):
        answer = httpx.post(f"{url}gradio_api/{path}", json={"data": data, **extra})
        assert answer.status_code == 422
        problem(answer)


def test_only_what_programs_need_is_there(url: str) -> None:
    for path in ("run/undo_turn", "api/undo_turn", "component_server", "process_recording", "vibe-edit/", "stream/a"):
        assert httpx.post(f"{url}gradio_api/{path}", json={"data": []}).status_code == 404
    for path in ("gradio_api/proxy=http://127.0.0.1:1/", "monitoring", "gradio_api/vibe-code/"):
        assert httpx.get(f"{url}{path}").status_code == 404


# ---- how much --------------------------------------------------------------------------------------------------------


def sent(url: str, head: str, body: bytes = b"", wait: float = 5.0) -> bytes:
    """What comes back to a request that is written by hand."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=wait) as line:
        line.sendall(f"{head} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode() + body)
        return line.recv(65536)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("tresse/upload", limits.MAX_UPLOAD),
        ("gradio_api/queue/join", limits.MAX_FORM),
        ("gradio_api/upload", limits.MAX_UPLOAD + limits.AROUND_A_FILE),
    ],
)
def test_what_says_that_it_is_too_large_is_refused_at_once(url: str, talker: Talker, path: str, size: int) -> None:
    head = f"POST /{path}?session={talker.session}"
    for length in (str(size + 1), "1" + "0" * 5000, "9" * 16):
        answer = sent(url, head, f"Content-Length: {length}\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_what_does_not_say_its_size_is_counted(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UPLOAD", 100_000)
    pieces = []

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            pieces.append(1)
            yield bytes(10_000)

    status = 413
    with suppress(httpx.WriteError, httpx.ReadError):  # the line is closed while it is still being written to
        answer = httpx.post(f"{talker.url}upload", params={"session": talker.session}, content=endless(), timeout=20)
        status = answer.status_code
    assert status == 413
    assert len(pieces) < 5000


def test_all_together_are_bounded(url: str, talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOGETHER", 150_000)
    parts = urlsplit(url)
    head = f"POST /tresse/upload?session={talker.session} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 200000\r\n\r\n"
    stalled = [socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10) for _ in range(3)]
    for line in stalled:
        line.sendall(head.encode() + bytes(60_000))
        time.sleep(0.3)
    assert b"503" in stalled[-1].recv(65536)
    for line in stalled:
        line.close()
    talker.eventually(lambda: talker.upload(sound_bytes(buzz(150, 1.0), 16000), name="a.wav").status_code == 204)


def test_who_stalls_is_let_go(url: str, talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALLED_SECONDS", 0.5)
    for path in (f"tresse/upload?session={talker.session}", "gradio_api/queue/join", "gradio_api/upload"):
        rest = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x\r\n"
        assert sent(url, f"POST /{path}", rest, wait=10).startswith(b"HTTP/1.1 408")


def test_programs_cannot_fill_the_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UPLOAD", 50_000)
    monkeypatch.setattr(limits, "MAX_KEPT", 130_000)
    answers = [httpx.post(f"{url}gradio_api/upload", files={"files": ("a.wav", bytes(40_000))}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 503, 503]


# ---- two hundred of them ---------------------------------------------------------------------------------------------


def malformed(rng: random.Random, session: str) -> tuple[str, str, dict[str, Any]]:
    """Method, path and the rest of a request."""
    names = ["session", "turn", "part", "form", "rate", "name", "page", "tab", "first", "last"]
    params = {rng.choice(names): str(rng.choice(VALUES)) for _ in range(rng.choice([0, 1, 3]))}
    if rng.random() < 0.8:
        params["session"] = session
    if rng.random() < 0.25:
        return rng.choice(["GET", "GET", "HEAD", "OPTIONS"]), rng.choice(GETS), {"params": params}
    path = rng.choice(PAGE if rng.random() < 0.6 else PROGRAM)
    kind = rng.randrange(4)
    if kind == 0:
        content = rng.choice(BODIES)
    elif kind == 1:
        names = ["turn", "part", "heard", "target", "seed", "temperature", "top_p", "max_seconds", "speaker"]
        content = json.dumps({rng.choice(names): rng.choice(VALUES) for _ in range(3)}).encode()
    elif kind == 2:
        data = [rng.choice(VALUES) for _ in range(rng.choice([0, 1, 7]))]
        call = {"data": data, "session_hash": rng.choice(["abc", "abc", rng.choice(VALUES)])}
        call |= {
            "fn_index": rng.choice([0, 1, 2, 3, 99, -1, None]),
            "event_id": rng.choice([None, "e", rng.choice(VALUES)]),
        }
        content = json.dumps(call).encode()
    else:
        content = rng.randbytes(rng.choice([1, 1000, 50_000]))
    types = ["application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain", ""]
    return rng.choice(["POST"] * 8 + ["PUT", "DELETE"]), path, {
        "params": params, "content": content, "headers": {"content-type": rng.choice(types)},
    }  # fmt: skip


@pytest.mark.parametrize("part", range(PARTS))
def test_malformed_requests_are_answered_and_the_next_person_is_served(url: str, talker: Talker, part: int) -> None:
    with httpx.Client(timeout=15) as client:
        for number in range(part, MALFORMED, PARTS):
            method, path, rest = malformed(random.Random(number), talker.session)
            said = f"number {number}: {method} {path[:80]} {str(rest)[:200]}"
            try:
                with client.stream(method, url + path, **rest) as answer:
                    assert answer.status_code < 500, said
                    if answer.status_code in (400, 413, 422) and path.startswith("tresse/") and method == "POST":
                        answer.read()
                        problem(answer)
            except (httpx.InvalidURL, UnicodeEncodeError):
                continue  # no request at all
    assert httpx.get(f"{url}tresse/health").json()["status"] == "ok"
    fresh = Talker(url)
    fresh.turn(lambda: fresh.upload(sound_bytes(buzz(150, 1.0), 16000), name="a.wav"))
    assert fresh.of("done")
    fresh.close()


def test_many_playlists_at_once_do_not_stop_the_page(url: str, talker: Talker, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    lists = [b"#EXTM3U\n#EXTINF:7,\n%s\n" % os.fsencode(tmp_path / name) for name in ("pipe", "list.m3u8")]
    lists.append(b"ffconcat version 1.0\nfile '%s'\n" % os.fsencode(tmp_path / "pipe"))
    with ThreadPoolExecutor(45) as together:
        answers = list(together.map(lambda n: talker.upload(lists[n % 3], name=f"{n}.m3u8"), range(45)))
    for answer in answers:
        assert answer.status_code == 400
        assert "not audio that can be read" in problem(answer)
    assert httpx.get(url + "tresse/health").json()["status"] == "ok"


def test_a_path_that_is_too_long_is_refused(url: str) -> None:
    assert httpx.get(url + "tresse/example/" + "9" * 5000 + ".flac").status_code == 404
    assert not Path("9" * 100).exists()


def test_malformed_frames_are_answered_and_the_story_goes_on(url: str) -> None:
    """Commands with values at random, and sound between them."""
    talker, rng = Talker(url), random.Random(0)
    names = ["turn", "part", "heard", "target", "seed", "number", "rate", "use", "max_seconds", "speaker"]
    for _ in range(MALFORMED):
        values = {rng.choice(names): rng.choice(VALUES) for _ in range(rng.choice([0, 1, 3]))}
        talker.problem(rng.choice([*COMMANDS, "microphone", "finish", "dance", ""]), **values)
        if rng.random() < 0.5:
            talker.socket.send(rng.randbytes(rng.choice([0, 1, 2, 999, 6400])))
    talker.problem("new")
    talker.problem("settings")
    talker.turn(lambda: talker.say(buzz(150, 1.0)))
    assert talker.of("done")[-1]["turn"] == 0
    talker.close()
