"""The inverse-STFT head of vocos with a streaming overlap-add, as a filter of an excitation.

The spectrum of a frame is that of the pulses times one filter (magnitude and phase), plus that of the noise times
another (magnitude): the network need not make up a pitch, as units carry none, and its filters are smooth.

Frame t of n_fft samples is added at t * hop - (n_fft - hop) / 2, as in vocos with "same" padding: T frames give
T * hop samples, and a sample is certain once the frames that reach it are there, (n_fft - hop) / 2 samples later.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vocos.heads import ISTFTHead

from vocoder.causal import linear
from vocoder.source import NOISE_FRAMES, noise_table, pulses

KNEE = 0.8
"""Samples up to this amplitude pass unchanged; louder ones bend smoothly towards 1 and never reach beyond it."""


@dataclass
class OverlapState:
    """The unfinished end of the overlap-add: windowed sum [B, n_fft - hop], squared windows [1, n_fft - hop], and how
    many samples before time zero are still to be dropped."""

    sums: Tensor
    envelope: Tensor
    skip: int


def limit(waveform: Tensor) -> Tensor:
    """Soft limiter without memory: identity up to KNEE, then KNEE + r * e / (e + r) with r = 1 - KNEE, e the excess."""
    room = 1.0 - KNEE
    excess = F.softshrink(waveform, KNEE)
    return waveform.clamp(-KNEE, KNEE) + room * (excess / (excess.abs() + room))


@dataclass
class Source:
    """What excites T head frames. f0: Hz, 0 where unvoiced, [B, T]; phase: of the fundamental, rad [B, T]; frame: number
    of the frame since the stream began [B, T]."""

    f0: Tensor
    phase: Tensor
    frame: Tensor


class StreamingISTFTHead(ISTFTHead):
    """Features and what excites them -> waveform, |x| <= 1."""

    def __init__(self, dim: int, n_fft: int, hop_length: int, sample_rate: int) -> None:
        super().__init__(dim, n_fft, hop_length, padding="same")
        self.out = nn.Linear(dim, 3 * (n_fft // 2 + 1))
        self.sample_rate = sample_rate
        self.register_buffer("noise", noise_table(n_fft), persistent=False)
        window = self.istft.window
        del self.istft.window  # a constant: keep it out of the weights, float16 would round it
        self.istft.register_buffer("window", window, persistent=False)
        self.n_fft, self.hop_length = n_fft, hop_length

    def fresh(self, batch: int, device: torch.device) -> OverlapState:
        """The state before the first frame."""
        tail = self.n_fft - self.hop_length
        return OverlapState(torch.zeros(batch, tail, device=device), torch.zeros(1, tail, device=device), tail // 2)

    def spectrum(self, x_BTC: Tensor, source: Source) -> Tensor:
        """Features [B, T, C] -> complex spectrum [B, n_fft / 2 + 1, T]; filters magnify a hundredfold at most."""
        if x_BTC.shape[1] == 0:  # FFTs of nothing are refused
            return torch.zeros(len(x_BTC), self.n_fft // 2 + 1, 0, dtype=torch.complex64, device=x_BTC.device)
        magnitude, phase, noise = linear(x_BTC, self.out.weight, self.out.bias).chunk(3, dim=2)
        tone_BTF = pulses(source.f0, source.phase, self.istft.window, self.sample_rate)
        tone_BTF = tone_BTF * torch.polar(magnitude.exp().clamp(max=1e2), phase)
        noise_BTF = self.noise[source.frame % NOISE_FRAMES] * noise.exp().clamp(max=1e2)
        return (tone_BTF + noise_BTF).transpose(1, 2)

    def overlap_add(
        self, spectrum_BFT: Tensor, state: OverlapState, *, final: bool, present_BT: Tensor | None = None
    ) -> tuple[Tensor, OverlapState]:
        """Complex spectrum [B, F, T] -> samples now certain [B, n], state. Frames not `present` count as never spoken."""
        n_fft, hop, steps = self.n_fft, self.hop_length, spectrum_BFT.shape[-1]
        sums, envelope = state.sums, state.envelope
        if steps:
            window = self.istft.window
            frames = torch.fft.irfft(spectrum_BFT, n_fft, dim=1) * window[:, None]
            squares = window.square()[None, :, None].expand(1, n_fft, steps)
            if present_BT is not None:
                frames, squares = frames * present_BT[:, None], squares * present_BT[:, None]
            total = (steps - 1) * hop + n_fft
            grow = total - sums.shape[1]
            sums = F.fold(frames, (1, total), (1, n_fft), stride=(1, hop))[:, 0, 0] + F.pad(sums, (0, grow))
            envelope = F.fold(squares, (1, total), (1, n_fft), stride=(1, hop))[:, 0, 0] + F.pad(envelope, (0, grow))
        certain = steps * hop + ((n_fft - hop) // 2 if final else 0)
        start = min(state.skip, certain)
        samples = sums[:, start:certain] / envelope[:, start:certain].clamp(min=1e-11)
        rest = OverlapState(sums[:, steps * hop :], envelope[:, steps * hop :], state.skip - start)
        return samples, rest

    def forward(
        self, x_BTC: Tensor, source: Source, state: OverlapState | None = None, *, final: bool = True
    ) -> tuple[Tensor, OverlapState]:
        """Features [B, T, C], source -> samples now certain [B, n], state; offline (no state, final) n = T * hop."""
        if state is None:
            state = self.fresh(x_BTC.shape[0], x_BTC.device)
        samples, state = self.overlap_add(self.spectrum(x_BTC, source), state, final=final)
        return limit(samples), state
