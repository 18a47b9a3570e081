"""How a vocoder is trained: its settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VocoderTraining:
    """How to train. Lengths in s; `context_seconds` precede each segment and are not counted by the loss.

    adversarial_from: the step from which the discriminators ("thin" or "stock") take part; None: never. They hear
    `adversarial_clips` segments of each batch. device, precision: "auto" takes CUDA and bfloat16 where the machine has
    them ("cpu", "cuda"; "float32", "bfloat16" ask for one). memory_dropout: share of clips whose backbone does without
    the features of the sentence so far: hours of speech teach it to use them, minutes to know the sentences by heart; 1
    leaves them out for good. prosody_dropout: of the numbers that the prosody predictor sees.
    """

    steps: int
    batch_size: int = 12
    segment_seconds: float = 0.8
    context_seconds: float = 0.3
    learning_rate: float = 1e-3
    warmup: int = 100
    seed: int = 0
    adversarial_from: int | None = None
    adversarial_clips: int = 6
    discriminator: str = "thin"
    discriminator_learning_rate: float = 3e-4
    mel_weight: float = 15.0
    convergence_weight: float = 1.0
    duration_weight: float = 1.0
    pitch_weight: float = 4.0
    memory_dropout: float = 0.0
    prosody_dropout: float = 0.0
    voicing_weight: float = 1.0
    adversarial_weight: float = 1.0
    matching_weight: float = 2.0
    validation_clips: int = 12
    log_every: int = 50
    checkpoint_every: int = 500
    sample_every: int = 1000
    device: str = "auto"
    precision: str = "auto"
