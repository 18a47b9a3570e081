"""A connection that breaks costs nothing: the page says how much it received, and gets the rest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect

from demo import messages
from demo import page as page_socket
from demo.messages import GOODBYE, Message, Sent
from demo.service import Service
from demo.sessions import Session
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker

MESSAGES = st.builds(lambda sound: Message({"type": "x"}, sound), st.none() | st.binary(max_size=9))


@given(st.lists(MESSAGES), st.integers(-2, 60))
def test_what_follows_the_first_so_many_messages(written: list[Message], received: int) -> None:
    sent = Sent()
    for message in written:
        sent.add(message)
    assert sent.after(received) == (written[received:] if 0 <= received <= len(written) else None)


def test_the_oldest_messages_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [Message({"type": "audio"}, bytes([number]) * 10) for number in range(5)]
    monkeypatch.setattr(messages, "KEEP_BYTES", 2 * len(written[0]) + 5)
    sent = Sent()
    for message in written:
        sent.add(message)
    assert sent.after(2) is None
    assert sent.after(3) == written[3:]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + messages.KEEP_SECONDS + 1)
    later = Message({"type": "later"})
    sent.add(later)
    assert sent.after(4) is None
    assert sent.after(5) == [later]


class Page:
    """The end of a connection: its messages."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: Message) -> None:
        self.messages.append(message.values)

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.messages]


def wait_for_reply(session: Session, page: Page) -> None:
    deadline = time.monotonic() + 20
    while "idle" not in page.kinds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("swallowed", [1, 3, 6])
def test_what_a_dead_line_swallowed_comes_over_the_next(tmp_path: Path, swallowed: int) -> None:
    """Neither end has noticed yet that the connection is dead: the reply goes on."""
    service = Service(FakeBundle(tmp_path), 1)  # type: ignore[arg-type]
    session = service.open_session("", "1.2.3.4")
    dead, alive = Page(), Page()
    session.attach(dead.send, "page")
    session.hear_file(buzz(150.0, 1.0), 16000)
    wait_for_reply(session, dead)
    expected = dead.messages[1:]  # after the hello
    session.attach(alive.send, "page", len(expected) - swallowed)
    session.detach(dead.send)  # the server notices late
    assert dead.messages[-1] == GOODBYE.values  # what it still says is not heard
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


def test_a_page_that_comes_back_hears_what_it_missed_and_is_heard(served: tuple[FakeBundle, str]) -> None:
    """Its old connection is closed once it has another; sound that comes over it is of no prompt."""
    bundle, url = served
    bundle.reply_seconds, bundle.real_time_factor = 2.0, 0.5
    talker = Talker(url)
    talker.do("microphone", rate=16000)
    talker.sounds(buzz(150.0, 1.0))
    received = len(talker.messages) - 1  # all but the hello
    again = Talker(url, talker.session, received, talker.page)
    assert again.of("hello")[0]["resumed"]
    talker.until(lambda: talker.closed is not None)
    assert talker.closed is not None
    assert talker.closed[0] == 1001
    again.turn(lambda: again.say(buzz(150.0, 0.6)))
    assert again.of("heard")[0]["seconds"] == pytest.approx(0.6)
    received += len(again.messages) - 1
    third = Talker(url, talker.session, received - 3, talker.page)
    third.eventually(lambda: len(third.messages) == 4)
    assert [message["type"] for message in third.messages[1:]] == [message["type"] for message in again.messages[-3:]]
    again.close()
    third.turn(lambda: third.do("again"))  # the connection that ended late takes nothing along
    assert len(third.audio(0)) == 2 * bundle.sample_rate
    third.close()


def test_a_silent_connection_shows_that_it_stands(
    served: tuple[FakeBundle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_socket, "HEARTBEAT_SECONDS", 0.05)
    kinds: list[str] = []
    with connect(f"{served[1].replace('http', 'ws', 1)}tresse/talk?page=a", open_timeout=60) as socket:
        while kinds.count("beat") < 3:
            kinds.append(json.loads(socket.recv(30))["type"])
    assert [kind for kind in kinds if kind != "beat"] == ["hello", "story", "context"]
