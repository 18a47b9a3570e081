"""What the WebSocket for programs refuses: what does not apply or is malformed, too much of it, and who may not ask."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from demo import limits, sockets
from demo.app import Served, start
from demo.realtime import given as events
from demo.realtime import told
from demo.realtime.given import OTHER_EVENTS, UNUSED, Wrong, parse, read_object
from slm.errors import one_line
from tests.fake_bundle import FakeBundle, buzz
from tests.program import MANUAL, Program, eventually

LOW = 150.0
ACCOUNT = ("ada", "secret")


def _status(socket_url: str, path: str, **more: Any) -> int:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{socket_url.replace('http', 'ws', 1)}{path}", open_timeout=60, **more)
    return refused.value.response.status_code


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OTHER_EVENTS))
def test_events_that_do_not_apply_are_refused_by_name(name: str) -> None:
    with pytest.raises(Wrong, match=name) as refused:
        parse({"type": name, "item": {"content": [{"type": "input_text", "text": "hello"}]}})
    assert (refused.value.code, refused.value.param) == ("not_supported", "type")


@pytest.mark.parametrize("field", ["session", "response"])
@pytest.mark.parametrize("name", sorted(UNUSED))
def test_settings_that_do_not_apply_are_refused_by_name(name: str, field: str) -> None:
    kind = {"session": "session.update", "response": "response.create"}[field]
    with pytest.raises(Wrong, match=name) as refused:
        parse({"type": kind, field: {name: "something"}})
    assert (refused.value.code, refused.value.param) == ("not_supported", f"{field}.{name}")
    for empty in events.EMPTY:
        parse({"type": kind, field: {name: empty}})


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"type": "session.update"}, "session"),
        ({"type": "session.update", "session": {"modalities": ["text"]}}, "session.modalities"),
        ({"type": "session.update", "session": {"modalities": ["audio", "image"]}}, "session.modalities.1"),
        ({"type": "session.update", "session": {"input_audio_rate": 8000}}, "session.input_audio_rate"),
        ({"type": "session.update", "session": {"input_audio_format": "g711_ulaw"}}, "session.input_audio_format"),
        ({"type": "session.update", "session": {"turn_detection": {"type": "semantic_vad"}}}, "session.turn_detection"),
        ({"type": "session.update", "session": {"dance": 1}}, "session.dance"),
        ({"type": "session.update", "session": {"seed": -1}}, "session.seed"),
        ({"type": "response.create", "response": {"turn_detection": None}}, "response.turn_detection"),
        ({"type": "input_audio_buffer.append"}, "audio"),
        ({"type": "input_audio_buffer.append", "audio": 7}, "audio"),
        ({"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": -1}, "audio_end_ms"),
        (
            {"type": "conversation.item.truncate", "item_id": "a", "content_index": 1, "audio_end_ms": 1},
            "content_index",
        ),
    ],
)
def test_the_field_that_is_wrong_is_named(values: dict[str, Any], param: str) -> None:
    with pytest.raises(Wrong) as refused:
        parse(values)
    assert str(refused.value.param).startswith(param)
    assert str(refused.value).isprintable()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([*events.EVENTS, *OTHER_EVENTS, "dance"]), st.dictionaries(st.sampled_from(
    ["session", "response", "audio", "item_id", "audio_end_ms", "event_id", "other"]), ANYTHING, max_size=4))  # fmt: skip
def test_whatever_is_sent_is_an_event_or_one_line(name: str, values: dict[str, Any]) -> None:
    problem = ""
    try:
        parse(read_object(json.dumps({**values, "type": name})))
    except Wrong as wrong:
        problem = f"{wrong.code}: {wrong}"
    assert one_line(problem) == problem


def test_malformed_events_are_answered_and_the_connection_stays(program: Program) -> None:
    lines = ["", "null", "[]", "7", "{", '{"type": 7}', "[" * 9999, '{"a":' * 9999, '{"type": NaN}', "\x00" * 99]
    for line in [*lines, '{"type": "session.update", "session": []}']:
        before = len(program.of("error"))
        program.socket.send(line)
        error = program.wait("error", before + 1)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"].isprintable()
    error = program.refusal("dance", event_id="mine")
    assert (error["code"], error["event_id"]) == ("unknown_event", "mine")
    assert program.refusal("input_audio_buffer.append", audio="!")["param"] == "audio"
    assert program.refusal("input_audio_buffer.append", audio=base64.b64encode(b"abc").decode())["param"] == "audio"
    assert program.refusal("input_audio_buffer.commit")["code"] == "input_audio_buffer_commit_empty"
    assert program.refusal("response.create")["code"] == "nothing_committed"
    assert "unknown speaker" in program.refusal("session.update", session={"voice": "nobody"})["message"]
    assert "temperature" in program.refusal("session.update", session={"temperature": -1})["message"]
    assert program.refusal("session.update", session={"patience": "hasty"})["param"] == "session.patience"
    assert program.settings(patience="quick")["patience"] == "quick"
    program.append(buzz(LOW, 0.5))
    assert program.refusal("session.update", session={"input_audio_rate": 24000})["code"] == "buffer_not_empty"
    assert program.turn(buzz(LOW, 0.5))["status"] == "completed"


def test_a_prompt_that_is_too_long_or_unusable_costs_only_itself(program: Program) -> None:
    program.append(buzz(LOW, 31.0), piece=160_000)
    program.until(lambda: bool(program.of("error")))
    assert "longer than 30 s" in program.of("error")[0]["error"]["message"]
    program.say("input_audio_buffer.clear")
    program.wait("input_audio_buffer.cleared")
    program.append(np.zeros(160, np.float32))
    program.say("input_audio_buffer.commit")
    program.say("response.create")
    program.wait("error", 2)
    assert not program.of("response.created")
    assert program.turn(buzz(LOW, 0.5))["status"] == "completed"


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_an_event_that_is_too_large_ends_the_connection(program: Program) -> None:
    with suppress(ConnectionClosed):
        program.socket.send(json.dumps({"type": "dance", "x": "y" * (limits.MAX_EVENT + 1)}))
    program.until(lambda: program.closed is not None)
    assert not program.of("error")
    assert program.closed
    assert program.closed[0] in (1009, 1006)  # what was not read may swallow the reason


@pytest.mark.parametrize(("size", "together", "code"), [(2_000_001, 10**9, 1009), (1000, 999, 1013)])
def test_events_are_counted(size: int, together: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOGETHER", together)
    sent: list[dict[str, Any]] = []
    got: list[dict[str, Any]] = []
    coming = [{"type": "websocket.receive", "text": text} for text in ("x" * 500, "x" * 500, "x" * size)]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        got.extend([await receive() for _ in range(3)])

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = limits.Limits(application)
    with ThreadPoolExecutor(1) as apart:  # a browser of other tests may have a loop of its own in this thread
        apart.submit(
            lambda: asyncio.run(middleware({"type": "websocket", "path": "/v1/realtime"}, receive, send))
        ).result()
    assert [message["type"] for message in got] == [*["websocket.receive"] * 2, "websocket.disconnect"]
    assert [message["code"] for message in sent] == [code]
    assert (middleware.together, middleware.sockets) == (0, 0)


def test_sound_in_bytes_ends_the_connection(program: Program) -> None:
    program.socket.send(bytes(320))
    program.until(lambda: program.closed is not None)
    assert program.closed == (1003, "send events as JSON text")


def test_who_does_not_read_is_let_go(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MAX_UNREAD", 1000)
    program.append(buzz(LOW, 1.0))
    program.say("input_audio_buffer.commit")
    program.say("response.create")
    program.until(lambda: program.closed is not None)
    assert program.closed == (1008, "events are read too slowly")


def test_who_says_nothing_is_let_go(socket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.5)
    program = Program(socket_url)
    program.until(lambda: program.closed is not None)
    assert program.closed
    assert program.closed[0] == 1001


def test_only_so_many_are_let_in(program: Program, socket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SOCKETS", 1)
    assert _status(socket_url, "v1/realtime") == 503
    monkeypatch.setattr(limits, "MAX_SOCKETS", 5)
    monkeypatch.setattr("demo.service.MAX_SESSIONS", 0)
    assert _status(socket_url, "v1/realtime") == 503


def test_a_connection_that_ends_leaves_nothing(socket_url: str, socket_server: tuple[FakeBundle, Served, str]) -> None:
    bundle, page, _ = socket_server
    before = {id(session) for session in page.service.sessions()}  # of connections that are ending

    def opened() -> int:
        return sum(id(session) not in before for session in page.service.sessions())

    bundle.reply_seconds, bundle.real_time_factor = 20.0, 0.5
    program = Program(socket_url)
    program.settings(**MANUAL)
    program.append(buzz(LOW, 1.0))
    program.say("input_audio_buffer.commit")
    program.say("response.create")
    program.wait("response.audio.delta")
    assert opened() == 1
    program.close()
    eventually(lambda: bundle.active == 0 and opened() == 0)


# ---- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null"])
def test_a_page_of_another_site_is_refused(socket_url: str, origin: str) -> None:
    assert _status(socket_url, "v1/realtime", origin=origin) == 403


def test_another_name_and_another_address_are_refused(socket_url: str) -> None:
    parts = urlsplit(socket_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as line:
        assert _status("http://evil.example/", "v1/realtime", sock=line) == 403
    assert _status(socket_url, "v1/other") == 404
    assert _status(socket_url, "gradio_api/queue/join") == 404
    assert httpx.get(f"{socket_url}v1/realtime").status_code == 404


def test_the_own_page_and_the_usual_subprotocol_are_let_in(socket_url: str) -> None:
    program = Program(socket_url, origin=socket_url.rstrip("/"), subprotocols=["realtime", "other"])
    assert program.socket.subprotocol == "realtime"
    program.close()


def test_the_password_and_the_end_of_the_server(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path / "bundle")
    page, address = start(bundle, "127.0.0.1", 0, account=ACCOUNT)  # type: ignore[arg-type]
    try:
        assert _status(address, "v1/realtime") == 401
        right = "Basic " + base64.b64encode(":".join(ACCOUNT).encode()).decode()
        program = Program(address, additional_headers={"Authorization": right})
    finally:
        page.close()
    program.until(lambda: program.closed is not None)


def test_every_event_has_a_model_and_a_name() -> None:
    kinds = [kind for kind in vars(told).values() if isinstance(kind, type) and issubclass(kind, told.Event)]
    names = [kind.model_fields["type"].default for kind in kinds if "type" in kind.model_fields]
    assert len(set(names)) == len(names)
    readme = (Path(__file__).parents[2] / "demo" / "README.md").read_text(encoding="utf-8")
    for name in (*names, *events.EVENTS):
        assert f"`{name}`" in readme, name
