"""Sessions: given out by the server, few for one address, forgotten when closed for long or when others need the place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo import sessions
from demo.sessions import KEEP_SECONDS, Service
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle
from tests.talker import Talker


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 5)
    return Service(FakeBundle(tmp_path / "bundle"), 1)  # type: ignore[arg-type,return-value]


def test_a_name_of_ones_own_opens_nothing(service: Service) -> None:
    for name in ("", "0" * 32, "../..", "a" * 10_000):
        with pytest.raises(TresseError, match="lost its session"):
            service.session(name)
        assert service.open_session(name, "1.2.3.4").name != name


def test_a_session_is_found_again(service: Service) -> None:
    first = service.open_session("", "1.2.3.4")
    assert len(first.name) == 32
    assert service.session(first.name) is first
    assert service.open_session(first.name, "5.6.7.8") is first
    assert service.open_session("", "1.2.3.4") is not first


def test_new_ones_push_out_those_closed_longest_and_never_an_open_one(service: Service) -> None:
    opened = [service.open_session("", f"1.2.3.{number}") for number in range(5)]
    opened[0].left = None  # a page is open
    kept = {service.open_session("", f"5.6.7.{number}").name for number in range(3)}
    assert service.session(opened[0].name) is opened[0]
    for name in kept:
        service.session(name)
    for session in opened[1:4]:
        with pytest.raises(TresseError):
            service.session(session.name)


def test_where_all_are_open_nobody_loses_a_story(service: Service) -> None:
    for number in range(5):
        service.open_session("", f"1.2.3.{number}").left = None
    with pytest.raises(TresseError, match="too many people"):
        service.open_session("", "9.9.9.9")


def test_one_address_cannot_take_all_places(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "NEW_A_MINUTE", 3)
    for _ in range(3):
        service.open_session("", "1.2.3.4")
    with pytest.raises(TresseError, match="from your address"):
        service.open_session("", "1.2.3.4")
    service.open_session("", "5.6.7.8")
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    service.open_session("", "1.2.3.4")


def test_a_closed_page_is_forgotten_after_a_while(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    session = service.open_session("", "1.2.3.4")
    later = time.monotonic() + KEEP_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(TresseError):
        service.session(session.name)


def test_asking_opens_no_session(served: tuple[FakeBundle, str]) -> None:
    _, url = served
    for number in range(30):
        answer = httpx.get(f"{url}tresse/story", params={"session": f"{number:032x}"})
        assert answer.status_code == 400
    talker = Talker(url)
    assert httpx.get(f"{url}tresse/health").json()["open"] == 1
    talker.close()
