"""Stories -> speech -> units -> Parquet shards: the corpus that the language model trains on.

A row is a story in one voice: per language a list of sentences, each a list of collapsed units and of run lengths.
A shard is a run of stories in one voice, so that a sentence that several of them share is spoken and encoded once. Shards
are written atomically and are a pure function of (stories, voices, encoder, seed): a shard that exists is finished, and a
preparation that was killed goes on with the first missing one and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slm.errors import TresseError
from slm.units.conv import ConvUnitEncoder
from slm.units.sequence import UnitEncoder, Units
from train.checkpoint import atomic_path, write_json
from train.progress import Progress
from train.speech import Voices, speak
from train.stories.grammar import Story
from train.workers import worker_pool


@dataclass(frozen=True)
class CorpusPreparation:
    """Stories a shard, the voices that speak them (names; all training voices when empty), and the seed."""

    stories_per_shard: int = 125
    speakers: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class _Shard:
    path: Path
    speaker: str
    stories: list[Story]


def prepare_corpus(
    stories: list[Story],
    languages: list[str],
    encoder_folder: Path,
    folder: Path,
    preparation: CorpusPreparation,
    voices: Voices,
    workers: int = 2,
) -> Path:
    """Write the corpus of `stories` to `folder` (shards and corpus.json) over `workers` processes; resumes."""
    encoder = ConvUnitEncoder.load(encoder_folder)
    identity = {
        "languages": languages,
        "frame_rate": encoder.frame_rate,
        "codebook_size": encoder.codebook_size,
        "stories": len(stories),
        "sources": _fingerprint(stories, encoder_folder, preparation, voices),
    }
    description = folder / "corpus.json"
    if description.exists() and json.loads(description.read_text(encoding="utf-8")) != identity:
        raise TresseError(
            f"{folder} holds a corpus of other stories, voices or units: delete it or choose another folder"
        )
    write_json(description, identity)
    speakers = list(preparation.speakers or voices.training)
    size = preparation.stories_per_shard
    shards = [
        _Shard(folder / f"shard-{index:05d}.parquet", speakers[index % len(speakers)], stories[first : first + size])
        for index, first in enumerate(range(0, len(stories), size))
    ]
    missing = [shard for shard in shards if not shard.path.exists()]
    progress = Progress("corpus", len(shards), start=len(shards) - len(missing), unit="shards")
    done = len(shards) - len(missing)
    if not missing:
        return folder
    arguments = ([languages] * len(missing), [encoder_folder] * len(missing), [voices] * len(missing))
    if workers <= 1:
        results: Iterable[float] = map(write_shard, missing, *arguments)
        for seconds in results:
            done += 1
            progress.update(done, hours=seconds / 3600)
        return folder
    with worker_pool(workers) as pool:
        for seconds in pool.map(write_shard, missing, *arguments):
            done += 1
            progress.update(done, hours=seconds / 3600)
    return folder


_ENCODERS: dict[Path, ConvUnitEncoder] = {}


def write_shard(shard: _Shard, languages: list[str], encoder_folder: Path, voices: Voices) -> float:
    """Speak, encode and write one shard; returns the s of speech it stands for."""
    if encoder_folder not in _ENCODERS:
        _ENCODERS[encoder_folder] = ConvUnitEncoder.load(encoder_folder)
    sentences = [
        (language, text) for story in shard.stories for language in languages for text in story.sentences[language]
    ]
    units = encode_sentences(sentences, shard.speaker, _ENCODERS[encoder_folder], voices)
    columns: dict[str, list] = {"id": [story.id for story in shard.stories]}
    columns["speaker"] = [shard.speaker] * len(shard.stories)
    for language in languages:
        spoken = [[units[language, text] for text in story.sentences[language]] for story in shard.stories]
        columns[f"units_{language}"] = [[sentence.ids for sentence in story] for story in spoken]
        columns[f"run_lengths_{language}"] = [[sentence.run_lengths for sentence in story] for story in spoken]
    numbers = pa.list_(pa.list_(pa.uint16()))
    schema = pa.schema([(name, pa.string() if name in ("id", "speaker") else numbers) for name in columns])
    with atomic_path(shard.path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
    return sum(units[key].seconds for key in sentences)


def encode_sentences(
    sentences: Iterable[tuple[str, str]], speaker: str, encoder: UnitEncoder, voices: Voices
) -> dict[tuple[str, str], Units]:
    """Units of every distinct (language, text), spoken by one speaker; encoded in batches of similar length."""
    from slm.audio import resample
    from train.speech import SAMPLE_RATE

    distinct = list(dict.fromkeys(sentences))
    spoken = [
        resample(speak(text, language, voices.speaker(speaker), voices), SAMPLE_RATE, encoder.sample_rate)
        for language, text in distinct
    ]
    order = np.argsort([len(waveform) for waveform in spoken], kind="stable")
    units: dict[tuple[str, str], Units] = {}
    for first in range(0, len(order), 8):
        block = order[first : first + 8]
        for index, encoded in zip(block, encoder.encode_batch([spoken[i] for i in block]), strict=True):
            units[distinct[index]] = encoded
    return units


def read_units(folder: Path, languages: list[str]) -> Iterable[np.ndarray]:
    """Every sentence's collapsed unit ids in the corpus, for training the vocabulary."""
    for path in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(path, columns=[f"units_{language}" for language in languages])
        for name in table.column_names:
            for story in table[name].to_pylist():
                for sentence in story:
                    yield np.asarray(sentence, dtype=np.int64)


def _fingerprint(stories: list[Story], encoder_folder: Path, preparation: CorpusPreparation, voices: Voices) -> str:
    digest = hashlib.sha256()
    for story in stories:
        digest.update(json.dumps([story.id, story.sentences], ensure_ascii=False).encode())
    digest.update(repr((preparation, voices)).encode())
    for name in ("config.json", "model.safetensors"):
        digest.update((encoder_folder / name).read_bytes())
    return digest.hexdigest()[:16]
