"""Training of the unit encoder: names in smooth runs, alignment kept, and a training that was stopped ends the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.units.causal import FRAME
from slm.units.conv import ConvEncoderConfig
from train.speech.time_warping import mfcc
from train.speech.voices import Voices
from train.units.training import Iteration, UnitTraining, align_voices, cheapest_path, train_units

SENTENCES = [("en", "The fox was very sad."), ("fr", "Le renard était très triste.")]
CONFIG = ConvEncoderConfig(codebook_size=12, width=16, dilations=(1, 2), look_ahead=(1, 1))
ITERATIONS = (Iteration(3, clusters=8), Iteration(4, layer=0))
TRAINING = UnitTraining(
    ITERATIONS, batch_size=2, segment_frames=40, sentences_per_language=1, voices_per_sentence=2, checkpoint_every=1
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.floats(0, 3), st.integers(0, 2**16))
def test_the_cheapest_path_is_the_cheapest_of_all(frames: int, clusters: int, switch_cost: float, seed: int) -> None:
    costs = torch.rand(frames, clusters, generator=torch.Generator().manual_seed(seed))

    def price(path: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in pairwise(path))
        return float(costs[range(frames), list(path)].sum()) + switch_cost * changes

    best = min(price(path) for path in product(range(clusters), repeat=frames))
    assert price(tuple(cheapest_path(costs, switch_cost).tolist())) == pytest.approx(best, abs=1e-5)


def test_runs_grow_with_the_price_of_a_change() -> None:
    costs = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    changes = [int((cheapest_path(costs, cost).diff() != 0).sum()) for cost in (0.0, 0.3, 1.0, 1e6)]
    assert torch.equal(cheapest_path(costs, 0.0), costs.argmin(dim=1))
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > changes[1] > changes[2] > changes[3] == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4000))
def test_features_have_a_row_for_every_unit(samples: int) -> None:
    waveform = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    features = mfcc(waveform)
    assert features.shape == (-(-samples // FRAME), 39)
    assert torch.isfinite(features).all()


def test_every_voice_gets_its_references_names_in_order() -> None:
    voices = Voices.load()
    data = align_voices(SENTENCES, voices, CONFIG, TRAINING, workers=1)
    assert len(data.starts) == len(SENTENCES) * 3
    assert data.mels.shape[0] == 2 * data.lengths.sum()
    data.name({index: torch.arange(len(features)) for index, features in data.mfccs.items()})
    for index, reference in enumerate(data.references):
        names = data.names[data.starts[index] : data.starts[index] + data.lengths[index]]
        assert (names.diff() >= 0).all()  # the alignment never goes back
        assert names[-1] == data.lengths[reference] - 1
        if index == reference:
            assert torch.equal(names, torch.arange(len(names)))


def test_a_training_that_was_stopped_ends_the_same(tmp_path: Path) -> None:
    voices = Voices.load()
    through = train_units(CONFIG, TRAINING, SENTENCES, voices, tmp_path / "a", workers=1)
    first, second = ITERATIONS
    for stop in ((replace(first, steps=2),), (first,), (first, replace(second, steps=2)), ITERATIONS):
        training = replace(TRAINING, iterations=stop)
        stopped = train_units(CONFIG, training, SENTENCES, voices, tmp_path / "b", workers=1)
    assert through.codebook_size == stopped.codebook_size == CONFIG.codebook_size
    for one, two in zip(through.network.parameters(), stopped.network.parameters(), strict=True):
        assert torch.equal(one, two)
