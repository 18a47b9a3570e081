"""A corpus that passes the encoder's channel: what was measured comes out again; a request gives the same units."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.units import Units
from slm.units.conv import ConvEncoderConfig, ConvNetwork, ConvUnitEncoder
from train.corpus.channel import FILE, LENGTHS, Channel, Unspoken, measure_channel, phones_of
from train.corpus.encoding import name_unspoken
from train.corpus.preparation import prepare_corpus
from train.corpus.shards import read_units
from train.corpus.work import CorpusPreparation, Request, Work
from train.speech.voices import Voices
from train.stories.grammar import Story

PHONES = ["_", "a", "b", "c"]
UNITS = {name: number for number, name in enumerate(PHONES)} | {"A": 1}


class Ears:
    """An encoder whose waveform is its units, a sample each, heard with known errors."""

    codebook_size, sample_rate, frame_rate = len(PHONES), 16000, 50.0

    def __init__(self, swaps: dict[int, int | None]) -> None:
        self.swaps = swaps

    def encode(self, waveform: np.ndarray, sample_rate: int) -> Units:
        heard = [self.swaps.get(int(unit), int(unit)) for unit in waveform]
        return Units.from_frames(np.array([unit for unit in heard if unit is not None]), self.frame_rate)


def collapse(units: list[int]) -> list[int]:
    """Units without the repetitions of neighbours."""
    return [unit for unit, _ in groupby(units)]


def spoken(seed: int, clips: int = 200) -> list[tuple[list[str], np.ndarray]]:
    """Random phones, three frames each."""
    rng = np.random.default_rng(seed)
    names = [collapse(rng.integers(len(PHONES), size=12).tolist()) for _ in range(clips)]
    return [([PHONES[n] for n in part], np.repeat(part, 3).astype(np.float32)) for part in names]


def plain_channel(**errors: np.ndarray) -> Channel:
    """One without errors but these."""
    count = len(PHONES)
    values = {
        "heard": np.eye(count, count + 1),
        "inserted": np.eye(count + 1)[-1],
        "lengths": np.full((count, LENGTHS), 2.0),
    }
    return Channel(UNITS, **(values | errors), frame_rate=50.0)


def test_errors_that_an_encoder_makes_are_found() -> None:
    channel = measure_channel(spoken(0), UNITS, Ears({}))  # type: ignore[arg-type]
    assert (np.diag(channel.heard) > 0.99).all()
    assert channel.inserted[-1] > 0.99
    assert (channel.lengths == 3).all()
    swapped = measure_channel(spoken(0), UNITS, Ears({1: 2}))  # type: ignore[arg-type]
    assert swapped.heard[1, 1] < 0.2
    assert swapped.heard[1, 2] > 0.4  # some are lost beside another of its kind
    missed = measure_channel(spoken(0), UNITS, Ears({3: None}))  # type: ignore[arg-type]
    assert missed.heard[3, -1] > 0.9
    with pytest.raises(TresseError, match="there is none"):
        measure_channel([], UNITS, Ears({}))  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*UNITS, "?"]), max_size=30), st.integers(0, 99), st.floats(0, 3))
def test_without_errors_all_is_heard(phones: list[str], seed: int, severity: float) -> None:
    units = plain_channel().of(phones, np.random.default_rng(seed), severity)
    assert units.ids.tolist() == collapse([UNITS[phone] for phone in phones if phone in UNITS])
    assert (units.run_lengths >= 2).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_severity_is_how_many_errors_are_made(seed: int) -> None:
    heard = np.eye(4, 5)
    heard[1] = [0.0, 0.7, 0.2, 0.0, 0.1]
    channel = plain_channel(heard=heard, inserted=np.array([0.0, 0.0, 0.0, 0.05, 0.95]))
    phones = ["a", "b"] * 2000

    def shares(severity: float) -> tuple[float, float]:
        ids = channel.of(phones, np.random.default_rng(seed), severity).ids
        return (ids == 1).mean(), (ids == 3).mean()

    assert shares(0.0) == (0.5, 0.0)
    rights = [shares(severity)[0] for severity in (0.0, 1.0, 2.0)]
    assert rights == sorted(rights, reverse=True)
    assert 0.03 < shares(1.0)[1] < 0.09


def test_what_is_saved_comes_back_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    channel = measure_channel(spoken(1), UNITS, Ears({1: 2}))  # type: ignore[arg-type]
    channel.save(tmp_path)
    again = Channel.load(tmp_path)
    assert again.units == channel.units
    assert np.allclose(again.heard, channel.heard, atol=1e-5)
    for text in (
        "{}",
        "no",
        '{"units": {"a": 7}, "heard": [[1, 0]], "inserted": [0, 1], "lengths": [[1]], "frame_rate": 50}',
    ):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(TresseError, match=r"corpus\.unspoken"):
            Channel.load(tmp_path)


def test_a_text_is_read_as_phones_with_its_pauses() -> None:
    phones = phones_of("The fox ran, and it rained.", "en-us")
    assert phones[0] == phones[-1] == "_"
    assert phones[1:3] == ["ð", "ə"]
    assert "_" in phones[2:-2]
    assert "ɑ̃" in phones_of("Un enfant.", "fr")
    assert phones_of("...", "fr") == []


def test_a_corpus_needs_no_voice_where_it_is_unspoken(tmp_path: Path) -> None:
    units = tmp_path / "units"
    ConvUnitEncoder(ConvNetwork(ConvEncoderConfig(codebook_size=len(PHONES), width=16))).save(units)
    stories = [
        Story(f"s{n}", {"en": ["A cab backed up.", "Babs sat."], "fr": ["Baba a bas.", "Papa a papa, papa a papa."]})
        for n in range(7)
    ]
    preparation = CorpusPreparation(stories_per_shard=3, unspoken=Unspoken((0.0, 1.0)))
    voices = Voices.load()
    with pytest.raises(TresseError, match="channel"):
        prepare_corpus(stories, ["en", "fr"], units, tmp_path / "none", preparation, voices)
    measure_channel(spoken(2), UNITS, Ears({1: 2})).save(units)  # type: ignore[arg-type]
    made = [
        prepare_corpus(stories, ["en", "fr"], units, tmp_path / str(workers), preparation, voices, workers)
        for workers in (1, 2)
    ]
    assert made[0].counts == made[1].counts
    assert made[0].counts.sentences == 28
    first, second = (list(read_units([part.folder], ["en", "fr"])) for part in made)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({part.tobytes() for part in first}) > 4  # a sentence is not heard alike each time


@given(heard=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_sentences_that_are_not_heard_have_no_errors(heard: float, seed: int, tmp_path_factory: Any) -> None:
    units = tmp_path_factory.mktemp("units")
    measure_channel(spoken(2), UNITS, Ears({1: 2})).save(units)  # type: ignore[arg-type]
    asked = [Request("basile", number, "fr", "Baba a bas, papa a papa.") for number in range(40)]
    preparation = CorpusPreparation(seed=seed, unspoken=Unspoken((1.5, 1.5), heard))
    made = name_unspoken(asked, Work(["fr"], units, preparation, Voices.load()), preparation.unspoken)
    clean = name_unspoken(asked[:1], Work(["fr"], units, preparation, Voices.load()), Unspoken((0.0, 0.0)))
    (right,) = (part.ids.tolist() for part in clean.values() if isinstance(part, Units))
    wrong = sum(part.ids.tolist() != right for part in made.values() if isinstance(part, Units))
    assert {0.0: wrong == 0, 0.5: 5 < wrong < 35, 1.0: wrong > 30}[heard]
