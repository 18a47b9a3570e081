"""The benchmark of turns: it hears what a microphone hears, and judges as `slm.turn_taking` does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from slm.bundle import Bundle
from slm.errors import TresseError
from slm.prosody import Fall
from slm.turn_ends import PATIENCES, Pause, PlainSilence, Rule, Weights, rule_of
from slm.turn_taking import TurnTaking
from slm.voice_activity import RATE, Change
from train.bench.turns import Heard, Said, _room, bench_turns, fit, hear, outcome, story_turns, table


@pytest.fixture(scope="module")
def said(bundle: Bundle) -> list[Said]:
    return list(story_turns(bundle.languages, 2))


def taken(bundle: Bundle, said: Said, rule: Rule) -> list[float]:
    """s at which turns end, by TurnTaking itself."""
    taking, stream, ends, heard = TurnTaking(rule), bundle.prompt_stream(RATE), [], 0
    before = np.zeros(RATE // 2, np.float32)
    for start in range(0, len(sound := np.concatenate([before, said.samples, _room(said.samples)])), 512):
        for part in taking.push(sound[start : start + 512]):
            heard += len(part.samples)
            stream.push(part.samples)
            if part.change is Change.PAUSED:
                taking.ending = bundle.ending(stream.fork().finish())
            if part.change is Change.ENDED:
                return [(start + 512) / RATE - 0.5]
    return ends


@pytest.mark.parametrize("rule", [PlainSilence(), *map(rule_of, PATIENCES)], ids=["plain", *PATIENCES])
def test_a_turn_ends_where_the_benchmark_says(bundle: Bundle, said: list[Said], rule: Rule) -> None:
    for each in said:
        heard = hear(bundle, each)
        assert heard is not None
        got, (ended, *_) = outcome(heard, rule), taken(bundle, each, rule)
        assert got.cut == (ended < len(each.samples) / RATE)
        if not got.cut:
            end = len(each.samples) / RATE + heard.lag
            assert got.decided - heard.lag == pytest.approx(ended - end, abs=0.2)


def test_what_is_printed_is_what_was_heard(bundle: Bundle) -> None:
    with mock.patch("train.bench.turns._tuning", side_effect=[True, False, True, False]):
        result = bench_turns(bundle, None, 1, 4, fitting=True)
    assert json.loads(json.dumps(result)) == result
    assert [each["0.7 s of silence"]["all"]["turns"] for each in (result["turns"], result["tuning"])] == [2, 2]
    assert all(name in table(result) for name in ("0.7 s of silence", *PATIENCES, "Weights("))


def test_what_is_fitted_tells_ends_from_pauses() -> None:
    rng = np.random.default_rng(0)

    def pause(level: float) -> Pause:
        fall = Fall(float(rng.normal(-2 * level)), float(rng.normal(-5 * level)), 0.1)
        return Pause(fall, float(rng.normal(level)) if rng.random() < 0.8 else None)

    turns = [Heard("a", True, ((pause(-1), 0.3), (pause(1), math.inf)), 0.0, 0.1) for _ in range(200)]
    weights = fit(turns)
    ends, pauses = ([weights.log_odds(turn.pauses[number][0]) for turn in turns] for number in (1, 0))
    assert np.mean(np.array(ends)[:, None] > np.array(pauses)) > 0.95
    assert abs(np.mean(ends) + np.mean(pauses)) < 0.5
    with pytest.raises(TresseError, match="no pauses"):
        fit([replace(turn, pauses=turn.pauses[1:]) for turn in turns])
    assert Weights() != weights
