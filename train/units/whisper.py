"""Whisper's encoder, or its first layers, as the beginning of an `AttentionNetwork`.

The weights come from a faster-whisper folder: CTranslate2's `model.bin`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.errors import TresseError
from slm.recogniser_files import weights_in
from slm.units.attention import AttentionNetwork

FLOATS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 4: np.dtype("<f2")}
"""CTranslate2's numbers of floating-point types."""
CONVOLUTIONS = {"first": "conv1", "second": "conv2"}
PARTS = {
    "norm.weight": "self_attention/layer_norm/gamma",
    "norm.bias": "self_attention/layer_norm/beta",
    "attend.weight": "self_attention/linear_0/weight",
    "attend.bias": "self_attention/linear_0/bias",
    "mix.weight": "self_attention/linear_1/weight",
    "mix.bias": "self_attention/linear_1/bias",
    "norm_up.weight": "ffn/layer_norm/gamma",
    "norm_up.bias": "ffn/layer_norm/beta",
    "up.weight": "ffn/linear_0/weight",
    "up.bias": "ffn/linear_0/bias",
    "down.weight": "ffn/linear_1/weight",
    "down.bias": "ffn/linear_1/bias",
}
"""Weights of a layer, and what CTranslate2 calls them."""


def begin_with_whisper(network: AttentionNetwork, folder: Path) -> None:
    """Give a network the convolutions, the first layers and the last norm of a Whisper, in place; its head stays as it is.

    Raises TresseError where the folder holds no Whisper of the network's shape whose weights are floating point.
    """
    arrays = read_arrays(folder / "model.bin")
    wanted = {
        f"{ours}.{part}": f"{theirs}/{part}" for ours, theirs in CONVOLUTIONS.items() for part in ("weight", "bias")
    }
    wanted |= {"norm.weight": "layer_norm/gamma", "norm.bias": "layer_norm/beta"}
    for index in range(len(network.layers)):
        wanted |= {f"layers.{index}.{ours}": f"layer_{index}/{theirs}" for ours, theirs in PARTS.items()}
    state = network.state_dict()
    for ours, theirs in wanted.items():
        tensor = arrays.get(f"encoder/{theirs}")
        if tensor is None or tensor.shape != state[ours].shape:
            raise TresseError(f"the Whisper in {folder} has another shape than units.attention asks for ({theirs})")
        state[ours] = tensor
    network.load_state_dict(state)


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The encoder's arrays of a CTranslate2 model, float32 by name. Raises TresseError where it is damaged, or int8."""
    arrays: dict[str, Tensor] = {}
    try:
        weights = [weight for weight in weights_in(path) if weight.name.startswith("encoder/") and weight.shape]
        with path.open("rb") as file:
            for weight in weights:
                if weight.kind not in FLOATS:
                    raise TresseError(f"the Whisper in {path} is quantised: give one in float16 or float32")
                file.seek(weight.start)
                array = np.frombuffer(file.read(weight.length), FLOATS[weight.kind]).reshape(weight.shape)
                arrays[weight.name] = torch.from_numpy(array.astype(np.float32))
    except (OSError, ValueError, struct.error) as error:
        raise TresseError(f"cannot read {path}: fetch the Whisper again") from error
    return arrays
