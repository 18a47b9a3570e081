"""`--auth`: without the password nothing is answered, with it everything works, in a browser as for programs."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from demo import guesses
from demo.app import start
from demo.archive import sound_bytes
from demo.cli import main
from demo.guesses import FREE, Guesses
from demo.password import TICKET_SECONDS, Password, Tickets, account
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle, buzz

ACCOUNT = ("ada", "pass:wörd")
RIGHT = "Basic " + base64.b64encode(":".join(ACCOUNT).encode()).decode()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = FakeBundle(tmp_path_factory.mktemp("bundle") / "bundle", real_time_factor=0.02, reply_seconds=0.3)
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "demo.password.Guesses", lambda: Guesses(free=1_000_000)
        )  # the tests of this server give many wrong ones
        page, address = start(bundle, "127.0.0.1", 0, folder, account=ACCOUNT)  # type: ignore[arg-type]
        yield address
        page.close()


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "path",
    ["", "config", "tresse/health", "tresse/ticket", "tresse/talk", "tresse/recordings", "tresse/web/main.js",
     "gradio_api/info", "gradio_api/heartbeat/a", "gradio_api/file=/etc/passwd", "theme.css", "login", "nowhere"],
)  # fmt: skip
@pytest.mark.parametrize(
    "header",
    [None, "", "Basic", "Basic !", basic(":"), basic("ada"), basic("ada:pass"), basic("ada:pass:wörd "),
     basic("Ada:pass:wörd"), RIGHT.replace("Basic", "Bearer"), RIGHT[:-4]],
)  # fmt: skip
def test_without_the_password_nothing_is_answered(url: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method in ("GET", "POST"):
        answer = httpx.request(method, url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert answer.json() == {"problem": "this page asks for a user and a password"}


def test_with_the_password_all_is_there(url: str) -> None:
    for path in ("", "config", "tresse/health", "tresse/example/0.flac", "tresse/web/main.js", "gradio_api/info"):
        assert httpx.get(url + path, headers={"Authorization": RIGHT}).status_code == 200
    assert httpx.get(url + "tresse/talk", headers={"Authorization": RIGHT}).status_code == 404  # it is a WebSocket
    evil = {"Authorization": RIGHT, "Origin": "https://evil.example"}
    assert httpx.get(url + "tresse/recordings", headers=evil).status_code == 403


def connected(url: str, query: str, **more: Any) -> int:
    """The status of an attempt to open the page's socket."""
    try:
        with connect(f"{url.replace('http', 'ws', 1)}{query}", open_timeout=60, **more):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_the_pages_socket_asks_for_it_or_for_a_ticket(url: str) -> None:
    """WebKit opens no WebSocket with a password."""
    right = {"Authorization": RIGHT}
    assert connected(url, "tresse/talk?page=a") == 401
    assert connected(url, "tresse/talk?page=a", additional_headers={"Authorization": basic("ada:pass")}) == 401
    assert connected(url, "tresse/talk?page=a", additional_headers=right) == 101
    ticket = httpx.get(url + "tresse/ticket", headers=right).json()["ticket"]
    assert connected(url, f"tresse/talk?page=a&ticket={ticket}") == 101
    assert connected(url, f"tresse/talk?page=a&ticket={ticket}", origin="https://evil.example") == 403
    assert connected(url, f"tresse/talk?page=a&ticket={ticket[:-1]}") == 401
    assert connected(url, f"v1/realtime?ticket={ticket}") == 401  # for the page alone
    assert httpx.get(f"{url}tresse/recordings?ticket={ticket}").status_code == 401


def test_programs_send_it(url: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    (tmp_path / "a.wav").write_bytes(sound_bytes(buzz(150, 1.0), 16000))
    client = Client(url, verbose=False, headers={"Authorization": RIGHT})
    files, report = client.predict(handle_file(str(tmp_path / "a.wav")), target="en", api_name="/continue_story")
    assert (report["turn"], len(files), Path(files[0]).stat().st_size > 1000) == (1, 1, True)


@pytest.mark.browser
def test_a_browser_asks_once(url: str, browser) -> None:
    context = browser.new_context(http_credentials={"username": ACCOUNT[0], "password": ACCOUNT[1]})
    page = context.new_page()
    page.goto(url)
    page.locator(".talk[data-state=idle]").wait_for(timeout=60_000)
    context.close()


@pytest.mark.parametrize("text", ["", "ada", ":", "ada:", ":secret", "ada:two\nlines", "@/nowhere/file", "@"])
def test_what_is_no_account_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TresseError):
        account(text)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--auth", text])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--auth" in line


def test_a_file_or_the_environment_keeps_it_from_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password.txt"
    file.write_text(":".join(ACCOUNT) + "\nmore\n", encoding="utf-8")
    assert account(f"@{file}") == ACCOUNT
    asked = []
    monkeypatch.setattr("demo.app.serve", lambda *_, account, **__: asked.append(account))
    monkeypatch.setattr("slm.bundle.Bundle.load", lambda *_: None)
    _run("demo", "--auth", f"@{file}")
    monkeypatch.setenv("TRESSE_AUTH", ":".join(ACCOUNT))
    _run("demo")
    assert "TRESSE_AUTH" not in os.environ
    _run("demo")
    assert asked == [ACCOUNT, ACCOUNT, None]


