"""Much speech at once: (text, language, speaker) requests -> a folder of FLAC shards, spoken by several processes.

    folder/00000-DIGEST.flac    the sentences of a shard, one after another, int16
    folder/00000-DIGEST.jsonl   a row a sentence (`Clip`), or what was wrong with it
    folder/index.jsonl          the rows of all shards, once all are there

A shard is written atomically and named after all that its speech depends on: what is there is not spoken again, after an
interruption or with more requests behind the same ones. Shards can be read while others are still being spoken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from slm.errors import TresseError
from train.speech.espeak import EspeakSpeaker
from train.speech.phones import ipa_phones, phones
from train.speech.voices import Speaker, Unspeakable, Voices, render
from train.tools.checkpoints import atomic_path
from train.tools.progress import Progress
from train.tools.texts import plain
from train.tools.workers import worker_pool

SHARD = 64
"""Sentences of a shard: about a minute of Kokoro's work."""

Request = tuple[str, str, Speaker]
"""Text, language, speaker (of a voices file, or any mixture)."""


@dataclass(frozen=True)
class Clip:
    """A spoken sentence. audio: a FLAC file of the folder, in which the sentence is `samples` from `start`.

    phones: (name, start s, end s), where the back end gives times: espeak-ng's, or IPA (`train.speech.phones`). offset: s
    of the synthesiser's output before the sentence's first sample (see `train.speech.voices.Spoken`).
    """

    audio: str
    start: int
    samples: int
    sample_rate: int
    text: str
    language: str
    speaker: str
    family: str
    offset: float
    phones: list[tuple[str, float, float]] | None = None

    def read(self, folder: Path) -> np.ndarray:
        """The waveform: float32 [samples]. Raises TresseError where the file cannot be read."""
        import soundfile

        path = folder / self.audio
        try:
            return soundfile.read(path, frames=self.samples, start=self.start, dtype="float32")[0]
        except (OSError, soundfile.LibsndfileError) as error:
            raise TresseError(f"cannot read {path}: delete its .jsonl and speak it again") from error


def speak_pool(
    requests: Sequence[Request], voices: Voices, folder: Path, workers: int = 1, sample_rate: int = 24000
) -> list[Clip]:
    """Speak the requests into `folder` over `workers` processes; what can be spoken, in order of the requests.

    Raises TresseError, before anything is spoken, where a voice cannot speak a language that is asked of it.
    """
    requests = [(plain(text), language, speaker) for text, language, speaker in requests]
    asked = {(speaker.name, language): speaker for _, language, speaker in requests}
    for (_, language), speaker in asked.items():
        voices.synthesiser(speaker).check(language, speaker)
    prints: dict[str, str] = {}
    for _, _, speaker in requests:
        key = repr(speaker)
        if key not in prints:
            prints[key] = voices.synthesiser(speaker).fingerprint(speaker)
    shards = []
    for first in range(0, len(requests), SHARD):
        part = requests[first : first + SHARD]
        sources = [(text, language, prints[repr(speaker)]) for text, language, speaker in part]
        digest = hashlib.sha256(repr((sample_rate, sources)).encode()).hexdigest()[:12]
        shards.append((folder / f"{first // SHARD:05d}-{digest}.jsonl", part))
    missing = [shard for shard in shards if not shard[0].exists()]
    progress = Progress("speech", len(shards), start=len(shards) - len(missing), unit="shards")
    with worker_pool(workers) if workers > 1 and missing else nullcontext() as pool:
        speaking = (pool.map if pool else map)(speak_shard, missing, repeat(voices), repeat(sample_rate))
        for done, _ in enumerate(speaking, len(shards) - len(missing) + 1):
            progress.update(done)
    lines = [line for path, _ in shards for line in path.read_text(encoding="utf-8").splitlines()]
    with atomic_path(folder / "index.jsonl") as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return clips_of(lines)


def read_pool(folder: Path) -> list[Clip]:
    """The clips of a pool: of its index, or, while it is being made, of the shards that are there.

    Raises TresseError where there is no pool.
    """
    index = folder / "index.jsonl"
    paths = [index] if index.exists() else sorted(folder.glob("*-*.jsonl"))
    if not paths:
        raise TresseError(f"there is no speech in {folder}: make it with train.speech.pool.speak_pool")
    return clips_of([line for path in paths for line in path.read_text(encoding="utf-8").splitlines()])


def clips_of(lines: Sequence[str]) -> list[Clip]:
    """Rows of an index, without those that could not be spoken."""
    rows = [json.loads(line) for line in lines]
    return [Clip(**row) for row in rows if "error" not in row]


def speak_shard(shard: tuple[Path, Sequence[Request]], voices: Voices, sample_rate: int) -> None:
    """Speak a shard's requests, then write its FLAC and, last, its rows."""
    import soundfile

    path, requests = shard
    audio = path.with_suffix(".flac")
    rows: list[dict] = []
    waveforms, start = [np.zeros(0, np.float32)], 0
    for text, language, speaker in requests:
        try:
            spoken = render(text, language, speaker, voices, sample_rate)
        except Unspeakable as error:
            rows.append({"text": text, "language": language, "speaker": speaker.name, "error": str(error)})
            continue
        samples, times = len(spoken.waveform), None
        if spoken.phonemes is not None:
            read = phones if isinstance(speaker, EspeakSpeaker) else ipa_phones
            times = [
                (phone.name, round(phone.start, 4), round(phone.end, 4))
                for phone in read(spoken.phonemes, samples / sample_rate)
            ]
        clip = Clip(
            audio.name,
            start,
            samples,
            sample_rate,
            text,
            language,
            speaker.name,
            speaker.family,
            round(spoken.offset, 6),
            times,
        )
        rows.append(dataclasses.asdict(clip))
        waveforms.append(spoken.waveform)
        start += samples
    with atomic_path(audio) as temporary:
        soundfile.write(temporary, np.concatenate(waveforms), sample_rate, format="FLAC", subtype="PCM_16")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
