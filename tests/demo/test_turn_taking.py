"""Hands-free turns: what was said makes them, not how a network cuts the sound into chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.anticipation import ReadPrompt
from demo.app import start
from demo.messages import Message
from demo.microphone import Microphone
from demo.requests import SettingsAsked
from demo.service import Service
from demo.transcripts import LiveTranscript, Transcripts
from slm.audio import resample
from slm.continuation import Prompt
from slm.turn_ends import PATIENCES, PatienceName
from slm.turn_taking import TurnTaking
from slm.voice_activity import RATE, WINDOW, Change
from tests.conftest import spoken_beginning
from tests.fake_bundle import FakeBundle
from tests.talker import Talker

SILENCE = np.zeros(2 * RATE, np.float32)
SPEECH = spoken_beginning("en")[: RATE * 3 // 2]
TWICE = np.concatenate([SILENCE, SPEECH, SILENCE, SPEECH, SILENCE])
"""Two utterances, with pauses that end a turn."""


def turns_of() -> list[np.ndarray]:
    """The prompts of TWICE, each up to the pause after its last word."""
    taking, turns = TurnTaking(), []
    for part in taking.push(TWICE):
        if part.change is Change.BEGAN:
            parts: list[np.ndarray] = []
        parts.append(part.samples)
        if part.change is Change.PAUSED:
            turn = np.concatenate(parts)
        if part.change is Change.ENDED:
            turns.append(turn)
    return turns


class Listener:
    """Keeps the kinds of the messages, and the prompts."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.prompts: list[np.ndarray] = []

    def tell(self, kind: str, audio: bytes = b"", **values: object) -> None:
        if kind != "listening":
            self.events.append(kind)

    def interrupt(self) -> None:
        self.events.append("interrupt")

    def answer(self, read: ReadPrompt, transcript: LiveTranscript | None = None) -> None:
        self.prompts.append(read(())[0])

    def anticipate(self, read: ReadPrompt) -> Prompt | None:
        return read(())[2]

    def withdraw(self) -> None:
        """Nothing was computed."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> FakeBundle:
    return FakeBundle(tmp_path_factory.mktemp("bundle"), max_prompt_seconds=2.7)


@pytest.fixture(scope="module")
def quick_bundle(tmp_path_factory: pytest.TempPathFactory) -> FakeBundle:
    return FakeBundle(tmp_path_factory.mktemp("quick"), reply_seconds=0.2, real_time_factor=0.02)


@settings(max_examples=15, deadline=None)
@given(rate=st.sampled_from([16000, 44100, 48000]), size=st.floats(0.02, 8.0))
def test_a_microphone_of_any_rate_gives_the_same_prompts(stand_in: FakeBundle, rate: int, size: float) -> None:
    sound, reference = resample(TWICE, RATE, rate), turns_of()
    listener = Listener()
    microphone = Microphone(listener, stand_in, Transcripts(), rate, True)  # type: ignore[arg-type]
    for begin in range(0, len(sound), round(size * rate)):
        microphone.push(sound[begin : begin + round(size * rate)])
    assert listener.events == ["interrupt", "speech", "pause"] * 2
    for prompt, turn in zip(listener.prompts, reference, strict=True):
        assert abs(len(prompt) - len(turn)) <= 1024  # the way there and back may move a decision by a window or two


def test_a_turn_that_is_too_long_costs_one_line_and_not_the_next_turn(stand_in: FakeBundle) -> None:
    listener = Listener()
    microphone = Microphone(listener, stand_in, Transcripts(), RATE, True)  # type: ignore[arg-type]
    microphone.push(np.concatenate([SILENCE, SPEECH, SPEECH, SILENCE, SPEECH, SILENCE]))
    assert listener.events == ["interrupt", "speech", "problem", "interrupt", "speech", "pause"]
    assert len(listener.prompts) == 1


@pytest.mark.parametrize("piece", [0.1, 30.0])
def test_two_utterances_are_two_turns_of_the_story(tmp_path: Path, piece: float) -> None:
    page, url = start(FakeBundle(tmp_path / "bundle", reply_seconds=0.5), "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        talker = Talker(url)
        talker.listen()
        talker.sounds(TWICE, piece=piece)
        talker.eventually(lambda: len(talker.of("idle")) == 2)
        assert [message["turn"] for message in talker.of("heard")] == [0, 1]
        lengths = [message["seconds"] for message in talker.of("heard")]
        assert lengths == [pytest.approx(len(turn) / RATE, abs=0.001) for turn in turns_of()]
        assert not talker.of("problem")
        talker.close()
    finally:
        page.close()


def silences(bundle: FakeBundle, patience: PatienceName, pause: float) -> list[float]:
    """s of silence after which the turns of somebody who pauses once, for `pause` s, are over."""
    session = Service(bundle, 1).open_session("", "1.2.3.4")  # type: ignore[arg-type]
    said: list[Message] = []
    session.attach(said.append, "page")
    session.do("settings", SettingsAsked(patience=patience, max_seconds=2.0))
    session.open_microphone(RATE, True)
    for sound in (SILENCE, SPEECH, SILENCE[: round(pause * RATE)], SPEECH, SILENCE):
        session.hear(sound)
    session.end_work()
    return [message.values["silence"] for message in said if message.values["type"] == "pause"]


@settings(max_examples=8, deadline=None)
@given(pause=st.floats(0.3, 1.9))
def test_the_more_patient_the_setting_the_later_a_turn_ends(quick_bundle: FakeBundle, pause: float) -> None:
    ended = {name: silences(quick_bundle, name, pause) for name in PATIENCES}
    for name, patience in PATIENCES.items():
        for silence in ended[name]:
            assert patience.shortest - WINDOW / RATE <= silence <= patience.longest + WINDOW / RATE
    assert 2 >= len(ended["quick"]) >= len(ended["normal"]) >= len(ended["patient"]) >= 1
    assert ended["quick"][0] < ended["normal"][0] < ended["patient"][0]


def test_word_of_an_interruption_that_comes_late_does_not_end_the_next_reply(served: tuple[FakeBundle, str]) -> None:
    bundle, url = served
    talker = Talker(url)
    talker.listen()
    talker.sounds(TWICE[: -len(SILENCE)])
    talker.eventually(lambda: len(talker.of("speech")) == 2)
    bundle.reply_seconds, bundle.real_time_factor = 4.0, 0.5
    talker.sounds(SILENCE)
    talker.eventually(lambda: any(message["turn"] == 1 for message in talker.of("audio")))
    talker.do("stop", turn=0, part=0, heard=0.2)
    talker.eventually(lambda: any(message["turn"] == 1 for message in talker.of("done")))
    (second,) = (message for message in talker.of("done") if message["turn"] == 1)
    assert (second["seconds"], second["stopped"]) == (4.0, False)
    talker.close()
