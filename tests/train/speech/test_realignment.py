"""Phones get the times at which they sound, whatever times they were told."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.speech.realignment import REACH, Alignment, features_of, realign

SOUNDS = "abcd"


def sentence(rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Phones, the frames at which they begin, and features: each phone has a mean of its own in every half."""
    count = int(rng.integers(3, 9))
    phones: list[str] = []
    for _ in range(count):
        phones.append(str(rng.choice([sound for sound in SOUNDS if not phones or sound != phones[-1]])))
    lengths = rng.integers(3, 9, count)
    means = np.random.default_rng(7).normal(0, 3, (len(SOUNDS), 2, 5))
    rows = [
        means[SOUNDS.index(phone), int(2 * frame >= length)]
        for phone, length in zip(phones, lengths, strict=True)
        for frame in range(length)
    ]
    return phones, np.cumsum(lengths) - lengths, np.array(rows) + rng.normal(0, 0.3, (len(rows), 5))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_wrong_times_are_mended(seed: int) -> None:
    rng = np.random.default_rng(seed)
    told, true = [], []
    for _ in range(40):
        phones, starts, features = sentence(rng)
        late = np.sort(starts + rng.integers(0, 5, len(starts)) * (np.arange(len(starts)) > 0))
        late = np.minimum(late, len(features) - 1 - np.arange(len(late))[::-1])
        told.append(Alignment(phones, np.maximum(late, np.arange(len(late))), features))
        true.append(starts)
    before = np.mean([np.abs(s.starts - t).mean() for s, t in zip(told, true, strict=True)])
    after = np.mean([np.abs(s - t).mean() for s, t in zip(realign(told), true, strict=True)])
    assert before > 1.3
    assert after < 0.5 * before


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_every_phone_keeps_a_frame_and_its_order(seed: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    spoken = []
    for _ in range(5):
        phones, starts, features = sentence(rng)
        spoken.append(Alignment(phones, starts, rng.normal(size=features.shape)))
    crowded = Alignment(["a", "b", "c"], np.array([0, 1, 2]), rng.normal(size=(2, 5)))
    *found_starts, left = realign([*spoken, crowded], rounds)
    for told, starts in zip(spoken, found_starts, strict=True):
        assert starts[0] == 0
        assert (np.diff(starts) > 0).all()
        assert starts[-1] < len(told.features)
        assert np.abs(starts - told.starts).max() <= REACH * rounds
    assert np.array_equal(left, crowded.starts)


def test_features_have_a_row_for_every_frame_of_a_unit() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 16000 + 100).astype(np.float32)
    features = features_of(waveform, np.full(100, 120.0, np.float32))
    assert features.shape == (51, 29)
    assert features[:50, -1].tolist() == [1.0] * 50
    assert np.isfinite(features).all()