def _run(*arguments: str) -> None:
    try:
        main(list(arguments))
    except SystemExit as stop:
        assert not stop.code, stop  # noqa: PT017


# ---- wrong ones are counted ------------------------------------------------------------------------------------------


class Clock:
    """The time that a test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("in")(scope, receive, send)


@settings(deadline=None)
@given(st.text(), st.floats(-1e9, 1e9))
def test_tickets_are_good_for_a_while_and_cannot_be_made_up(text: str, moment: float) -> None:
    clock = Clock()
    tickets, others = Tickets(clock), Tickets(clock)
    ticket = tickets.draw()
    assert tickets.good(ticket)
    made_up = f"{moment}-{ticket.partition('-')[2]}"
    assert not any(map(tickets.good, (text, made_up, others.draw(), ticket + "0", ticket[1:])))
    clock.now += TICKET_SECONDS + 0.01
    assert not tickets.good(ticket)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(clock: Clock) -> Password:
    return Password(_application, ACCOUNT, Guesses(clock))


def knock(door: Password, header: str | None, address: str = "1.2.3.4") -> httpx.Response:
    """The answer to a request from this address."""
    headers = {} if header is None else {"Authorization": header}

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(door, client=(address, 7))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/", headers=headers)

    with ThreadPoolExecutor(1) as apart:  # a browser of other tests may have a loop of its own in this thread
        return apart.submit(lambda: asyncio.run(ask())).result()


def guess(door: Password, first: int, count: int, address: str = "1.2.3.4") -> list[int]:
    return [knock(door, basic(f"ada:{number}"), address).status_code for number in range(first, first + count)]


def test_after_ten_wrong_ones_an_address_waits_longer_and_longer(door: Password, clock: Clock) -> None:
    assert guess(door, 0, 10) == [401] * 10
    waits = []
    for number in range(10, 20):
        refused = knock(door, RIGHT)  # even the right one: nothing can be learnt by guessing on
        assert refused.status_code == 429
        assert refused.json()["problem"].isprintable()
        waits.append(int(refused.headers["retry-after"]))
        assert guess(door, 1000, 3) == [429] * 3  # these do not count: the wait has its end
        clock.now += waits[-1]
        assert guess(door, number, 1) == [401]
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


def test_after_the_wait_the_right_one_is_let_in(door: Password, clock: Clock) -> None:
    guess(door, 0, 10)
    clock.now += 59.5
    assert knock(door, RIGHT).status_code == 429
    clock.now += 0.5
    assert knock(door, RIGHT).text == "in"
    assert guess(door, 10, 2) == [401, 429]  # the right one, of others behind the same proxy, forgives nothing
    clock.now += 120 + guesses.FORGET + 1
    assert guess(door, 0, 11) == [401] * 10 + [429]


def test_others_are_let_in_meanwhile(door: Password) -> None:
    guess(door, 0, 11)
    assert knock(door, RIGHT).status_code == 429
    assert knock(door, RIGHT, "1.2.3.5").text == "in"
    assert knock(door, None).status_code == 401  # a browser that asks what to send


def test_what_is_no_guess_does_not_count(door: Password) -> None:
    for header in [None, "", "Basic", "Basic !", "Bearer abc", *[basic("ada:old")] * 30]:
        assert [knock(door, header).status_code for _ in range(15)] == [401] * 15
    assert knock(door, RIGHT).text == "in"


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),  # a machine has a network of 64 bits to itself
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("unix", "", False),
    ],
)
def test_what_one_machine_may_have_is_counted_together(door: Password, first: str, second: str, together: bool) -> None:
    guess(door, 0, 10, first)
    assert knock(door, RIGHT, first).status_code == 429
    assert knock(door, RIGHT, second).status_code == (429 if together else 200)


def test_many_addresses_take_no_more_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "MOST", 100)
    counted = Guesses(clock)
    for number in range(FREE):
        counted.wrong("9.9.9.9", b"%d" % number)
    for number in range(99):
        counted.wrong(f"10.0.{number}.1", b"x")
    assert len(counted) == 100
    assert counted.wait("9.9.9.9") == guesses.FIRST_WAIT
    for number in range(1000):
        counted.wrong(f"11.{number // 250}.{number % 250}.1" + "x" * 10_000, b"x")
        assert len(counted) <= 100


@given(st.lists(st.tuples(st.floats(0, 5000), st.binary(max_size=1)), max_size=80))
def test_guesses_of_an_address_are_few_whenever_they_come(guessed: list[tuple[float, bytes]]) -> None:
    """In any hour at most FREE guesses beside those that a wait of a minute or more preceded."""
    clock = Clock()
    counted = Guesses(clock)
    tried: list[tuple[float, float]] = []  # when, and how long after the one before
    for pause, given_password in guessed:
        clock.now += pause
        waited = counted.wait("a")
        assert 0 <= waited <= guesses.LONGEST_WAIT
        if waited == 0:
            tried.append((clock.now, clock.now - tried[-1][0] if tried else 0.0))
            counted.wrong("a", b"%d" % len(tried) + given_password)
    for begin, _ in tried:
        hour = [gap for when, gap in tried if begin <= when < begin + 3600]
        assert sum(gap < guesses.FIRST_WAIT for gap in hour[1:]) < FREE
