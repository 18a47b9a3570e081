"""Conversations as the server holds them: several turns, several people, interruptions, files. No browser needed."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from websockets.exceptions import InvalidStatus

from demo import archive, waiting_line
from demo.app import start
from demo.waiting_line import Left, WaitingLine
from slm.bundle import Bundle
from slm.errors import TresseError
from tests.conftest import spoken_beginning
from tests.fake_bundle import FakeBundle, buzz, loudest_frequency
from tests.talker import Talker

LOW, HIGH = 150.0, 240.0
"""Pitches in Hz that the stand-in hears as its first and its last language."""


def test_a_story_goes_on_over_turns_in_either_language(served: tuple[FakeBundle, str]) -> None:
    _, url = served
    talker = Talker(url)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    talker.turn(lambda: talker.say(buzz(HIGH, 1.0)))
    assert [message["language"] for message in talker.of("heard")] == ["en", "fr"]
    assert [message["languages"] for message in talker.of("done")] == [["en"], ["fr"]]  # target: same as mine
    for turn, pitch in enumerate((LOW, HIGH)):
        assert loudest_frequency(talker.audio(turn), 16000) == pytest.approx(pitch, abs=5)
    talker.eventually(lambda: talker.used() == 40)  # two prompts and two replies of a sentence each
    talker.do("undo")
    talker.eventually(lambda: talker.used() == 20)
    assert [turn["turn"] for turn in talker.of("story")[-1]["turns"]] == [0]
    before = talker.of("done")[-1]["seed"]
    talker.turn(lambda: talker.do("again"))
    assert talker.of("done")[-1]["seed"] != before
    talker.eventually(lambda: talker.used() == 20)
    talker.do("new")
    talker.eventually(lambda: talker.used() == 0)
    assert talker.of("story")[-1]["turns"] == []
    assert talker.get("story", form="wav").json()["problem"].startswith("there is nothing to download")
    talker.close()


@pytest.mark.parametrize(
    ("target", "expected"), [("fr", [["fr"]]), ("both", [["en"], ["fr"]]), ("braided", [["fr", "en"]])]
)
def test_targets(served: tuple[FakeBundle, str], target: str, expected: list[list[str]]) -> None:
    _, url = served
    talker = Talker(url)
    talker.do("settings", target=target)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    assert [message["languages"] for message in talker.of("done")] == expected
    if target == "both":
        talker.do("choose", turn=0, part=1)
        talker.do("settings", target="same")
        talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
        talker.do("undo")
        talker.eventually(lambda: [turn["chosen"] for turn in talker.of("story")[-1]["turns"]] == [1])
        assert "only a reply of the last turn" in str(talker.problem("choose", turn=4, part=0))
    if target == "braided":
        spoken = talker.of("audio")[-1]["spoken"]
        assert spoken[:4] == ["fr", "en", "fr", "en"]
    talker.close()


def test_what_was_not_heard_is_no_part_of_the_story(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    bundle.reply_seconds, bundle.real_time_factor = 10.0, 0.3
    talker = Talker(url)
    talker.say(buzz(LOW, 1.0))
    talker.wait("audio")
    talker.eventually(lambda: len(talker.audio(0)) >= 0.7 * bundle.sample_rate)
    began = time.monotonic()
    talker.do("stop", turn=0, part=0, heard=0.7)
    assert time.monotonic() - began < 1
    assert bundle.closed == 1
    talker.eventually(lambda: talker.of("done")[-1]["seconds"] == 0.7)
    assert talker.of("done")[-1]["stopped"]
    data, rate = soundfile.read(io.BytesIO(talker.get("sound", turn=0, part=0).content))
    assert len(data) == round(0.7 * rate)
    talker.close()


def test_a_closed_page_frees_its_work_and_keeps_its_story_a_while(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    talker = Talker(url)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    bundle.reply_seconds, bundle.real_time_factor = 20.0, 1.0
    talker.say(buzz(LOW, 1.0))
    talker.wait("audio", len(talker.of("audio")) + 2)
    talker.close()
    deadline = time.monotonic() + 2
    while bundle.active and time.monotonic() < deadline:
        time.sleep(0.02)
    assert bundle.active == 0
    assert bundle.closed == 1
    again = Talker(url, talker.session)
    again.eventually(lambda: bool(again.of("story")))
    assert again.of("story")[0]["turns"][0]["turn"] == 0
    assert again.get("health").json()["open"] == 1
    again.close()


def test_two_pages_cannot_share_a_story(served: tuple[FakeBundle, str]) -> None:
    _, url = served
    talker = Talker(url)
    with pytest.raises(InvalidStatus) as refused:
        Talker(url, talker.session)
    assert refused.value.response.status_code == 400
    assert "another tab" in json.loads(refused.value.response.body)["problem"]
    talker.close()


def test_hands_free_takes_turns_and_lets_itself_be_interrupted(bundle: Bundle, tmp_path: Path) -> None:
    page, url = start(bundle, "127.0.0.1", 0)
    silence = np.zeros(32000, np.float32)
    speech = spoken_beginning("en")
    try:
        talker = Talker(url)
        talker.do("settings", target="fr", max_seconds=4, seed=3)
        talker.listen()
        talker.sounds(np.concatenate([silence, speech]))
        talker.eventually(lambda: len(talker.of("speech")) == 1)
        assert not talker.of("heard")
        talker.turn(lambda: talker.sounds(silence))
        assert talker.of("heard")[0]["language"] == "en"
        whole = bundle.prompt(speech, 16000)
        units = [sentence["ids"] for sentence in talker.of("heard")[0]["sentences"]]
        assert len(units) == len(whole.sentences)
        assert len(talker.audio(0)) > 8000
        talker.sounds(np.concatenate([silence, speech]))  # it may begin at any time
        talker.eventually(lambda: len(talker.of("speech")) == 2)
        noise = np.random.default_rng(0).normal(0, 0.02, 32000).astype(np.float32)
        talker.turn(lambda: talker.sounds(silence))
        talker.sounds(noise)
        assert len(talker.of("heard")) == 2
        assert not talker.of("problem")
        talker.close()
    finally:
        page.close()


def test_prompts_that_cannot_be_used_get_a_line_and_the_page_goes_on(
    served: tuple[FakeBundle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, url = served
    talker = Talker(url)
    response = talker.upload(b"this is not a recording", name="../broken.wav")
    assert response.status_code == 400
    assert "“broken.wav” is not audio" in response.json()["problem"]
    assert "/" not in response.json()["problem"].replace("wav, flac", "")
    monkeypatch.setattr("demo.limits.MAX_UPLOAD", 1000)
    assert "larger than" in talker.upload(bytes(2000), name="big.wav").json()["problem"]
    monkeypatch.undo()
    talker.turn(lambda: talker.say(np.zeros(16000, np.float32)))
    assert "silent" in talker.of("problem")[-1]["text"]
    bundle.max_prompt_seconds = 1.0
    assert "say less" in talker.say(buzz(LOW, 1.5))["problem"]
    assert "say less" in talker.of("unheard")[0]["text"]  # while there is time to stop
    assert "language" in str(talker.problem("settings", target="xx"))
    assert "temperature" in str(talker.problem("settings", temperature="hot"))
    assert "'dance'" in str(talker.problem("dance"))
    assert talker.get("sound", turn=7, part=0).status_code == 400
    talker.turn(lambda: talker.upload(archive.sound_bytes(buzz(HIGH, 0.9), 16000), name="good.wav"))
    assert loudest_frequency(talker.audio(0), 16000) == pytest.approx(HIGH, abs=5)
    talker.close()


def test_a_voice_is_checked_and_nothing_of_it_is_kept(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    talker = Talker(url)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    before = len(talker.messages)
    assert talker.problem("microphone", rate=48000, use="check") is None
    talker.sounds(buzz(HIGH, 2.0, 48000), 48000)
    check = talker.do("finish")["check"]
    assert (check["language"], check["in_domain"], check["advice"]) == ("fr", True, "")
    assert -40 < check["voice"]["level"] < 0
    bundle.max_prompt_seconds = 1.0
    talker.problem("microphone", rate=16000, use="check")
    talker.sounds(buzz(HIGH, 2.0))
    assert "say less" in talker.wait("unheard")["text"]
    assert "say less" in str(talker.problem("finish"))
    assert len(talker.messages) == before + 1
    talker.close()


@pytest.mark.parametrize("use", ["prompt", "check", "free"])
def test_sound_that_cannot_be_heard_is_reported_and_the_next_is_heard(
    served: tuple[FakeBundle, str], monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    _, url = served
    talker = Talker(url)
    assert talker.problem("microphone", rate=16000, use=use) is None
    monkeypatch.setattr(waiting_line, "MAX_COMMANDS", 0)
    talker.sounds(np.zeros(1600, np.float32))
    assert talker.wait("problem" if use == "free" else "unheard")["text"] == waiting_line.BUSY
    monkeypatch.undo()
    talker.sounds(np.zeros(1600, np.float32))
    assert talker.problem("finish") == (None if use == "free" else waiting_line.BUSY)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    assert talker.of("heard")[0]["seconds"] == pytest.approx(1.0)
    talker.close()


def test_forty_at_once_are_queued_and_answered_each_with_its_own(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    bundle.reply_seconds, bundle.real_time_factor = 0.2, 2.0
    pitches = [100 + 10 * (number % 20) for number in range(40)]
    talkers = [Talker(url) for _ in pitches]
    for talker, pitch in zip(talkers, pitches, strict=True):
        talker.upload(archive.sound_bytes(buzz(pitch, 0.4), 16000), name="a.wav")
    for talker, pitch in zip(talkers, pitches, strict=True):
        talker.wait("idle", seconds=120)
        assert loudest_frequency(talker.audio(0), 16000) == pytest.approx(pitch, abs=10)
        assert not talker.of("problem")
    assert 1 <= bundle.most_active <= 2 * (os.cpu_count() or 1)
    assert any(talker.of("queue") for talker in talkers)
    for talker in talkers:
        talker.close()


def test_a_reply_that_waits_in_line_can_be_left() -> None:
    line, stop = WaitingLine(1, longest=1), threading.Event()
    positions: list[int] = []
    with line.wait(threading.Event()):
        waiting = threading.Thread(target=lambda: _left(line, stop, positions))
        waiting.start()
        while not positions:
            time.sleep(0.005)
        with pytest.raises(TresseError, match="waiting already"), line.wait(threading.Event()):
            pass
        stop.set()
        waiting.join(2)
        assert not waiting.is_alive()
    assert (line.busy, line.waiting) == (0, 0)
    assert positions == [1]


def _left(line: WaitingLine, stop: threading.Event, positions: list[int]) -> None:
    with pytest.raises(Left), line.wait(stop, positions.append):
        pass


def test_the_line_serves_in_order_of_arrival() -> None:
    line, order = WaitingLine(1), []
    threads = []
    with line.wait(threading.Event()):
        for number in range(5):

            def take(number: int = number) -> None:
                with line.wait(threading.Event()):
                    order.append(number)

            threads.append(threading.Thread(target=take))
            threads[-1].start()
            while line.waiting <= number:
                time.sleep(0.002)
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3, 4]
