"""Transcripts, files of a story, and the functions for programs."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import archive
from demo.app import start
from demo.conversation import Conversation, Reply, Settings, Speaking, Turn
from demo.transcripts import Transcripts
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


class StandInTranscriber:
    """Understands how long somebody spoke; knows a third language."""

    def __init__(self, languages: list[str]) -> None:
        self.languages = dict.fromkeys(languages, 0)

    def stream(self, sample_rate: int, language: str | None = None) -> Any:
        def written(seconds: float) -> list[Any]:
            spoken = {"text": f"{seconds:.1f}", "language": language or "en", "start": 0.0, "end": seconds}
            return [SimpleNamespace(**spoken)] if seconds else []

        held: list[np.ndarray] = []
        return SimpleNamespace(
            push=lambda chunk: (held.append(chunk), [])[1],
            finish=lambda: written(sum(map(len, held)) / sample_rate),
        )

    def foreign(self, waveform: np.ndarray) -> tuple[str, float]:
        return ("es" if loudest_frequency(waveform, 16000) > 300 else "en"), 0.95


def test_transcripts_follow_prompt_and_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.05)
    transcripts = Transcripts(StandInTranscriber(bundle.languages))  # type: ignore[arg-type]
    monkeypatch.setattr("demo.app.Transcripts", SimpleNamespace(open=lambda *_: transcripts))
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        talker = Talker(url)
        assert talker.get("health").json()["transcripts"]
        talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
        talker.turn(lambda: talker.upload(archive.sound_bytes(buzz(LOW, 0.8), 16000), name="a.wav"))

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
    with pytest.raises(TresseError, match="was made with the bundle braid: name it with --bundle"):
        archive.reproduce(Bundle.load("natural", "cpu"), path)


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
    nothing = dict.fromkeys(("target", "seed", "temperature", "top_p", "max_seconds", "speaker"))
    _, report = other.predict(handle_file(str(prompts[LOW])), **nothing, api_name="/continue_story")
    assert (report["turn"], [reply["languages"] for reply in report["replies"]]) == (2, [["en"]])
    assert zipfile.ZipFile(client.predict("zip", api_name="/save_story")).testzip() is None
    assert client.predict(api_name="/undo_turn") == 1
    with pytest.raises(Exception, match="unknown language"):
        client.predict(handle_file(str(prompts[LOW])), target="xx", api_name="/continue_story")
    assert client.predict(api_name="/new_story") == 0


def test_a_taken_port_is_said_in_one_line(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    with pytest.raises(TresseError, match="choose another port"):
        start(bundle, "127.0.0.1", int(url.rstrip("/").rsplit(":", 1)[1]))  # type: ignore[arg-type]
