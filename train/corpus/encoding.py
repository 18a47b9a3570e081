"""Sentences -> speech -> units: every distinct sentence of a voice once, encoded in batches of like length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from slm.audio import resample
from slm.units import UnitEncoder, Units
from train.corpus.work import Request, Work
from train.speech.voices import SAMPLE_RATE, Unspeakable, speak

SENTENCES_AT_ONCE = 512
"""Sentences whose speech is held at a time (80 MB)."""
SECONDS_AT_ONCE = {"cpu": 12.0, "cuda": 320.0}
"""Speech encoded at a time: on a CPU more than this leaves the cache."""


def speak_and_encode(requests: Iterable[Request], work: Work, encoder: UnitEncoder) -> dict[Request, Units | str]:
    """The units of every distinct request, or why there are none."""
    units: dict[Request, Units | str] = {}
    distinct = sorted(set(requests), key=lambda request: (len(request.text), request))  # alike in length: less padding
    for first in range(0, len(distinct), SENTENCES_AT_ONCE):
        spoken: dict[Request, np.ndarray] = {}
        for request in distinct[first : first + SENTENCES_AT_ONCE]:
            try:
                spoken[request] = speak_request(request, work)
            except Unspeakable as error:
                units[request] = str(error)
        units |= encode_all(spoken, encoder)
    return units


def speak_request(request: Request, work: Work) -> np.ndarray:
    """float32 [samples] at 16 kHz. Raises Unspeakable where the text gives no speech, or too much."""
    speaker = work.voices.speaker(request.speaker)
    waveform = speak(request.text, request.language, speaker, work.voices)
    seconds, longest = len(waveform) / SAMPLE_RATE, work.preparation.longest_seconds
    if seconds > longest:
        raise Unspeakable(f"{request.text[:40]!r} lasts {seconds:.0f} s when spoken: {longest:g} s is the most")
    if work.preparation.augmentation and request.recording is not None:
        waveform = work.preparation.augmentation.recording(request.recording).of(waveform)
    return waveform


def encode_all(spoken: dict[Request, np.ndarray], encoder: UnitEncoder) -> dict[Request, Units | str]:
    """Speech at 16 kHz -> units, in batches of similar length; a text where there are none."""
    clips = {request: resample(waveform, SAMPLE_RATE, encoder.sample_rate) for request, waveform in spoken.items()}
    units: dict[Request, Units | str] = {}
    for batch in batches(clips, encoder):
        for request, encoded in zip(batch, encoder.encode_batch([clips[request] for request in batch]), strict=True):
            units[request] = encoded if len(encoded) else f"{request.text[:40]!r} gives no units"
    return units


def batches(clips: dict[Request, np.ndarray], encoder: UnitEncoder) -> Iterator[list[Request]]:
    """The clips in order of length, in batches that fill the processor but not more than its cache, padding included."""
    device = str(getattr(encoder, "device", "cpu")).partition(":")[0]
    most = SECONDS_AT_ONCE.get(device, SECONDS_AT_ONCE["cpu"]) * encoder.sample_rate
    batch: list[Request] = []
    for request in sorted(clips, key=lambda request: len(clips[request])):
        if batch and (len(batch) + 1) * len(clips[request]) > most:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch
