"""Dropout of what attention and feed-forward layers add to the residual stream, for models that come without.

A small corpus is read several times, and a model of the Llama family, which has no dropout of its own, learns it by heart.
Hinton et al. 2012, arXiv:1207.0580; placed as in the Transformer (Vaswani et al. 2017, arXiv:1706.03762, 5.4).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import TresseError

OUTWARD = ("o_proj", "down_proj")
"""The last matrices of attention and of the feed-forward layers in the Llama family (Qwen, Mistral, Gemma, SmolLM, OLMo)."""


def add_dropout(model: nn.Module, share: float) -> None:
    """Drop a share (0 to 1) of the outputs of each such matrix while the model trains; nothing of it is saved.

    Drawn from torch's global generator. Raises TresseError where a model names its matrices otherwise.
    """
    if share == 0.0:
        return
    matrices = [part for name, part in model.named_modules() if name.rpartition(".")[2] in OUTWARD]
    if not matrices:
        raise TresseError(
            "slm.dropout is for models of the Llama family: set it to 0, and dropout in the model's config.json"
        )
    for matrix in matrices:
        matrix.register_forward_hook(partial(_dropped, share))


def _dropped(share: float, matrix: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return F.dropout(output, share, training=matrix.training)
