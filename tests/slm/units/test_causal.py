"""Causal unit encoders: streaming equals offline, batching changes nothing, odd input does no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.bundle import Bundle
from slm.errors import TresseError
from slm.units import UnitEncoder, Units, load_encoder
from slm.units.attention import AttentionEncoderConfig, AttentionNetwork, AttentionUnitEncoder
from slm.units.causal import FRAME, CausalUnitEncoder
from slm.units.conv import ConvEncoderConfig, ConvNetwork, ConvUnitEncoder
from slm.units.smoothing import Smoothing
from slm.weights import rounded
from tests.conftest import spoken_beginning
from tests.tiny_encoders import check_fork, check_streaming


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return spoken_beginning("fr", "boris")


@pytest.fixture(scope="module", params=["shipped", "random", "smoothed", "attention"])
def encoder(request: pytest.FixtureRequest, bundle: Bundle) -> UnitEncoder:
    if request.param == "shipped":
        return bundle.units
    torch.manual_seed(1)
    if request.param == "attention":
        return small_attention()
    switch_cost = 0.1 if request.param == "smoothed" else 0.0
    return ConvUnitEncoder(ConvNetwork(ConvEncoderConfig(codebook_size=37, width=32, switch_cost=switch_cost)))


def small_attention(**changes: object) -> AttentionUnitEncoder:
    """One with random weights, as it would be saved."""
    shape = AttentionEncoderConfig(
        codebook_size=37,
        layers=3,
        width=32,
        heads=2,
        block=5,
        ahead=3,
        history=20,
        inward=16,
        recurrent=8,
        switch_cost=0.1,
    )
    return AttentionUnitEncoder(rounded(AttentionNetwork(replace(shape, **changes)), AttentionUnitEncoder.stored))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_streaming_equals_offline(encoder: UnitEncoder, speech: np.ndarray, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(speech)))
    chunks = data.draw(st.lists(st.integers(0, 9000), min_size=1, max_size=30))
    check_streaming(encoder, speech[:length], chunks)


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(16000, 39000), start=st.integers(0, 20000))
def test_a_forked_prompt_leaves_the_other_as_it_is(
    encoder: UnitEncoder, speech: np.ndarray, cut: int, start: int
) -> None:
    check_fork(encoder, speech[:40000], speech[start : start + 8000], cut)


def test_what_float32_leaves_open_float64_decides(
    encoder: UnitEncoder, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is taken for a close decision, in streams and of whole clips, the units are those of float64."""
    assert isinstance(encoder, CausalUnitEncoder)
    expected = encoder.encode(speech, encoder.sample_rate).frames()
    assert np.array_equal(encoder.encode_exactly(speech).frames(), expected)
    for doubt, backlog in ((0.0, 500), (0.3, 500), (0.3, 20), (1e9, 500)):
        monkeypatch.setattr("slm.units.causal.DOUBT", doubt)
        monkeypatch.setattr("slm.units.causal.BACKLOG", backlog)
        stream = encoder.stream()
        pushed = [stream.push(speech[at : at + 3000]) for at in range(0, len(speech), 3000)]
        assert np.array_equal(np.concatenate([*pushed, stream.flush()]), expected)
        assert np.array_equal(encoder.encode(speech, encoder.sample_rate).frames(), expected)


def test_units_leave_as_soon_as_the_look_ahead_is_covered(encoder: UnitEncoder, speech: np.ndarray) -> None:
    assert isinstance(encoder, CausalUnitEncoder)
    assert encoder.look_ahead_seconds <= 0.160
    after = int(encoder.look_ahead_seconds * encoder.sample_rate)
    stream, given = encoder.stream(), 0
    for received in range(FRAME, len(speech) + 1, FRAME):
        given += len(stream.push(speech[received - FRAME : received]))
        certain = (received - after) // FRAME
        assert certain - encoder.patience < given <= received // FRAME
    assert given > 0


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40000), min_size=2, max_size=6))
def test_batching_changes_no_units(encoder: UnitEncoder, speech: np.ndarray, lengths: list[int]) -> None:
    clips = [speech[:length] for length in lengths]
    for clip, units in zip(clips, encoder.encode_batch(clips), strict=True):
        alone = encoder.encode(clip, encoder.sample_rate)
        assert np.array_equal(units.ids, alone.ids)
        assert np.array_equal(units.run_lengths, alone.run_lengths)
        assert units.run_lengths.sum() == -(-len(clip) // FRAME)


def test_threads_change_no_units(encoder: UnitEncoder, speech: np.ndarray) -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(encoder.encode(speech, 16000).frames())
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*results)


