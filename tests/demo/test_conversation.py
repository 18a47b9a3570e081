"""Conversations as the server holds them: several turns, several people, interruptions, files. No browser needed."""

from __future__ import annotations

import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import archive, recordings
from demo.app import start
from demo.conversation import Conversation, Reply, Settings, Speaking, Turn
from demo.transcripts import Transcripts
from demo.turn_taking import TurnTaking
from demo.waiting_line import Left, WaitingLine
from slm.bundle import Bundle
from slm.continuation import Prompt
from slm.errors import TresseError
from slm.speaking import Chunk
from slm.units import Units
from tests.conftest import spoken_beginning
from tests.fake_bundle import FakeBundle, buzz, loudest_frequency
from tests.talker import Talker
from train.speech.voices import Voices, speak

LOW, HIGH = 150.0, 240.0
"""Pitches in Hz that the stand-in hears as its first and its last language."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[FakeBundle, str]]:
    """A server with the stand-in bundle: the bundle and its address."""
    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=0.05)
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield bundle, url
    page.close()


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
        assert "only a reply of the last turn" in talker.do("choose", turn=4, part=0).json()["problem"]
    if target == "braided":
        spoken = talker.of("audio")[-1]["spoken"]
        assert spoken[:4] == ["fr", "en", "fr", "en"]
    talker.close()


def test_what_was_not_heard_is_no_part_of_the_story(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    bundle.reply_seconds, bundle.real_time_factor = 10.0, 0.3
    talker = Talker(url)
    talker.say(buzz(LOW, 1.0))
    talker.wait("audio", 4)
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
    response = talker.get("listen", page="another")
    assert response.status_code == 400
    assert "another tab" in response.json()["problem"]
    talker.close()


def test_hands_free_takes_turns_and_lets_itself_be_interrupted(bundle: Bundle, tmp_path: Path) -> None:
    page, url = start(bundle, "127.0.0.1", 0)
    silence = np.zeros(16000, np.float32)
    speech = spoken_beginning("en")
    try:
        talker = Talker(url)
        talker.do("settings", target="fr", max_seconds=4, seed=3)
        talker.say(np.concatenate([silence, speech]), free=1)
        talker.eventually(lambda: len(talker.of("speech")) == 1)
        assert not talker.of("heard")
        talker.turn(lambda: talker.say(silence, free=1, more=1))
        assert talker.of("heard")[0]["language"] == "en"
        whole = bundle.prompt(speech, 16000)
        units = [sentence["ids"] for sentence in talker.of("heard")[0]["sentences"]]
        assert len(units) == len(whole.sentences)
        assert len(talker.audio(0)) > 8000
        talker.say(np.concatenate([silence, speech]), free=1, more=1)  # it may begin at any time
        talker.eventually(lambda: len(talker.of("speech")) == 2)
        noise = np.random.default_rng(0).normal(0, 0.02, 32000).astype(np.float32)
        talker.turn(lambda: talker.say(silence, free=1, more=1))
        talker.say(noise, free=1, more=1)
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
    response = talker.post("upload", b"this is not a recording", name="../broken.wav")
    assert response.status_code == 400
    assert "“broken.wav” is not audio" in response.json()["problem"]
    assert "/" not in response.json()["problem"].replace("wav, flac", "")
    monkeypatch.setattr("demo.routes.MAX_UPLOAD", 1000)
    assert "larger than" in talker.post("upload", bytes(2000), name="big.wav").json()["problem"]
    monkeypatch.undo()
    talker.turn(lambda: talker.say(np.zeros(16000, np.float32)))
    assert "silent" in talker.of("problem")[-1]["text"]
    bundle.max_prompt_seconds = 1.0
    loud = np.round(buzz(LOW, 1.5) * 32767).astype("<i2").tobytes()
    assert "say less" in talker.post("hear", loud, first=1).json()["problem"]
    assert talker.do("settings", target="xx").status_code == 400
    assert talker.do("settings", temperature="hot").status_code == 400
    assert talker.do("dance").status_code == 400
    assert talker.get("sound", turn=7, part=0).status_code == 400
    talker.turn(lambda: talker.post("upload", archive.sound_bytes(buzz(HIGH, 0.9), 16000), name="good.wav"))
    assert loudest_frequency(talker.audio(0), 16000) == pytest.approx(HIGH, abs=5)
    talker.close()


def test_forty_at_once_are_queued_and_answered_each_with_its_own(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    bundle.reply_seconds, bundle.real_time_factor = 0.2, 2.0
    pitches = [100 + 10 * (number % 20) for number in range(40)]
    talkers = [Talker(url) for _ in pitches]
    for talker, pitch in zip(talkers, pitches, strict=True):
        talker.post("upload", archive.sound_bytes(buzz(pitch, 0.4), 16000), name="a.wav")
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


def test_a_turn_ends_with_a_pause_and_holds_all_that_was_said() -> None:
    turns, silence = TurnTaking(), np.zeros(16000, np.float32)
    speech = spoken_beginning("en")[: 16000 * 3]
    kept, events = [], []
    whole = np.concatenate([silence, speech, silence, silence])
    for start_ in range(0, len(whole), 700):
        part, began, ended = turns.push(whole[start_ : start_ + 700])
        kept.append(part)
        events += [name for name, flag in (("began", began), ("ended", ended)) if flag]
    assert events == ["began", "ended"]
    turn = np.concatenate(kept)
    at = np.correlate(turn[:40000], speech[2000:6000], "valid").argmax()
    assert at >= 2000  # nothing of its beginning is missing
    assert 0.9 < len(turn) / (len(speech) + 0.7 * 16000) < 1.3


class StandInTranscriber:
    """Understands how long somebody spoke; knows a third language."""

    def __init__(self, languages: list[str]) -> None:
        self.languages = dict.fromkeys(languages, 0)
        self.model = SimpleNamespace(supported_languages=["en", "fr", "es"], detect_language=self._detect)

    def stream(self, sample_rate: int, language: str | None = None) -> Any:
        def written(seconds: float) -> list[Any]:
            return [SimpleNamespace(text=f"{seconds:.1f}", language=language or "en")] if seconds else []

        held: list[np.ndarray] = []
        return SimpleNamespace(
            push=lambda chunk: (held.append(chunk), [])[1],
            finish=lambda: written(sum(map(len, held)) / sample_rate),
        )

    def _detect(self, audio: np.ndarray) -> tuple[str, float, None]:
        return ("es" if loudest_frequency(audio, 16000) > 300 else "en"), 0.95, None


def test_transcripts_follow_prompt_and_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.05)
    transcripts = Transcripts(StandInTranscriber(bundle.languages))  # type: ignore[arg-type]
    monkeypatch.setattr("demo.app.Transcripts", SimpleNamespace(open=lambda *_: transcripts))
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        talker = Talker(url)
        assert talker.get("health").json()["transcripts"]
        talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
        talker.turn(lambda: talker.post("upload", archive.sound_bytes(buzz(LOW, 0.8), 16000), name="a.wav"))

        def texts() -> dict[tuple[int, Any], str]:
            return {(m["turn"], m["part"]): m["text"] for m in talker.of("transcript")}

        wanted = {(0, "prompt"): "1.0", (0, 0): "0.5", (1, "prompt"): "0.8", (1, 0): "0.5"}
        talker.eventually(lambda: wanted.items() <= texts().items())
        talker.do("undo")
        talker.eventually(lambda: bool(talker.of("story")[-1]["turns"]))
        turn = talker.of("story")[-1]["turns"][0]
        assert (turn["text"], turn["replies"][0]["text"]) == ("1.0", "0.5")
        assert not talker.of("problem")
        talker.turn(lambda: talker.say(buzz(400.0, 1.0)))
        talker.eventually(lambda: bool(talker.of("problem")))
        assert "language es" in talker.of("problem")[0]["text"]
        talker.close()
    finally:
        page.close()


# ---- files ----------------------------------------------------------------------------------------------------------


def made_up(story: Conversation, bundle: Bundle, prompt: np.ndarray, asked: Settings) -> Turn:
    heard = bundle.prompt(prompt, 16000, story.story)
    turn = Turn(prompt, 16000, heard, asked)
    for reply in asked.replies(bundle.languages, heard.language):
        speaking = Speaking(bundle, heard, reply, threading.Event())
        assert list(speaking)
        assert speaking.reply is not None
        turn.replies.append(speaking.reply)
    story.add(turn)
    return turn


def test_every_reply_can_be_made_again_from_the_zip(bundle: Bundle, tmp_path: Path) -> None:
    story = Conversation()
    made_up(story, bundle, spoken_beginning("en"), Settings("both", max_seconds=3.0))
    story.choose(0, 1)
    second = made_up(story, bundle, spoken_beginning("fr"), Settings("braided", max_seconds=4.0, temperature=1.0))
    second.replies[0].cut(2.0)  # somebody interrupted
    made_up(story, bundle, spoken_beginning("en"), Settings("same", max_seconds=2.0, speaker=bundle.speakers[-1]))
    panel = Voices.load()
    strange = speak("The quarterly report shows that revenue grew.", "en", panel.speaker("basile"), panel)
    assert not made_up(story, bundle, strange, Settings("same", max_seconds=2.0)).prompt.in_domain
    path = tmp_path / "story.zip"
    path.write_bytes(archive.pack(story, bundle))
    for number, turn in enumerate(story.turns, 1):
        for part, reply in enumerate(turn.replies, 1):
            again = archive.reproduce(bundle, path, number, part)
            assert np.array_equal(again.waveform, reply.waveform)
            assert [s.language for s in again.sentences] == [s.language for s in reply.sentences]
    with zipfile.ZipFile(path) as files:
        names = files.namelist()
        assert {"conversation.json", "conversation.flac", "turn-01-reply-2-fr.wav"} <= set(names)
        whole, rate = soundfile.read(io.BytesIO(files.read("conversation.flac")))
    spoken = sum(turn.waveform.size + turn.replies[turn.chosen].waveform.size for turn in story.turns)
    assert len(whole) == spoken + (2 * len(story.turns) - 1) * round(archive.GAP * rate)
    with pytest.raises(TresseError, match="has no reply 9"):
        archive.reproduce(bundle, path, 1, 9)
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(TresseError, match="not a conversation"):
        archive.reproduce(bundle, tmp_path / "no.zip")


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=6),
    seconds=st.floats(0, 1.2),
)
def test_a_reply_that_is_cut_keeps_the_units_that_were_heard(lengths: list[tuple[int, int]], seconds: float) -> None:
    chunks, sentence, prompt = [], 0, Prompt([], "en", 1.0)
    for units, step in lengths:
        ids = np.arange(units)
        owner = np.full(units, sentence)
        spoken = tuple("en" for _ in range(sentence + 1))
        samples = np.ones(units * 320, np.float32)
        chunks.append(Chunk(samples, Units(ids, np.ones(units, np.int64), 50.0), 1, 0.0, prompt, owner, spoken))
        sentence += step == 1
    whole = np.concatenate([chunk.audio for chunk in chunks])
    reply = Reply(("en",), 0, whole, 16000, chunks, 0.0, 1.0)
    everything = sum(len(one.units) for one in reply.sentences)
    reply.cut(seconds)
    assert len(reply.waveform) == min(len(whole), round(seconds * 16000))
    kept = sum(len(one.units) for one in reply.sentences)
    assert kept <= everything
    assert abs(kept - len(reply.waveform) / 320) <= 1


def test_prompts_out_of_domain_are_reported_kept_and_no_part_of_the_story(
    served: tuple[FakeBundle, str], tmp_path: Path
) -> None:
    bundle, url = served
    talker = Talker(url)
    talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
    talker.turn(lambda: talker.say(buzz(700, 1.0)))
    assert [message["in_domain"] for message in talker.of("heard")] == [True, False]
    talker.eventually(lambda: talker.used() == 30)  # one prompt and two replies
    kept = tmp_path / "story.zip"
    kept.write_bytes(talker.get("story", form="zip").content)
    prompts = [turn["prompt"] for turn in archive.read_listing(kept)["turns"]]
    assert [prompt["in_domain"] for prompt in prompts] == [True, False]
    assert len(prompts[1]["sentences"]) == 1
    assert len(prompts[1]["before"]) == 2
    older = archive.read_listing(kept)
    for turn in older["turns"]:
        turn["prompt"]["familiar"] = turn["prompt"].pop("in_domain")
    with zipfile.ZipFile(tmp_path / "older.zip", "w") as files:
        files.writestr(archive.LISTING, json.dumps({**older, "format": 2}))
    asked: list[Prompt] = []
    reply = bundle.reply
    bundle.reply = lambda prompt, *rest, **more: asked.append(prompt) or reply(prompt, *rest, **more)  # type: ignore
    for path in (kept, tmp_path / "older.zip"):
        archive.reproduce(bundle, path)  # type: ignore[arg-type]
        assert not asked[-1].in_domain
        assert len(asked[-1].story) == 2
    talker.close()


def test_recordings_are_kept_whole_and_found_by_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    bundle = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.05)
    page, url = start(bundle, "127.0.0.1", 0, recordings=folder)  # type: ignore[arg-type]
    try:
        talker = Talker(url)
        for pitch, target in ((LOW, "same"), (LOW, "both"), (HIGH, "same")):
            talker.do("settings", target=target)
            talker.turn(lambda pitch=pitch: talker.say(buzz(pitch, 1.0)))
        talker.eventually(lambda: len(talker.of("saved")) == 3)
        found = talker.get("recordings").json()
        assert len(found) == 3
        assert {part["file"] for turn in found for part in turn["parts"]} >= {"prompt.wav", "reply-2-fr.wav"}
        assert len(talker.get("recordings", language="fr").json()) == 2
        assert len(talker.get("recordings", language="en").json()) == 2
        name = talker.of("saved")[0]["name"]
        data, rate = soundfile.read(io.BytesIO(talker.get(f"recordings/{name}/reply-1-en.wav").content))
        assert len(data) == round(0.5 * rate)
        for bad in (f"{name}/turn.json", f"..%2f{name}/prompt.wav", "x/prompt.wav"):
            assert talker.get(f"recordings/{bad}").status_code in (400, 404)
        described = json.loads((folder / name / "turn.json").read_text())
        assert (described["replies"][0]["languages"], described["prompt"]["in_domain"]) == (["en"], True)
        before = sorted(folder.iterdir())

        def full(*_: Any) -> None:
            raise TresseError("cannot write: free some space there")

        monkeypatch.setattr(recordings, "write_wav", full)
        talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
        assert "free some space" in talker.of("problem")[-1]["text"]
        assert talker.of("done")[-1]["seconds"] == 0.5  # the reply is there all the same
        assert sorted(folder.iterdir()) == before
        talker.close()
    finally:
        page.close()


def test_without_a_folder_nothing_is_kept(served: tuple[FakeBundle, str]) -> None:
    _, url = served
    talker = Talker(url)
    assert "--recordings" in talker.get("recordings").json()["problem"]
    talker.close()


def test_programs_have_the_same_functions(served: tuple[FakeBundle, str], tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    bundle, url = served
    bundle.reply_seconds = 0.5
    prompts = {}
    for pitch in (LOW, HIGH):
        prompts[pitch] = tmp_path / f"{pitch}.wav"
        prompts[pitch].write_bytes(archive.sound_bytes(buzz(pitch, 1.0), 16000))
    client, other = Client(url, verbose=False), Client(url, verbose=False)
    files, report = client.predict(handle_file(str(prompts[LOW])), target="both", seed=5, api_name="/continue_story")
    assert [reply["languages"] for reply in report["replies"]] == [["en"], ["fr"]]
    assert [reply["seed"] for reply in report["replies"]] == [5, 5]
    assert loudest_frequency(*soundfile.read(files[1])) == pytest.approx(LOW, abs=5)
    _, report = client.predict(handle_file(str(prompts[HIGH])), target="braided", api_name="/continue_story")
    assert (report["turn"], report["language"], report["in_domain"]) == (2, "fr", True)
    assert report["context"]["used"] == 40
    _, report = other.predict(handle_file(str(prompts[LOW])), api_name="/continue_story")
    assert report["turn"] == 1
    assert zipfile.ZipFile(client.predict("zip", api_name="/save_story")).testzip() is None
    assert client.predict(api_name="/undo_turn") == 1
    with pytest.raises(Exception, match="unknown language"):
        client.predict(handle_file(str(prompts[LOW])), target="xx", api_name="/continue_story")
    assert client.predict(api_name="/new_story") == 0


def test_a_taken_port_is_said_in_one_line(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    with pytest.raises(TresseError, match="choose another port"):
        start(bundle, "127.0.0.1", int(url.rstrip("/").rsplit(":", 1)[1]))  # type: ignore[arg-type]
