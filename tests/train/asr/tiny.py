"""What the tests of this room share."""

from __future__ import annotations

import numpy as np

from train.asr.clips import ClipSettings
from train.asr.model import ASRModel
from train.asr.plan import PoolSettings
from train.asr.training import ASRTraining
from train.speech.voices import SAMPLE_RATE, Voices, speak

SENTENCES = [
    ("en", "Anna found a red ball."),
    ("fr", "Le chat dort sous la table."),
    ("en", "The dog was very hungry."),
    ("fr", "Il pleut sur la grande maison."),
]
PLAIN = ClipSettings(
    batch=4, block=4, together=0.1, whole=0.2, tempo=(1.0, 1.0), warp=0.0, noise=0.2, masks=0, equaliser=0.1
)
TRAINING = ASRTraining(
    steps=120,
    model=ASRModel(width=64, heads=2, encoder_layers=2, decoder_layers=1, vocabulary=320),
    pool=PoolSettings(utterances=8, scrambled=0.0, recorded=0.0),
    clips=PLAIN,
    learning_rate=3e-3,
    warmup=20,
    smoothing=0.0,
    log_every=20,
    checkpoint_every=40,
    precision="no",
    device="cpu",
)


def spoken(voices: Voices, *numbers: int, pause: float = 0.6) -> np.ndarray:
    """Some of the sentences, in the reference voice, with pauses between them."""
    silence = np.zeros(int(pause * SAMPLE_RATE), np.float32)
    speaker = voices.speaker(voices.reference)
    parts = [part for n in numbers for part in (speak(SENTENCES[n][1], SENTENCES[n][0], speaker, voices), silence)]
    return np.concatenate(parts[:-1])
