"""Sentences -> speech -> units, every distinct sentence of a voice once; and segments of recordings -> units. Encoding takes
batches of like length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from slm.audio import MIN_SECONDS, QUIETEST, read_audio, resample
from slm.decoder import SLACK
from slm.errors import MachineError, TresseError
from slm.units import UnitEncoder, Units
from train.corpus.channel import Channel, Unspoken, phones_of
from train.corpus.reader import Recorded, Row, Segment
from train.corpus.work import Request, Work
from train.speech.voices import SAMPLE_RATE, Unspeakable, speak
from train.tools.texts import plain

SENTENCES_AT_ONCE = 512
"""Sentences whose speech is held at a time (80 MB)."""
RECORDED_AT_ONCE = 1200.0
"""s of segments of recordings held at a time, beside the recording that they are cut from (80 MB at 16 kHz)."""
SECONDS_AT_ONCE = {"cpu": 12.0, "cuda": 320.0}
"""Speech encoded at a time: on a CPU more than this leaves the cache."""

T = TypeVar("T")


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


def name_unspoken(requests: Iterable[Request], work: Work, unspoken: Unspoken) -> dict[Request, Units | str]:
    """The units of every distinct request by the encoder's channel, or why there are none."""
    channel = Channel.load(work.encoder_folder)
    units: dict[Request, Units | str] = {}
    for request in sorted(set(requests)):
        voice = work.voices.reading(request.speaker, request.language)
        digest = hashlib.sha256(repr((work.preparation.seed, request)).encode()).digest()
        severity = np.random.default_rng([work.preparation.seed, request.recording or 0]).uniform(*unspoken.severity)
        rng = np.random.default_rng(list(digest))
        if unspoken.heard < 1 and rng.random() >= unspoken.heard:
            severity = 0.0
        heard = channel.of(phones_of(plain(request.text), voice), rng, severity)
        units[request] = heard if len(heard) else f"{request.text[:40]!r} gives no units"
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


def encode_recordings(rows: Iterable[Row], encoder: UnitEncoder, longest: float) -> dict[Segment, Units | str]:
    """The units of every segment of recordings, or why there are none. longest: s."""
    units: dict[Segment, Units | str] = {}
    clips: dict[Segment, np.ndarray] = {}

    def encode() -> None:
        for batch in batches(clips, encoder):
            for segment, encoded in zip(batch, encoder.encode_batch([clips[key] for key in batch]), strict=True):
                units[segment] = encoded if len(encoded) else "gives no units"
        clips.clear()

    audio: Path | None = None
    for row in rows:
        if row.recorded is not None:
            if row.recorded.audio != audio:  # rows that follow each other may be of one recording
                audio, sound = row.recorded.audio, _decoded(row.recorded.audio)
            for segment, clip in _segments(row.recorded, sound, longest, encoder.sample_rate):
                if isinstance(clip, str):
                    units[segment] = clip
                else:
                    clips[segment] = clip
        if sum(map(len, clips.values())) > RECORDED_AT_ONCE * encoder.sample_rate:
            encode()
    encode()
    return units


def _decoded(audio: Path) -> tuple[np.ndarray, int] | str:
    """float32 [samples] of a recording and its rate in Hz, or why it cannot be used."""
    try:
        return read_audio(audio)
    except MachineError:
        raise
    except TresseError as error:
        return str(error)


def _segments(
    recorded: Recorded, sound: tuple[np.ndarray, int] | str, longest: float, rate: int
) -> Iterator[tuple[Segment, np.ndarray | str]]:
    """Each segment, and float32 [samples] at `rate` Hz or why it cannot be used. sound: see `_decoded`."""
    if isinstance(sound, str):
        yield from ((segment, sound) for segment in recorded.segments)
        return
    waveform, own_rate = sound
    seconds = len(waveform) / own_rate
    for segment in recorded.segments:
        end = seconds if segment.end is None else segment.end
        clip = waveform[round(segment.start * own_rate) : round(end * own_rate)]
        if max(segment.start + MIN_SECONDS, end - SLACK) > seconds:
            yield segment, f"from {segment.start:g} to {end:g} s: {recorded.audio} lasts {seconds:.2f} s"
        elif len(clip) > longest * own_rate + 1:
            yield segment, f"lasts {end - segment.start:.0f} s: {longest:g} s is the most, give start and end"
        elif float(np.abs(clip).max()) < QUIETEST:
            yield segment, f"from {segment.start:g} to {end:g} s {recorded.audio} is silent"
        else:
            yield segment, resample(clip.copy(), own_rate, rate)


def batches(clips: dict[T, np.ndarray], encoder: UnitEncoder) -> Iterator[list[T]]:
    """The clips in order of length, in batches that fill the processor but not more than its cache, padding included."""
    device = str(getattr(encoder, "device", "cpu")).partition(":")[0]
    most = SECONDS_AT_ONCE.get(device, SECONDS_AT_ONCE["cpu"]) * encoder.sample_rate
    batch: list[T] = []
    for key in sorted(clips, key=lambda key: len(clips[key])):
        if batch and (len(batch) + 1) * len(clips[key]) > most:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch
