"""Programs that talk through the WebSocket: turns, interruptions, transcripts."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo.app import Served, start
from demo.messages import Message
from demo.realtime.replies import Replies
from demo.realtime.told import Event
from demo.transcripts import Transcripts
from tests.conftest import spoken_beginning
from tests.demo.test_stories_kept import StandInTranscriber
from tests.fake_bundle import FakeBundle, buzz, loudest_frequency
from tests.program import MANUAL, Program

LOW, HIGH = 150.0, 240.0
ACCOUNT = ("ada", "secret")


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_a_turn_has_its_events_in_order(program: Program) -> None:
    response = program.turn(buzz(LOW, 1.0, 16000))
    assert program.kinds() == [
        "session.created",
        "session.updated",
        "input_audio_buffer.committed",
        "conversation.item.created",
        "response.created",
        "response.output_item.added",
        "response.audio.delta",
        "response.audio.done",
        "response.output_item.done",
        "response.done",
    ]
    (item,) = response["output"]
    assert (response["status"], item["status"], item["languages"]) == ("completed", "completed", ["en"])
    assert loudest_frequency(program.audio(item["id"]), 16000) == pytest.approx(LOW, abs=5)
    assert len(program.audio(item["id"])) == round(item["seconds"] * 16000)
    (prompt,) = program.of("conversation.item.created")
    assert (prompt["item"]["languages"], prompt["item"]["in_domain"], prompt["item"]["role"]) == (["en"], True, "user")
    assert program.of("input_audio_buffer.committed")[0]["item_id"] == prompt["item"]["id"]
    names = [event["event_id"] for event in program.events]
    assert len(set(names)) == len(names)
    second = program.turn(buzz(HIGH, 1.0, 16000))
    assert second["output"][0]["languages"] == ["fr"]
    assert second["context"]["used"] == 40  # the story goes on: two prompts, two replies
    assert program.of("input_audio_buffer.committed")[1]["previous_item_id"] == item["id"]


@pytest.mark.parametrize(("heard", "spoken"), itertools.product((16000, 24000), repeat=2))
def test_rates(socket_url: str, heard: int, spoken: int) -> None:
    program = Program(socket_url)
    told_back = program.settings(turn_detection=None, input_audio_rate=heard, output_audio_rate=spoken)
    assert (told_back["input_audio_rate"], told_back["output_audio_rate"]) == (heard, spoken)
    (item,) = program.turn(buzz(LOW, 1.0, heard))["output"]
    audio = program.audio(item["id"])
    assert len(audio) == pytest.approx(item["seconds"] * spoken, abs=2)
    assert loudest_frequency(audio, spoken) == pytest.approx(LOW, abs=5)
    program.close()


def test_two_replies_are_two_items_and_one_response(program: Program) -> None:
    response = program.turn(buzz(LOW, 1.0), target="both", seed=7)
    assert [(item["languages"], item["seed"]) for item in response["output"]] == [(["en"], 7), (["fr"], 7)]
    assert {event["output_index"] for event in program.of("response.audio.delta")} == {0, 1}
    assert len(program.turn(buzz(LOW, 1.0))["output"]) == 1  # that was for one response
    assert program.settings(target="fr")["target"] == "fr"
    assert program.turn(buzz(LOW, 1.0))["output"][0]["languages"] == ["fr"]


def test_a_prompt_may_be_committed_in_parts(program: Program) -> None:
    program.append(buzz(LOW, 0.5))
    program.say("input_audio_buffer.commit")
    response = program.turn(buzz(LOW, 0.7))
    assert program.of("conversation.item.created")[0]["item"]["seconds"] == pytest.approx(1.2)
    assert response["status"] == "completed"


def test_what_is_cleared_is_not_heard(program: Program) -> None:
    program.append(buzz(HIGH, 1.0))
    program.say("input_audio_buffer.clear")
    program.wait("input_audio_buffer.cleared")
    program.turn(buzz(LOW, 0.5))
    assert program.of("conversation.item.created")[0]["item"]["seconds"] == pytest.approx(0.5)
    program.append(buzz(LOW, 0.5))
    program.say("input_audio_buffer.commit")
    program.append(buzz(LOW, 0.5))
    assert program.refusal("input_audio_buffer.clear")["code"] == "buffer_committed"


def test_a_reply_is_cancelled_and_truncated(program: Program, socket_server: tuple[FakeBundle, Served, str]) -> None:
    bundle = socket_server[0]
    bundle.reply_seconds, bundle.real_time_factor = 20.0, 0.5
    program.append(buzz(LOW, 1.0))
    program.say("input_audio_buffer.commit")
    program.say("response.create")
    program.wait("response.audio.delta", 2)
    program.append(buzz(LOW, 1.0))
    program.say("input_audio_buffer.commit")
    assert program.refusal("response.create")["code"] == "conversation_already_has_active_response"
    program.say("response.cancel")
    response = program.wait("response.done")["response"]
    (item,) = response["output"]
    assert (response["status"], item["status"]) == ("cancelled", "incomplete")
    assert item["seconds"] < 20
    assert bundle.active == 0
    bundle.reply_seconds = 0.5
    program.say("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=100)
    assert program.wait("conversation.item.truncated")["audio_end_ms"] == 100
    program.say("response.create")
    assert program.wait("response.done", 2)["response"]["status"] == "completed"
    assert len(program.of("response.audio.done")) == 2
    assert program.refusal("response.cancel")["code"] == "response_cancel_not_active"
    prompt = program.of("conversation.item.created")[0]["item"]["id"]
    assert program.refusal("conversation.item.truncate", item_id=prompt, audio_end_ms=1)["param"] == "item_id"


def test_the_server_notices_turns_and_lets_itself_be_interrupted(
    socket_url: str, socket_server: tuple[FakeBundle, Served, str]
) -> None:
    bundle = socket_server[0]
    bundle.reply_seconds, bundle.real_time_factor = 60.0, 0.5
    silence, speech = np.zeros(32000, np.float32), spoken_beginning("en")
    program = Program(socket_url)
    assert program.of("session.created")[0]["session"]["turn_detection"]["type"] == "server_vad"
    program.settings(input_audio_rate=16000, max_seconds=30)
    assert program.refusal("input_audio_buffer.commit")["code"] == "not_supported"
    assert program.refusal("response.create")["code"] == "not_supported"
    program.append(np.concatenate([silence, speech]))
    began = program.wait("input_audio_buffer.speech_started")
    assert 2000 <= began["audio_start_ms"] <= 1000 * (2 + len(speech) / 16000)
    assert not program.of("response.created")
    program.append(silence)
    program.wait("response.audio.delta", 2)
    assert program.of("input_audio_buffer.speech_stopped")[0]["item_id"] == began["item_id"]
    assert program.of("input_audio_buffer.committed")[0]["item_id"] == began["item_id"]
    program.append(speech)  # it may begin at any time
    response = program.wait("response.done")["response"]
    assert response["status"] == "cancelled"
    kinds = program.kinds()
    assert kinds.index("response.done") > len(kinds) - 1 - kinds[::-1].index("input_audio_buffer.speech_started")
    item = response["output"][0]
    program.say("conversation.item.truncate", item_id=item["id"], audio_end_ms=50)
    program.wait("conversation.item.truncated")
    bundle.reply_seconds = 0.5
    program.append(silence)
    assert program.wait("response.done", 2)["response"]["status"] == "completed"
    noise = np.random.default_rng(0).normal(0, 0.003, 32000).astype(np.float32)
    program.append(np.concatenate([noise, silence]))
    program.say("input_audio_buffer.clear")
    program.wait("input_audio_buffer.cleared")
    assert len(program.of("response.created")) == 2
    assert not [error for error in program.of("error") if error["error"]["code"] != "not_supported"]
    program.close()


def test_transcripts_come_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.02)
    transcripts = Transcripts(StandInTranscriber(bundle.languages))  # type: ignore[arg-type]
    monkeypatch.setattr("demo.app.Transcripts", SimpleNamespace(open=lambda *_: transcripts))
    page, address = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        program = Program(address)
        assert program.of("session.created")[0]["session"]["transcripts"]
        program.settings(**MANUAL)
        response = program.turn(buzz(LOW, 1.0))
        (item,) = response["output"]
        assert item["content"] == [{"type": "audio", "transcript": "0.5"}]
        (delta,), (done,) = program.of("response.audio_transcript.delta"), program.of("response.audio_transcript.done")
        assert (delta["delta"], done["transcript"], done["item_id"]) == ("0.5", "0.5", item["id"])
        assert program.kinds()[-1] == "response.done"
        said = program.wait("conversation.item.input_audio_transcription.completed")
        assert said["transcript"] == "1.0"
        assert said["item_id"] == program.of("conversation.item.created")[0]["item"]["id"]
        program.close()
    finally:
        page.close()


def test_the_next_response_may_be_asked_for_as_soon_as_an_error_is_told() -> None:
    """Before the session is idle, whose message belongs to the prompt that could not be used."""
    events: list[Event] = []
    replies = Replies(events.append, 16000, False)

    def hear(kind: str, **values: Any) -> None:
        replies.take(Message({"type": kind, **values}))

    replies.commit()
    replies.asked = True
    hear("problem", text="no speech was heard")
    assert [event.type for event in events[-1:]] == ["error"]
    assert not replies.working
    replies.commit()
    committed = events[-1]
    replies.asked = True
    hear("idle")  # of the first one
    assert replies.working
    replies.commit()  # what follows belongs to the prompt that waits
    assert events[-1].item_id == committed.item_id  # type: ignore[attr-defined]
