"""What a vocoder is trained on: spectra at several resolutions, and discriminators.

`SpectralLoss` alone gives intelligible, slightly buzzing speech; the adversarial losses of vocos (hinge, feature
matching) take the buzz away. The stock discriminators of vocos cost seconds a step on a CPU and belong on a GPU; the
thin one costs about as much as the generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchaudio.transforms import MelScale, Spectrogram
from vocos.discriminators import DiscriminatorR, MultiPeriodDiscriminator, MultiResolutionDiscriminator
from vocos.loss import DiscriminatorLoss, FeatureMatchingLoss, GeneratorLoss

FLOOR = 1e-5
"""Magnitudes below this count as silence in logarithms."""
DISCRIMINATORS = ("thin", "stock")


class SpectralLoss(nn.Module):
    """Log-mel L1, and linear-magnitude spectral convergence, averaged over several window lengths (samples)."""

    def __init__(
        self, sample_rate: int, n_ffts: Sequence[int] = (256, 512, 1024), n_mels: Sequence[int] = (32, 64, 80)
    ) -> None:
        super().__init__()
        self.spectrograms = nn.ModuleList(Spectrogram(n, hop_length=n // 4, power=1) for n in n_ffts)
        self.mels = nn.ModuleList(
            MelScale(mels, sample_rate, n_stft=n // 2 + 1) for n, mels in zip(n_ffts, n_mels, strict=True)
        )

    def forward(self, fake_BL: Tensor, real_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, samples], float32 -> log-mel L1, spectral convergence (scalars)."""
        mel_loss, convergence = fake_BL.new_zeros(()), fake_BL.new_zeros(())
        for spectrogram, mel in zip(self.spectrograms, self.mels, strict=True):
            with torch.no_grad():
                real = spectrogram(real_BL)
                real_mel = mel(real).clamp(min=FLOOR).log()
            fake = spectrogram(fake_BL)
            mel_loss = mel_loss + F.l1_loss(mel(fake).clamp(min=FLOOR).log(), real_mel)
            convergence = convergence + (fake - real).norm() / real.norm().clamp(min=FLOOR)
        return mel_loss / len(self.mels), convergence / len(self.mels)


class ThinDiscriminatorR(DiscriminatorR):
    """The single-resolution spectrogram discriminator of vocos, thin: one band, few channels, strides in time too."""

    def __init__(self, window_length: int, channels: int = 16) -> None:
        super().__init__(window_length, channels=channels, bands=((0.0, 1.0),))
        layers = [
            nn.Conv2d(2, channels, (3, 5), (1, 2), padding=(1, 2)),
            nn.Conv2d(channels, channels, (3, 5), (2, 2), padding=(1, 2)),
            nn.Conv2d(channels, 2 * channels, (3, 5), (1, 2), padding=(1, 2)),
            nn.Conv2d(2 * channels, 2 * channels, (3, 3), (1, 2), padding=(1, 1)),
        ]
        self.band_convs = nn.ModuleList([nn.ModuleList(weight_norm(layer) for layer in layers)])
        self.conv_post = weight_norm(nn.Conv2d(2 * channels, 1, (3, 3), padding=(1, 1)))


class Discriminators(nn.Module):
    """One or several discriminators behind one call. kind: "thin" (for CPUs) or "stock" (those of vocos, 41M)."""

    def __init__(self, kind: str, thin_windows: Sequence[int] = (256, 512, 1024)) -> None:
        super().__init__()
        if kind == "thin":
            resolutions = MultiResolutionDiscriminator(fft_sizes=())
            resolutions.discriminators = nn.ModuleList(ThinDiscriminatorR(window) for window in thin_windows)
            self.parts = nn.ModuleList([resolutions])
        elif kind == "stock":
            self.parts = nn.ModuleList([MultiPeriodDiscriminator(), MultiResolutionDiscriminator()])
        else:
            raise ValueError(f"unknown discriminator {kind!r}: choose one of {', '.join(DISCRIMINATORS)}")
        self.generator_loss, self.discriminator_loss = GeneratorLoss(), DiscriminatorLoss()
        self.feature_matching = FeatureMatchingLoss()

    def forward(self, real_BL: Tensor, fake_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Waveforms [B, samples] -> losses (scalars): discriminators', generator's, feature matching.

        All three come from one pass over each waveform. The first is for the discriminators' weights only, the others
        for `fake` only: see `train.vocoder.training`. Each is a mean over the sub-discriminators.
        """
        d_loss, g_loss, matching = (fake_BL.new_zeros(()) for _ in range(3))
        for part in self.parts:
            real, fake, real_maps, fake_maps = part(y=real_BL, y_hat=fake_BL)
            real, fake = [x.float() for x in real], [x.float() for x in fake]
            real_maps, fake_maps = ([[x.float() for x in maps] for maps in kind] for kind in (real_maps, fake_maps))
            count = len(real) * len(self.parts)
            d_loss = d_loss + self.discriminator_loss(real, fake)[0].squeeze() / count
            g_loss = g_loss + self.generator_loss(fake)[0].squeeze() / count
            targets = [[x.detach() for x in maps] for maps in real_maps]
            matching = matching + self.feature_matching(targets, fake_maps).squeeze() / (count * len(fake_maps[0]))
        return d_loss, g_loss, matching
