"""Anticipated replies: withdrawn without a trace, and spoken only where they are what would be computed then."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from demo import anticipation, messages, sessions
from demo.requests import Nothing, SettingsAsked
from demo.service import Service
from demo.sessions import Session
from demo.waiting_line import WaitingLine
from slm.bundle import Bundle
from slm.turn_ends import PlainSilence
from slm.voice_activity import RATE
from tests.conftest import spoken_beginning
from tests.fake_bundle import FakeBundle

SILENCE = np.zeros(2 * RATE, np.float32)
SPEECH = spoken_beginning("en")[: RATE * 3 // 2]
NO_PLACE = mock.patch.object(WaitingLine, "spare", return_value=None)
TIMES = ("first_audio_ms", "real_time_factor")


def seconds(count: float) -> np.ndarray:
    return SILENCE[: round(count * RATE)]


class Talk:
    """A session that somebody talks to hands-free; a silence of 0.7 s ends a turn. `said`: what it told the page."""

    def __init__(self, bundle: Any, places: int = 2) -> None:
        self.service = Service(bundle, places)
        self.session: Session = self.service.open_session("", "1.2.3.4")
        self.said: list[messages.Message] = []
        self.session.attach(self.said.append, "page")
        self.session.do("settings", SettingsAsked(seed=7, max_seconds=2.0))
        self.session.open_microphone(RATE, True)

    def hear(self, *sounds: np.ndarray, size: int = 1600) -> None:
        sound = np.concatenate(sounds)
        with mock.patch.object(sessions, "rule_of", return_value=PlainSilence(0.7)):
            for start in range(0, len(sound), size):
                self.session.hear(sound[start : start + size])

    def settle(self) -> None:
        """Until nothing is computed any more."""
        eventually(lambda: self.service.waiting_line.busy == 0)
        if self.session._thread is not None:
            self.session._thread.join(20)

    def state(self) -> bytes:
        """All that a session keeps, but for how long things took, and all that it said."""
        told = [(message.values, message.sound or b"") for message in self.said[1:]]  # the first names the session
        untimed = [
            (json.dumps({key: each[key] for key in each if key not in TIMES}), len(sound)) for each, sound in told
        ]
        kinds = [part for part in untimed if '"type": "audio"' not in part[0]]
        sound = b"".join(sound for each, sound in told if each["type"] == "audio")
        turns = []
        for turn in self.session.conversation.turns:
            replies = [replace(reply, chunks=[], first_audio=0.0, wall=0.0) for reply in turn.replies]
            units = [
                [(chunk.units, chunk.sentence, chunk.languages) for chunk in reply.chunks] for reply in turn.replies
            ]
            turns.append((replace(turn, replies=replies), units))
        kept = (turns, self.session.settings, self.session._number, list(self.session.kept))
        return pickle.dumps(pickle.loads(pickle.dumps((kept, kinds, sound))))


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> FakeBundle:
    return FakeBundle(tmp_path_factory.mktemp("bundle"), reply_seconds=1.6, real_time_factor=0.01)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(
    pauses=st.lists(st.floats(0.25, 0.6), min_size=1, max_size=3),
    size=st.integers(400, 20_000),
    both=st.booleans(),
    delay=st.floats(0, 0.05),
)
def test_with_or_without_anticipation_all_is_the_same(
    fake_bundle: FakeBundle, pauses: list[float], size: int, both: bool, delay: float
) -> None:
    """Replies are withdrawn in each of the pauses, and the last is spoken."""

    def tell(expected: int) -> tuple[bytes, bytes]:
        with mock.patch.object(anticipation, "Speaking", wraps=anticipation.Speaking) as computed:
            talk = Talk(fake_bundle)
            talk.session.settings = replace(talk.session.settings, target="both" if both else "same")
            talk.hear(seconds(0.5), size=size)
            for pause in pauses:
                talk.hear(SPEECH, seconds(pause), size=size)
                time.sleep(delay)
            talk.hear(SPEECH, size=size)
            talk.settle()
            withdrawn = talk.state()
            talk.hear(seconds(1.0), size=size)
            talk.settle()
            assert computed.call_count == expected
        return withdrawn, talk.state()

    with NO_PLACE:
        plain = tell(0)
    assert tell(len(pauses) + 1) == plain
    assert plain[0] != plain[1]
    assert fake_bundle.active == 0


@pytest.mark.parametrize("target", ["same", "braided"])
def test_the_shipped_bundle_speaks_what_it_would_have_computed(bundle: Bundle, target: str) -> None:
    def tell() -> bytes:
        talk = Talk(bundle)
        talk.session.settings = replace(talk.session.settings, target=target)
        talk.hear(seconds(0.5), spoken_beginning("fr"), seconds(1.0))
        talk.settle()
        assert talk.session.conversation.turns[0].replies
        return talk.state()

    with NO_PLACE:
        plain = tell()
    assert tell() == plain


@pytest.mark.parametrize("change", ["settings", "undo", "new"])
def test_what_changes_in_the_pause_counts(fake_bundle: FakeBundle, change: str) -> None:
    asked = {"settings": SettingsAsked(seed=8, max_seconds=1.0), "undo": Nothing(), "new": Nothing()}[change]

    def tell() -> bytes:
        talk = Talk(fake_bundle)
        talk.hear(seconds(0.5), SPEECH, seconds(1.2))
        talk.settle()
        talk.hear(SPEECH, seconds(0.4))
        talk.session.do(change, asked)
        talk.hear(seconds(0.6))
        talk.settle()
        return talk.state()

    with NO_PLACE:
        plain = tell()
    assert tell() == plain


def test_who_waits_for_a_reply_comes_before_what_is_anticipated(fake_bundle: FakeBundle) -> None:
    talk = Talk(fake_bundle, places=1)
    talk.hear(seconds(0.5), SPEECH, seconds(0.4))
    assert talk.service.waiting_line.busy == 1
    with talk.service.waiting_line.wait(threading.Event()):
        assert talk.session._anticipated is not None
        assert talk.session._anticipated.stop.is_set()
        assert talk.service.waiting_line.spare() is None
    talk.hear(seconds(0.5))
    talk.settle()
    assert len(talk.session.conversation.turns[0].replies) == 1


def test_no_more_than_a_second_is_computed_ahead(fake_bundle: FakeBundle) -> None:
    with mock.patch.object(fake_bundle, "reply_seconds", 30.0):
        talk = Talk(fake_bundle)
        talk.session.settings = replace(talk.session.settings, max_seconds=30.0)
        talk.hear(seconds(0.5), SPEECH, seconds(0.4))
        ahead = talk.session._anticipated
        assert ahead is not None
        eventually(lambda: len(ahead._chunks) * fake_bundle.chunk_seconds >= anticipation.AHEAD)
        time.sleep(0.1)
        assert len(ahead._chunks) * fake_bundle.chunk_seconds < anticipation.AHEAD + 2 * fake_bundle.chunk_seconds
        talk.session.close_microphone()
        talk.settle()
        assert not talk.session.conversation.turns


@pytest.mark.parametrize("leave", ["detach", "hang_up", "hands-free is switched off"])
def test_who_leaves_in_a_pause_leaves_nothing_behind(fake_bundle: FakeBundle, leave: str, tmp_path: Path) -> None:
    talk = Talk(fake_bundle)
    talk.hear(seconds(0.5), SPEECH, seconds(0.4))
    before = talk.state()
    if leave == "detach":
        talk.session.detach(talk.said.append)
    elif leave == "hang_up":
        talk.session.hang_up()
        assert talk.said.pop() == messages.GOODBYE
    else:
        talk.session.finish()
    talk.settle()
    assert talk.state() == before
