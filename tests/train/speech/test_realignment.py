"""Phones get the times at which they sound, whatever times they were told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.units.speech_of_tones import write_clips
from train.speech.realignment import REACH, Alignment, features_of, realign, realigned_clips

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


def test_clips_of_a_pool_get_the_times_at_which_they_sound(tmp_path: Path) -> None:
    true = write_clips(tmp_path, 24)
    late = [
        replace(
            clip,
            phones=[(name, start + 0.06 * (start > 0), min(2.0, end + 0.06)) for name, start, end in clip.phones or []],
        )
        for clip in true
    ]
    untimed = replace(true[0], phones=None)
    *mended, same = realigned_clips([*late, untimed], tmp_path)
    assert same == untimed
    kept = [  # equal neighbours have no boundary that could be heard
        (a[1], b[1], c[1])
        for clip, before, after in zip(true, late, mended, strict=True)
        for number, (a, b, c) in enumerate(zip(clip.phones or [], before.phones or [], after.phones or [], strict=True))
        if number and a[0] != (clip.phones or [])[number - 1][0]
    ]
    truth, before, after = np.array(kept).T
    assert np.abs(before - truth).mean() > 0.05
    assert np.abs(after - truth).mean() < 0.025  # a frame has 0.02 s
    for clip in mended:
        edges = [start for _, start, _ in clip.phones or []] + [2.0]
        assert edges[0] == 0.0
        assert all(later > sooner for sooner, later in pairwise(edges))
