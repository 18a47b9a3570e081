"""Where bfloat16 pays: the one place that knows the hardware's multipliers."""

from __future__ import annotations

import torch


def bf16_pays(device: torch.device | str | None = None) -> bool:
    """Whether this device (None: the GPU if there is one, else the CPU) multiplies bfloat16 faster than float32."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
