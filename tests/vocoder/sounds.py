"""What the tests of this room share."""

from __future__ import annotations

import torch

from vocoder.config import VocoderConfig
from vocoder.model import Vocoder
from vocoder.prosody import followed

SMALL = {
    "speakers": ["ada", "ben"],
    "languages": ["en", "fr"],
    "dim": 24,
    "intermediate_dim": 32,
    "dilations": [1, 2],
    "prosody_dim": 16,
    "prosody_dilations": [1, 3],
    "max_run_length": 6,
}


def build(seed: int = 0, **changes: object) -> Vocoder:
    """A small vocoder with weights large enough to be heard, and a melody that moves and pauses."""
    settings = {"codebook_size": 11, "frame_rate": 50.0, "sample_rate": 16000, **SMALL, **changes}
    torch.manual_seed(seed)
    vocoder = Vocoder(VocoderConfig(**settings)).eval()
    with torch.no_grad():
        vocoder.head.out.weight.mul_(20)
        for layer in (vocoder.prosody.tone, vocoder.prosody.place, vocoder.prosody.pitch_out):
            layer.weight.mul_(20)
        for following in (vocoder.following, vocoder.prosody.following):
            for table in following.tables:
                torch.nn.init.normal_(table.weight, std=0.3)
        units = torch.arange(11)[None]
        known = followed(units, 1 + 0 * units, 11, vocoder.config.units_ahead)
        heard, _, _ = vocoder.prosody.durations(known, torch.zeros(1, dtype=torch.long), 0 * units)
        melody, _ = vocoder.prosody.features(heard, 1 + 0 * units)
        for row, level in enumerate(vocoder.prosody.pitch(melody, units, 0 * units, 0 * units)):
            vocoder.prosody.pitch_out.bias[row] = -level.mean()
    return vocoder


VOCODERS = {
    "50 Hz": build(),
    "12.5 Hz": build(frame_rate=12.5),
    "50 Hz, two units ahead": build(units_ahead=2),
    "25 Hz at 24 kHz": build(frame_rate=25.0, sample_rate=24000, hop_length=240, n_fft=960, lookahead=2),
}
