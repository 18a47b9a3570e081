"""Turns: what was said makes them, not how a network cuts the sound into chunks."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slm.prosody import Fall
from slm.turn_ends import PATIENCES, PAUSE, OwnPauses, Pause, PlainSilence, Rule, TurnEnds, rule_of
from slm.turn_taking import TurnTaking
from slm.voice_activity import RATE, Change
from tests.conftest import spoken_beginning

SILENCE = np.zeros(RATE, np.float32)
SPEECH = spoken_beginning("en")[: RATE * 3 // 2]
TWICE = np.concatenate([SILENCE, SPEECH, SILENCE[: RATE // 3], SPEECH, SILENCE, SILENCE, SPEECH, SILENCE, SILENCE])
"""Speech, a pause within a turn, speech, the end of a turn, and another turn."""

chunkings = st.one_of(
    st.lists(st.integers(0, len(TWICE)), max_size=40).map(sorted),
    st.integers(100, 50_000).map(lambda size: list(range(size, len(TWICE), size))),
)
"""Where the sound is cut, in samples."""
pauses = st.builds(
    Pause,
    st.builds(Fall, st.floats(-20, 20), st.floats(-60, 20), st.floats(0, 2)),
    st.none() | st.floats(-20, 20),
)


def events(cuts: list[int], rule: Rule | None = None) -> list[tuple[Change, int, int]]:
    """What happened, after how many samples of turns and with which sum of them; judged with a word of the language model
    that depends on all samples of the turn."""
    taking, told, heard = TurnTaking(rule), [], np.zeros(0, np.float32)
    for chunk in np.split(TWICE, cuts):
        for part in taking.push(chunk):
            heard = np.concatenate([heard, part.samples])
            if part.change is Change.PAUSED:
                taking.ending = float(np.abs(heard).sum() % 12 - 6)
            if part.change is not None:
                told.append((part.change, len(heard), hash(heard.tobytes())))
    assert not taking.speaking
    return told


@settings(max_examples=30, deadline=None)
@given(chunkings, st.sampled_from([*map(rule_of, PATIENCES), PlainSilence()]))
def test_what_happens_does_not_depend_on_chunks(cuts: list[int], rule: Rule) -> None:
    assert events(cuts, rule) == events([], rule)


def test_a_pause_that_is_shorter_than_the_rule_asks_for_ends_nothing() -> None:
    turn = [Change.BEGAN, Change.PAUSED, Change.ENDED]
    resumed = [Change.BEGAN, Change.PAUSED, Change.RESUMED, Change.PAUSED, Change.ENDED]
    assert [change for change, *_ in events([], PlainSilence(0.7))] == [*resumed, *turn]
    assert [change for change, *_ in events([], PlainSilence(0.25))] == [*turn, *turn, *turn]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["en", "fr"]), st.floats(0.3, 1.0))
def test_two_sentences_stay_one_turn_where_nothing_else_is_asked_for(language: str, pause: float) -> None:
    said = spoken_beginning(language)
    sound = [SILENCE, said, np.zeros(round(pause * RATE), np.float32), said, SILENCE, SILENCE]
    changes = [part.change for part in TurnTaking().push(np.concatenate(sound))]
    assert (changes.count(Change.BEGAN), changes.count(Change.ENDED)) == (1, 1)


@settings(max_examples=100, deadline=None)
@given(pauses, st.lists(st.floats(0, 3), max_size=20))
def test_the_more_patient_the_longer_and_never_out_of_bounds(pause: Pause, before: list[float]) -> None:
    own = OwnPauses()
    for seconds in before:
        own.add(seconds)
    waits = [rule_of(name).silence(pause, own) for name in PATIENCES]
    assert waits == sorted(waits)
    for wait, patience in zip(waits, PATIENCES.values(), strict=True):
        assert PAUSE < patience.shortest <= wait <= patience.longest


@settings(max_examples=100, deadline=None)
@given(pauses, st.floats(0, 0.5), st.floats(0.6, 3))
def test_who_makes_long_pauses_is_given_them(pause: Pause, short: float, long: float) -> None:
    """Where silence has to speak for the end at all."""
    rule, brief, slow = TurnEnds(), OwnPauses(), OwnPauses()
    for _ in range(5):
        brief.add(short)
        slow.add(long)
    assume(rule.weights.log_odds(pause) < rule.patience.sure)
    assert rule.silence(pause, brief) <= rule.silence(pause, slow)
    assert brief.usual < slow.usual


@settings(max_examples=60, deadline=None)
@given(st.floats(90, 250), st.floats(-8, 8), st.floats(-20, 0))
def test_a_voice_that_falls_is_heard_to_fall(pitch: float, semitones: float, quieter: float) -> None:
    from slm.prosody import fall

    level = np.concatenate([np.zeros(14400), np.linspace(0, 1, 4800)])  # of the last 0.3 s
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (semitones * level / 12)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 8)) * 10 ** (quieter * level / 20)
    fell = fall(voice.astype(np.float32))
    assert abs(fell.pitch - 0.75 * semitones) < 0.35 * abs(semitones) + 0.7
    assert abs(fell.energy - 0.6 * quieter) < 0.3 * abs(quieter) + 1.0
