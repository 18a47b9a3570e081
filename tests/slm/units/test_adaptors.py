"""Mimi and HuBERT behind the interface of the other encoders: the same promises, on small random models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import HubertModel, MimiModel

from slm.bundle import Bundle
from slm.errors import TresseError
from slm.units import UnitEncoder, collapses, load_encoder
from slm.units.hub import locate, save_config
from slm.units.hubert import HubertFeatures, HubertUnitEncoder
from slm.units.mimi import MimiUnitEncoder
from tests.conftest import spoken_beginning
from tests.tiny_encoders import MIMI_CODEBOOK, check_fork, check_streaming, save_bundle, save_hubert, save_mimi
from train.units.hubert_kmeans import train_hubert_units

KINDS = ["mimi-12.5", "mimi-25", "hubert-25", "hubert-50"]


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return spoken_beginning("fr", "boris")[:40000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def make(kind: str, folder: Path, speech: np.ndarray) -> UnitEncoder:
    name, rate = kind.split("-")
    if name == "mimi":
        return MimiUnitEncoder.from_pretrained(str(save_mimi(folder / kind, float(rate))))
    return train_hubert_units(str(save_hubert(folder / kind, float(rate))), 3, [speech], 20)


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, folder: Path, speech: np.ndarray) -> UnitEncoder:
    encoder = make(request.param, folder, speech)
    assert encoder.frame_rate == float(request.param.split("-")[1])
    return encoder


def frame_samples(encoder: UnitEncoder) -> int:
    return round(encoder.sample_rate / encoder.frame_rate)


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(16000, 39000), start=st.integers(0, 20000))
def test_a_forked_prompt_leaves_the_other_as_it_is(
    encoder: UnitEncoder, speech: np.ndarray, cut: int, start: int
) -> None:
    check_fork(encoder, speech[:40000], speech[start : start + 8000], cut)


def test_units_differ_along_speech(encoder: UnitEncoder, speech: np.ndarray) -> None:
    units = encoder.encode(speech, encoder.sample_rate)
    assert len(set(units.ids.tolist())) > 4
    assert ((units.ids >= 0) & (units.ids < encoder.codebook_size)).all()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_streaming_equals_offline(encoder: UnitEncoder, speech: np.ndarray, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(speech)))
    chunks = data.draw(st.lists(st.integers(0, 9000), max_size=12))
    check_streaming(encoder, speech[:length], chunks)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 20000) | st.just(8000), min_size=2, max_size=5))
def test_batching_changes_no_units(encoder: UnitEncoder, speech: np.ndarray, lengths: list[int]) -> None:
    clips = [speech[:length] for length in lengths]
    for clip, units in zip(clips, encoder.encode_batch(clips), strict=True):
        assert np.array_equal(units.frames(), encoder.encode(clip, encoder.sample_rate).frames())
        assert units.run_lengths.sum() == -(-len(clip) // frame_samples(encoder))


@pytest.mark.gpu
def test_the_device_changes_no_units(encoder: UnitEncoder, speech: np.ndarray) -> None:
    here = encoder.encode(speech, encoder.sample_rate).frames()
    try:
        there = encoder.to("cuda").encode(speech, encoder.sample_rate).frames()
    finally:
        encoder.to("cpu")
    assert np.array_equal(here, there)


def test_mimi_speaks_as_soon_as_its_frame_is_over(folder: Path, speech: np.ndarray) -> None:
    encoder = MimiUnitEncoder.from_pretrained(str(save_mimi(folder / "causal")))
    stream = encoder.stream()
    assert len(stream.push(speech[:639])) == 0
    assert len(stream.push(speech[639:640])) == 1


def test_mimi_units_are_those_of_transformers(folder: Path, speech: np.ndarray) -> None:
    source = save_mimi(folder / "plain")
    whole = speech[: 640 * 40]
    with torch.inference_mode():
        expected = MimiModel.from_pretrained(str(source)).encode(torch.from_numpy(whole)[None, None], num_quantizers=1)
    units = MimiUnitEncoder.from_pretrained(str(source)).encode(whole, 8000)
    assert units.frames().tolist() == expected.audio_codes[0, 0].tolist()
    assert MimiUnitEncoder.from_pretrained(str(source)).codebook_size == MIMI_CODEBOOK


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_hubert_features_are_those_of_transformers(folder: Path, speech: np.ndarray, stable: bool, layer: int) -> None:
    source = save_hubert(folder / f"stable-{stable}", stable=stable, normalise=False)
    hidden = HubertFeatures(str(source), layer)
    waveform = speech[: 320 * 50]
    followed = np.pad(waveform, (0, hidden.receptive_field - 320)).astype(np.float64)
    with torch.inference_mode():
        model = HubertModel.from_pretrained(str(source)).double().eval()
        states = model(torch.from_numpy(followed)[None], output_hidden_states=True)
    expected = states.last_hidden_state if layer == 4 else states.hidden_states[layer]
    assert expected.shape == (1, 50, 16)
    assert torch.allclose(hidden(waveform[None]), expected, atol=1e-9)


def test_hubert_hears_no_loudness_if_it_was_trained_so(folder: Path, speech: np.ndarray) -> None:
    encoder = train_hubert_units(str(save_hubert(folder / "normalised")), 2, [speech], 20)
    quiet = encoder.encode(speech * np.float32(0.25), 16000)
    assert np.array_equal(quiet.frames(), encoder.encode(speech, 16000).frames())


@pytest.mark.parametrize("kind", ["silence", "tone", "noise", "clipped", "empty"])
def test_odd_sounds_give_units_without_error(encoder: UnitEncoder, kind: str) -> None:
    time = np.arange(8000) / 16000
    sounds = {
        "silence": np.zeros(8000),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * time),
        "noise": np.random.default_rng(0).normal(0, 0.3, 8000),
        "clipped": np.sign(np.sin(2 * np.pi * 150 * time)),
        "empty": np.zeros(0),
    }
    units = encoder.encode(sounds[kind].astype(np.float32), encoder.sample_rate)
    assert units.run_lengths.sum() == -(-len(sounds[kind]) // frame_samples(encoder))


def test_features_stand_beside_the_units(encoder: UnitEncoder, speech: np.ndarray) -> None:
    assert isinstance(encoder, MimiUnitEncoder | HubertUnitEncoder)
    features, units = encoder.features(speech), encoder.encode(speech, encoder.sample_rate).frames()
    assert features.dtype == np.float32
    assert len(features) == len(units)
    for unit in set(units.tolist()):  # equal units are neighbours: nearer to their own mean than to the common one
        own = features[units == unit]
        assert np.square(own - own.mean(0)).sum() <= np.square(own - features.mean(0)).sum()
    assert encoder.features(speech[:0]).shape == (0, features.shape[1])


def test_a_saved_encoder_is_whole(tmp_path: Path, encoder: UnitEncoder, speech: np.ndarray) -> None:
    """The model travels with the bundle: it is loaded after the folder it came from is gone, and the bundle has moved."""
    first, second = tmp_path / "first", tmp_path / "second"
    encoder.save(first)
    load_encoder(first).save(first)
    shutil.move(first, second)
    again = load_encoder(second)
    assert json.loads((second / "config.json").read_text())["path"] == "model"
    assert np.array_equal(again.encode(speech, 16000).frames(), encoder.encode(speech, 16000).frames())
    assert not [path for path in second.rglob("*") if path.suffix not in (".json", ".safetensors", "")]


def test_a_hub_id_stays_a_hub_id(tmp_path: Path) -> None:
    save_config(tmp_path, {"type": "mimi"}, "kyutai/mimi")
    assert json.loads((tmp_path / "config.json").read_text()) == {"type": "mimi", "path": "kyutai/mimi"}
    assert locate("kyutai/mimi", tmp_path) == "kyutai/mimi"
    (tmp_path / "model").mkdir()
    assert locate("model", tmp_path) == str(tmp_path / "model")


def test_runs_can_be_left_as_they_are(tmp_path: Path, encoder: UnitEncoder, speech: np.ndarray) -> None:
    assert collapses(encoder)
    encoder.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "collapse": False}))
    raw, units = load_encoder(tmp_path).encode(speech, 16000), encoder.encode(speech, 16000)
    assert not collapses(load_encoder(tmp_path))
    assert (raw.run_lengths == 1).all()
    assert np.array_equal(raw.ids, units.frames())
    assert np.array_equal(raw.collapsed().ids, units.ids)


def test_k_means_is_repeatable_and_spreads(folder: Path, speech: np.ndarray) -> None:
    source = str(save_hubert(folder / "kmeans"))
    one, two = (train_hubert_units(source, 2, [speech], 20, seed=1) for _ in range(2))
    assert torch.equal(one.centroids, two.centroids)
    assert len(set(one.encode(speech, 16000).ids.tolist())) == 20
    with pytest.raises(TresseError, match="too few"):
        train_hubert_units(source, 2, [speech[:3200]], 20)
    with pytest.raises(TresseError, match="choose 1 to 4"):
        train_hubert_units(source, 5, [speech], 20)


def test_what_cannot_be_loaded_is_named(tmp_path: Path, folder: Path, speech: np.ndarray) -> None:
    (tmp_path / "config.json").write_text('{"type": "mimi"}')
    with pytest.raises(TresseError, match="path: Field required"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "mimi", "path": "nobody/nothing"}')
    with pytest.raises(TresseError, match="cannot load nobody/nothing"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "hubert", "path": "nobody/nothing", "layer": 3}')
    with pytest.raises(TresseError, match="centroids"):
        load_encoder(tmp_path)
    encoder = train_hubert_units(str(save_hubert(folder / "damaged")), 2, [speech], 20)
    with pytest.raises(TresseError, match="train them"):
        HubertUnitEncoder(encoder.hidden, torch.zeros(20, 5))
    encoder.save(tmp_path)
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(TresseError, match="preprocessor_config"):
        load_encoder(tmp_path)
    source = save_mimi(folder / "empty")
    model = MimiModel.from_pretrained(str(source))
    model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum.zero_()
    model.save_pretrained(str(source))
    with pytest.raises(TresseError, match="empty"):
        MimiUnitEncoder.from_pretrained(str(source))


@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_of_it_goes_on_with_a_story(tmp_path: Path, folder: Path, kind: str, collapse: bool) -> None:
    prompt = spoken_beginning("en")
    units = make(kind, folder, prompt)
    assert isinstance(units, MimiUnitEncoder | HubertUnitEncoder)
    units.collapse = collapse
    bundle = Bundle.load(save_bundle(tmp_path, units, vocab_size=60 if collapse else None), device="cpu")
    chunks = list(bundle.continue_speech(prompt, 16000, to="fr", seed=1, max_seconds=2.0))
    again = list(bundle.continue_speech(prompt, 16000, to="fr", seed=1, max_seconds=2.0))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    assert 0.1 < len(audio) / bundle.sample_rate <= 2.0
    assert np.isfinite(audio).all()
    assert np.array_equal(audio, np.concatenate([chunk.audio for chunk in again]))
    spoken = [chunk.units for chunk in chunks]
    assert {part.frame_rate for part in spoken} == {float(kind.split("-")[1])}
    if not collapse:
        assert (np.concatenate([part.run_lengths for part in spoken]) == 1).all()


def test_parts_that_do_not_fit_are_refused(tmp_path: Path, folder: Path) -> None:
    path = save_bundle(tmp_path, MimiUnitEncoder.from_pretrained(str(save_mimi(folder / "slow"))), vocab_size=None)
    assert Bundle.load(path, device="cpu").units.frame_rate == 12.5
    MimiUnitEncoder.from_pretrained(str(save_mimi(folder / "fast", 25.0))).save(path / "units")
    with pytest.raises(TresseError, match="do not fit"):
        Bundle.load(path, device="cpu")


def test_weights_on_disk_are_safetensors(tmp_path: Path, folder: Path, speech: np.ndarray) -> None:
    encoder = train_hubert_units(str(save_hubert(folder / "stored")), 2, [speech], 20)
    encoder.save(tmp_path)
    stored = load_file(str(tmp_path / "centroids.safetensors"))["centroids"]
    assert torch.equal(stored.double(), encoder.centroids)
