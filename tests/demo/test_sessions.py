"""Sessions: given out by the server, few for one address, forgotten when closed for long or when others need the place."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from demo import programs
from demo import service as services
from demo.messages import Message
from demo.programs import Programs
from demo.requests import ACTIONS, Nothing
from demo.service import KEEP_SECONDS, Service
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(services, "MAX_SESSIONS", 5)
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
    monkeypatch.setattr(services, "NEW_A_MINUTE", 3)
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
        answer = httpx.get(f"{url}tresse/story", params={"tab" if number % 2 else "session": f"{number:032x}"})
        assert answer.status_code == 400
    talker = Talker(url)
    assert httpx.get(f"{url}tresse/health").json()["open"] == 1
    talker.close()


# ---- one command at a time -------------------------------------------------------------------------------------------


def test_many_commands_of_one_session_never_race(tmp_path: Path) -> None:
    """Uploads, examples, microphones and buttons all at once: nothing fails but what is refused by name."""
    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=0.02, reply_seconds=0.3)
    session = Service(bundle, 2).open_session("", "1.2.3.4")  # type: ignore[arg-type]
    heard: list[Message] = []
    session.attach(heard.append, "page")
    failures: list[Exception] = []
    sound = buzz(150, 0.6)

    def command(number: int) -> None:
        rng = random.Random(number)
        for _ in range(8):
            try:
                action = rng.choice([*ACTIONS, "file", "file", "hear"])
                if action == "file":
                    session.hear_file(sound, 16000)
                elif action == "hear":
                    session.open_microphone(16000, False)
                    session.hear(sound)
                    session.finish()
                else:
                    session.do(action, ACTIONS[action].model_validate({"turn": 0}))
            except TresseError:
                pass
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=command, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert bundle.most_active <= 1
    session.do("new", Nothing())
    session.hear_file(sound, 16000)
    assert session._thread is not None
    session._thread.join(20)
    assert len(session.conversation.turns) == 1
    assert len(session.conversation.turns[0].replies) == 1


# ---- stories of programs ---------------------------------------------------------------------------------------------


def client(name: str | None) -> Any:
    return SimpleNamespace(session_hash=name)


@pytest.fixture
def several(service: Service, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setattr(programs, "MAX_CONVERSATIONS", 3)
    return Programs(service)


def begin(several: Programs, name: str | None) -> None:
    with several.story(client(name)) as conversation:
        conversation.turns.append(None)  # type: ignore[arg-type]


def turns(several: Programs, name: str | None) -> int:
    with several.story(client(name)) as conversation:
        return len(conversation.turns)


def test_a_programs_story_is_forgotten_after_a_while(several: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(several, "a")
    written = several._path("reply.wav")
    written.write_bytes(b"sound")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + programs.KEEP_STORIES - 1)
    assert (turns(several, "a"), written.exists()) == (1, True)
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * programs.KEEP_STORIES + 1)
    begin(several, "b")
    assert not written.exists()
    assert list(several._stories) == ["b"]
    assert turns(several, "a") == 0


def test_of_many_stories_those_idle_longest_make_room(several: Programs) -> None:
    for name in "abc":
        begin(several, name)
    assert turns(several, "a") == 1  # no longer the one idle longest
    begin(several, "d")
    assert [turns(several, name) for name in "acd"] == [1, 1, 1]
    assert "b" not in several._stories


def test_a_story_in_use_is_never_forgotten(several: Programs) -> None:
    import gradio

    with several.story(client("a")), several.story(client("b")), several.story(client("c")):
        with pytest.raises(gradio.Error, match="too many programs"):
            begin(several, "d")
        assert list(several._stories) == ["a", "b", "c"]
    begin(several, "d")


@pytest.mark.parametrize("name", [None, ""])
def test_requests_without_a_session_share_nothing(several: Programs, name: str | None) -> None:
    begin(several, name)
    assert turns(several, name) == 0
    assert not several._stories


def test_requests_of_one_program_wait_for_each_other(several: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio

    inside = []

    def ask() -> None:
        with several.story(client("a")) as conversation:
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.02)
            conversation.turns.append(None)  # type: ignore[arg-type]
            inside.pop()

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns(several, "a") == 5
    monkeypatch.setattr(programs, "PATIENCE", 0.01)
    with several.story(client("a")), pytest.raises(gradio.Error, match="still under way"):
        begin(several, "a")
