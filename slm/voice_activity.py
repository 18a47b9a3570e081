"""Where speech is in a waveform: Silero's voice activity detector, which comes with faster-whisper and runs offline.

Prompts are cut into sentences at pauses, because the language model was trained with a tag before every sentence.
"""

from __future__ import annotations

import numpy as np

from slm.audio import resample

RATE = 16000


def speech_segments(waveform: np.ndarray, sample_rate: int, *, pause: float = 0.35) -> list[tuple[float, float]]:
    """float32 [samples] -> (start, end) of every stretch of speech in s; stretches are parted by `pause` s or more."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(
        threshold=0.4, min_speech_duration_ms=120, min_silence_duration_ms=int(pause * 1000), speech_pad_ms=60
    )
    found = get_speech_timestamps(resample(waveform, sample_rate, RATE), options, sampling_rate=RATE)
    return [(part["start"] / RATE, part["end"] / RATE) for part in found]
