"""A line that breaks costs nothing: the page says how much it received, and gets the rest."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import messages
from demo.messages import Sent
from demo.service import Service
from demo.sessions import Session
from tests.fake_bundle import FakeBundle, buzz


@given(st.lists(st.binary(max_size=9)), st.integers(-2, 60))
def test_what_follows_the_first_so_many_messages(written: list[bytes], received: int) -> None:
    sent = Sent()
    for message in written:
        sent.add(message)
    assert sent.after(received) == (written[received:] if 0 <= received <= len(written) else None)


def test_the_oldest_messages_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "KEEP_BYTES", 25)
    sent = Sent()
    for number in range(5):
        sent.add(bytes([number]) * 10)
    assert sent.after(2) is None
    assert sent.after(3) == [b"\3" * 10, b"\4" * 10]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + messages.KEEP_SECONDS + 1)
    sent.add(b"later")
    assert sent.after(4) is None
    assert sent.after(5) == [b"later"]


class Page:
    """The end of a line: its messages, as JSON."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: bytes) -> None:
        text, _ = struct.unpack("<II", message[:8])
        self.messages.append(json.loads(message[8 : 8 + text]))

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.messages]


def wait_for_reply(session: Session, page: Page) -> None:
    deadline = time.monotonic() + 20
    while "idle" not in page.kinds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("swallowed", [1, 3, 6])
def test_what_a_dead_line_swallowed_comes_over_the_next(tmp_path: Path, swallowed: int) -> None:
    """Neither end has noticed yet that the line is dead: the reply goes on."""
    service = Service(FakeBundle(tmp_path), 1)  # type: ignore[arg-type]
    session = service.open_session("", "1.2.3.4")
    dead, alive = Page(), Page()
    session.attach(dead.send, "page")
    session.hear_file(buzz(150.0, 1.0), 16000)
    wait_for_reply(session, dead)
    expected = dead.messages[1:]  # after the hello
    session.attach(alive.send, "page", len(expected) - swallowed)
    session.detach(dead.send)  # the server notices late
    hello, *rest = alive.messages
    assert (hello["resumed"], hello["working"]) == (True, False)
    assert rest == expected[-swallowed:]
    assert session.left is None


@pytest.mark.parametrize(("page", "received"), [("other", 4), ("page", 0), ("page", 10_000)])
def test_a_page_that_knows_nothing_is_told_all(tmp_path: Path, page: str, received: int) -> None:
    service = Service(FakeBundle(tmp_path), 1)  # type: ignore[arg-type]
    session = service.open_session("", "1.2.3.4")
    first, second = Page(), Page()
    session.attach(first.send, "page")
    session.hear_file(buzz(150.0, 1.0), 16000)
    wait_for_reply(session, first)
    session.detach(first.send)
    session.attach(second.send, page, received)
    assert second.kinds() == ["hello", "story", "context"]
    assert not second.messages[0]["resumed"]
    assert len(second.messages[1]["turns"][0]["replies"]) == 1
