"""What one page asks for at once is done one thing after the other, and nothing that was said is lost on the way."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from demo import archive, sessions, waiting_line
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker

LOW = 150.0
SOUND = archive.sound_bytes(buzz(LOW, 0.5), 16000)


def test_another_reply_while_nobody_listens_keeps_the_turn(served: tuple[FakeBundle, str]) -> None:
    _, url = served
    talker = Talker(url)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    seed = talker.of("done")[-1]["seed"]
    talker.close()
    talker.eventually(lambda: httpx.get(f"{url}tresse/health").json()["open"] == 0)
    asked = {"session": talker.session}
    for path in ("do/again", "example/0", "hear"):
        answer = httpx.post(f"{url}tresse/{path}", params=asked | ({"last": 1, "first": 1} if "hear" in path else {}))
        assert (answer.status_code, answer.json()["problem"]) == (400, sessions.NOBODY)
    again = Talker(url, talker.session)
    again.eventually(lambda: bool(again.of("story")))
    (turn,) = again.of("story")[-1]["turns"]
    assert [reply["seed"] for reply in turn["replies"]] == [seed]
    again.close()


def test_another_reply_that_is_stopped_before_it_sounds_leaves_the_first(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    talker = Talker(url)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    seed = talker.of("done")[-1]["seed"]
    bundle.real_time_factor = 10.0  # 1 s until the first chunk
    talker.do("again")
    talker.wait("heard", 2)
    talker.do("stop")
    talker.eventually(lambda: len(talker.of("story")[-1]["turns"]) == 1)
    assert [reply["seed"] for reply in talker.of("story")[-1]["turns"][0]["replies"]] == [seed]
    talker.eventually(lambda: talker.used() == 20)
    talker.close()


def test_commands_at_once_are_done_one_after_the_other(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    bundle.reply_seconds, bundle.real_time_factor = 0.5, 0.5
    talker = Talker(url)
    asked = [
        lambda: talker.post("upload", SOUND, name="a.wav"),
        lambda: talker.do("again"),
        lambda: talker.post("example/0"),
    ]
    asked += [
        lambda: talker.do("stop"),
        lambda: talker.do("settings", target="fr"),
        lambda: talker.do("choose", turn=0),
    ]
    talker.turn(asked[0])
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: asked[number % len(asked)](), range(24)))
    assert {answer.status_code for answer in answers} <= {204, 400}
    problems = {answer.json()["problem"] for answer in answers if answer.status_code == 400}
    assert problems <= {"the story has moved on: only a reply of the last turn can be chosen"}
    talker.turn(lambda: talker.post("upload", SOUND, name="last.wav"))
    assert bundle.most_active == 1
    heard = [message["turn"] for message in talker.of("heard")]
    assert heard[-1] == len({*heard}) - 1 == max(heard)
    assert not talker.of("problem")
    talker.close()


def test_a_page_that_asks_for_too_much_is_refused_by_name_and_delays_nobody_else(
    served: tuple[FakeBundle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, url = served
    monkeypatch.setattr(waiting_line, "MAX_COMMANDS", 8)
    greedy, other = Talker(url), Talker(url)
    hangs = threading.Event()
    monkeypatch.setattr(bundle, "context_use", lambda *_: (hangs.wait(20), (0, 1, 0))[1])
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(greedy.do, "stop") for _ in range(16)]
        while sum(answer.done() for answer in answers) < 8:
            time.sleep(0.01)
        assert {answer.result().json()["problem"] for answer in answers if answer.done()} == {waiting_line.BUSY}
        began = time.monotonic()
        assert other.post("hear", b"", first=1).status_code == 204
        assert time.monotonic() - began < 2
        hangs.set()
        assert sum(answer.result().status_code == 204 for answer in answers) == 8
    for talker in (greedy, other):
        talker.close()


def test_a_reply_that_does_not_end_is_named_and_the_story_waits(
    served: tuple[FakeBundle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, url = served
    monkeypatch.setattr(sessions, "END_SECONDS", 0.1)
    bundle.real_time_factor = 10.0  # 1 s until the first chunk
    talker = Talker(url)
    talker.say(buzz(LOW, 1.0))
    talker.wait("speaking")
    assert talker.do("undo").json()["problem"] == waiting_line.BUSY
    talker.wait("idle")
    assert talker.do("undo").status_code == 204
    talker.eventually(lambda: talker.of("story")[-1]["turns"] == [])
    assert talker.of("heard")[0]["turn"] == 0
    talker.close()
