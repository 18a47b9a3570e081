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
    answer = httpx.post(f"{url}tresse/upload", params={"session": talker.session}, content=SOUND)
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
        lambda: talker.upload(SOUND, name="a.wav").status_code == 204 or "not accepted",
        lambda: talker.problem("again"),
        lambda: talker.problem("example", number=0),
        lambda: talker.problem("stop"),
        lambda: talker.problem("settings", target="fr"),
        lambda: talker.problem("choose", turn=0),
    ]
    talker.turn(asked[0])
    with ThreadPoolExecutor(12) as pool:
        problems = set(pool.map(lambda number: asked[number % len(asked)](), range(24)))
    assert problems <= {True, None, "the story has moved on: only a reply of the last turn can be chosen"}
    talker.turn(lambda: talker.upload(SOUND, name="last.wav"))
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
    begun, hangs = threading.Event(), threading.Event()
    monkeypatch.setattr(bundle, "context_use", lambda *_: (begun.set(), hangs.wait(20), (0, 1, 0))[2])
    with ThreadPoolExecutor(16) as pool:
        stopped = [pool.submit(greedy.do, "stop") for _ in range(4)]  # they wait for each other in the socket
        assert begun.wait(20)
        answers = [pool.submit(greedy.upload, SOUND, name="a.wav") for _ in range(12)]
        while sum(answer.done() for answer in answers) < 5:
            time.sleep(0.01)
        assert {answer.result().json()["problem"] for answer in answers if answer.done()} == {waiting_line.BUSY}
        began = time.monotonic()
        assert other.problem("microphone", rate=16000) is None
        assert time.monotonic() - began < 2
        hangs.set()
        assert sum(answer.result().status_code == 204 for answer in answers) == 7
        assert [answer.result()["problem"] for answer in stopped] == [None] * 4
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
    assert talker.problem("undo") == waiting_line.BUSY
    talker.wait("idle")
    assert talker.problem("undo") is None
    talker.eventually(lambda: talker.of("story")[-1]["turns"] == [])
    assert talker.of("heard")[0]["turn"] == 0
    talker.close()
