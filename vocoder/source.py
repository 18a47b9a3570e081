"""The excitation that the vocoder filters: pulses at the fundamental frequency, and noise, as spectra of head frames.

The pulses of a frame are a band-limited train, all harmonics below half the sample rate at equal strength (Dirichlet's
kernel), at the frame's frequency and phase; neighbouring frames fit together because phases are accumulated. The noise
is drawn once and repeats after NOISE_FRAMES head frames, which is never heard and makes every rendering repeatable.
Both have about the level of speech, so that a filter of one speaks at a sound volume.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOISE_FRAMES = 512
LEVEL = 0.05
"""Root mean square of either excitation."""


def pulses(f0_BT: Tensor, phase_BT: Tensor, window_L: Tensor, sample_rate: int) -> Tensor:
    """Hz (0: none), phase of the fundamental at the frame's centre in rad -> complex [B, T, n_fft / 2 + 1]."""
    n_fft = len(window_L)
    f0 = f0_BT[:, :, None]
    harmonics = torch.floor(0.5 * sample_rate / f0.clamp(min=1.0))
    time = (torch.arange(n_fft, device=f0.device) - 0.5 * n_fft) / sample_rate
    angle = torch.remainder(phase_BT[:, :, None] + (2 * torch.pi) * f0 * time + torch.pi, 2 * torch.pi) - torch.pi
    half = 2 * torch.sin(0.5 * angle)
    flat = half.abs() < 1e-3
    train = torch.sin((harmonics + 0.5) * angle) / torch.where(flat, torch.ones_like(half), half) - 0.5
    train = torch.where(flat, harmonics, train)
    level = LEVEL * torch.sqrt(2.0 / harmonics.clamp(min=1.0)) * (f0 > 0)
    return torch.fft.rfft(train * (level * window_L), dim=-1)


def noise_table(n_fft: int) -> Tensor:
    """Spectra of windowed white noise: complex64 [NOISE_FRAMES, n_fft / 2 + 1]."""
    generator = torch.Generator().manual_seed(0)
    shape = (NOISE_FRAMES, n_fft // 2 + 1)
    parts = (
        torch.randn(shape, generator=generator, device="cpu") for _ in range(2)
    )  # whatever the weights are made on
    drawn = torch.complex(*parts)
    return drawn * (LEVEL * (0.375 * n_fft) ** 0.5)


def advance_phase(f0_T: Tensor, before: tuple[float, float], seconds: float) -> Tensor:
    """Phase in rad, float64 [T], of frames `seconds` apart; before: frequency and phase of the frame before them."""
    frequency = torch.cat([f0_T.new_tensor(before[:1]), f0_T])
    turns = 0.5 * (frequency[1:] + frequency[:-1]) * seconds
    return torch.remainder(before[1] + 2 * torch.pi * turns.cumsum(0), 2 * torch.pi)
