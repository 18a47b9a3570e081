"""Whisper's layers, read from CTranslate2's file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from slm.errors import TresseError
from slm.units.attention import POSITIONS, AttentionEncoderConfig, AttentionNetwork, positions
from train.units.whisper import PARTS, begin_with_whisper, read_arrays


def write_model(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A file as CTranslate2 writes it."""

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    kinds = {np.dtype("f4"): 0, np.dtype("i1"): 1, np.dtype("i2"): 2, np.dtype("f2"): 4}
    parts = [struct.pack("<I", 6), name("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for key, array in arrays.items():
        parts += [name(key), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        parts += [struct.pack("<BI", kinds[array.dtype], array.nbytes), array.tobytes()]
    path.write_bytes(b"".join([*parts, struct.pack("<I", 0)]))


def small(width: int = 16, layers: int = 2) -> AttentionNetwork:
    """A network as small as the Whisper of `weights`."""
    torch.manual_seed(0)
    return AttentionNetwork(
        AttentionEncoderConfig(codebook_size=5, layers=layers, width=width, heads=2, mels=8, inward=6, recurrent=4)
    )


def weights(layers: int) -> dict[str, np.ndarray]:
    """Random weights of a Whisper, under CTranslate2's names."""
    state, rng = small(layers=layers).state_dict(), np.random.default_rng(0)
    names = {f"conv1/{part}": f"first.{part}" for part in ("weight", "bias")}
    names |= {"layer_norm/gamma": "norm.weight", "layer_norm/beta": "norm.bias"}
    names |= {f"conv2/{part}": f"second.{part}" for part in ("weight", "bias")}
    names |= {f"layer_{n}/{theirs}": f"layers.{n}.{ours}" for n in range(layers) for ours, theirs in PARTS.items()}
    arrays = {f"encoder/{theirs}": rng.normal(size=state[ours].shape).astype("f2") for theirs, ours in names.items()}
    return {"encoder/num_heads": np.array(2, "i2"), **arrays, "decoder/conv1/bias": np.zeros(3, "f4")}


def test_a_network_begins_with_the_first_layers(tmp_path: Path) -> None:
    arrays, network = weights(3), small()
    write_model(tmp_path / "model.bin", arrays)
    outward = network.outward.weight.clone()
    begin_with_whisper(network, tmp_path)
    assert torch.equal(network.norm.weight, torch.from_numpy(arrays["encoder/layer_norm/gamma"]).float())
    assert torch.equal(network.first.bias, torch.from_numpy(arrays["encoder/conv1/bias"]).float())
    for index in range(2):
        for ours, theirs in PARTS.items():
            expected = torch.from_numpy(arrays[f"encoder/layer_{index}/{theirs}"]).float()
            assert torch.equal(network.state_dict()[f"layers.{index}.{ours}"], expected), ours
    assert torch.equal(network.outward.weight, outward)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model.bin", weights(1))
    with pytest.raises(TresseError, match="another shape"):
        begin_with_whisper(small(layers=2), tmp_path)
    with pytest.raises(TresseError, match="another shape"):
        begin_with_whisper(small(width=32, layers=1), tmp_path)
    quantised = {name: array.astype("i1") if array.ndim > 1 else array for name, array in weights(1).items()}
    write_model(tmp_path / "model.bin", quantised)
    with pytest.raises(TresseError, match="quantised"):
        begin_with_whisper(small(layers=1), tmp_path)
    whole = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TresseError, match="fetch the Whisper again"):
        read_arrays(tmp_path / "model.bin")
    with pytest.raises(TresseError, match="fetch the Whisper again"):
        read_arrays(tmp_path / "none.bin")


def test_positions_are_whispers() -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids

    assert torch.allclose(positions(64), sinusoids(POSITIONS, 64), atol=5e-4)