def test_attention_goes_on_behind_its_last_position(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.units.attention.POSITIONS", 40)
    monkeypatch.setattr("slm.units.attention.PORTION", 16)
    torch.manual_seed(2)
    encoder = small_attention()
    stream = encoder.stream()
    parts = [stream.push(speech[at : at + 777]) for at in range(0, len(speech), 777)]
    assert len(speech) > 80 * FRAME
    assert np.array_equal(np.concatenate([*parts, stream.flush()]), encoder.encode(speech, 16000).frames())


def test_attention_hears_its_history_and_no_more(speech: np.ndarray) -> None:
    torch.manual_seed(3)
    network = small_attention(layers=1, block=4, ahead=2, history=10).network
    waveform = torch.from_numpy(speech[None].astype(np.float64))

    def layer(samples: torch.Tensor) -> list[torch.Tensor]:
        """What the only layer gives for each block."""
        heard: list[torch.Tensor] = []
        hook = network.layers[0].register_forward_hook(lambda module, inputs, output: heard.append(output[0][0]))
        network(network.mel.log(network.mel.power(samples)))
        hook.remove()
        return heard

    changed = waveform.clone()
    changed[:, : 20 * FRAME] = 0.0
    moved = [float((a - b).abs().max()) > 1e-9 for a, b in zip(layer(waveform), layer(changed), strict=True)]
    first = (
        20 // 4 + -(-10 // 4) + 1
    )  # the first block behind the history of all that changed; and the convolutions' frame
    assert all(moved[: first - 1])
    assert not any(moved[first:])


def test_a_frame_hears_what_follows_its_block_and_no_more(speech: np.ndarray) -> None:
    torch.manual_seed(4)
    encoder = small_attention()
    for frame in (20, 21, 22, 23, 24):  # of a block of 5 that ends with frame 24, with 3 frames behind it
        changed = speech.copy()
        changed[frame * FRAME :] *= 0.5
        moved = np.abs(encoder.features(speech) - encoder.features(changed)).max(1) > 1e-9
        assert moved[15:20].any() == (frame <= 20 + 3)  # the convolutions' frame too
        assert not moved[:15].any()
        assert moved[20:25].any()


def test_attention_is_refused_where_its_shape_cannot_be(tmp_path: Path) -> None:
    encoder = small_attention()
    encoder.save(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    for change in ({"heads": 3}, {"block": 0}, {"sample_rate": 8000}, {"history": 0}, {"width": 64}):
        (tmp_path / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(TresseError):
            load_encoder(tmp_path)


@pytest.mark.parametrize("kind", ["silence", "tone", "noise", "clipped", "empty"])
def test_odd_sounds_give_units_without_error(encoder: UnitEncoder, kind: str) -> None:
    time = np.arange(16000) / 16000
    sounds = {
        "silence": np.zeros(16000),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * time),
        "noise": np.random.default_rng(0).normal(0, 0.3, 16000),
        "clipped": np.sign(np.sin(2 * np.pi * 150 * time)),
        "empty": np.zeros(0),
    }
    units = encoder.encode(sounds[kind].astype(np.float32), 16000)
    assert units.run_lengths.sum() == len(sounds[kind]) // FRAME
    assert ((units.ids >= 0) & (units.ids < encoder.codebook_size)).all()


def test_a_saved_encoder_gives_the_same_units(tmp_path: Path, encoder: UnitEncoder, speech: np.ndarray) -> None:
    assert isinstance(encoder, CausalUnitEncoder)
    encoder.save(tmp_path)
    assert np.array_equal(load_encoder(tmp_path).encode(speech, 16000).frames(), encoder.encode(speech, 16000).frames())
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(TresseError, match="restore"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "tape"}')
    with pytest.raises(TresseError, match="tape"):
        load_encoder(tmp_path)


def test_features_are_what_the_units_are_decided_on(encoder: UnitEncoder, speech: np.ndarray) -> None:
    assert isinstance(encoder, CausalUnitEncoder)
    for length in (1, FRAME, FRAME + 1, 30001):
        features = torch.from_numpy(encoder.features(speech[:length])).double()
        decided = Smoothing(encoder.config.switch_cost).push(encoder.network.outward(features)[None])[0][0].numpy()
        assert np.array_equal(decided, encoder.encode(speech[:length], encoder.sample_rate).frames())


def test_voices_are_heard_alike(bundle: Bundle) -> None:
    """The shipped encoder hears a sentence of two voices it never met as nearly the same units."""
    from train.evaluate.units import edit_rates

    for language in ("en", "fr"):
        heard = [bundle.units.encode(spoken_beginning(language, name), 16000).ids for name in ("zoe", "boris")]
        other = bundle.units.encode(spoken_beginning("fr" if language == "en" else "en", "zoe"), 16000).ids
        near, far = edit_rates([(heard[0], heard[1]), (heard[0], other)])
        assert near < 0.35
        assert far > 0.55


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60))
def test_collapsing_loses_nothing(frames: list[int]) -> None:
    units = Units.from_frames(np.array(frames, dtype=np.int64), 50.0)
    assert units.frames().tolist() == frames
    assert (np.diff(units.ids) != 0).all()
    assert units.seconds == len(frames) / 50.0
    halves = Units.concatenate([units[: len(units) // 2], units[len(units) // 2 :]])
    assert halves.frames().tolist() == frames
