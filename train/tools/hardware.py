"""What the hardware multiplies, and how fast: the one place that knows.

Peaks of GPUs are their makers' figures for dense bfloat16 with float32 sums; a CPU's is measured here, with one product
of the size that training has, because frequency, threads and neighbours decide it.
"""

from __future__ import annotations

import time

import torch

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Operations a second by a part of the GPU's name; the first that fits."""


def bf16_pays(device: torch.device | str | None = None) -> bool:
    """Whether this device (None: the GPU if there is one, else the CPU) multiplies bfloat16 faster than float32."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_flops(device: torch.device | str, bf16: bool) -> float | None:
    """Floating-point operations a second that this process can hope for; None where that is not known."""
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in PEAKS.items() if part in name), None) if bf16 else None
    if device.type != "cpu":
        return None
    kind = torch.bfloat16 if bf16 else torch.float32
    rows, width = 512, 512
    a, b = torch.ones(rows, width, dtype=kind), torch.ones(width, width, dtype=kind)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 4 * 2 * rows * width * width / best
