"""What the tests of this room share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slm.model import ModelConfig
from slm.units import UnitVocabulary
from train.lm.schedule import SLMTraining, Stage

UNITS = 40
SMALL = ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=48, key_value_heads=2)
TRAINING = SLMTraining(
    stages=(Stage("monolingual:en", share=0.4), Stage("interleaved", share=0.6)),
    steps=12,
    batch_rows=4,
    row_length=96,
    micro_rows=2,
    warmup=3,
    held_out=6,
    log_every=3,
    validate_every=6,
    checkpoint_every=5,
)


def vocabulary(languages: tuple[str, ...] = ("en", "fr")) -> UnitVocabulary:
    return UnitVocabulary.train([], codebook_size=UNITS, languages=languages, vocab_size=None)


def write_corpus(
    folder: Path, stories: int = 40, languages: tuple[str, ...] = ("en", "fr"), shards: int = 2, longest: int = 6
) -> dict[str, dict[str, list[list[int]]]]:
    """A corpus of 1 to 4 sentences a story; every sentence is told by its own units. Returns them by story."""
    rng = np.random.default_rng(7)
    held: dict[str, dict[str, list[list[int]]]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        rows: dict[str, list[Any]] = {"id": [f"story-{n}" for n in range(shard, stories, shards)]}
        counts = rng.integers(1, 5, len(rows["id"]))
        for language in languages:
            spoken = [[rng.integers(0, UNITS, rng.integers(1, longest)).tolist() for _ in range(n)] for n in counts]
            rows[f"units_{language}"] = spoken
            rows[f"run_lengths_{language}"] = [[[1] * len(sentence) for sentence in story] for story in spoken]
        for place, name in enumerate(rows["id"]):
            held[name] = {language: rows[f"units_{language}"][place] for language in languages}
        numbers = pa.list_(pa.list_(pa.uint16()))
        table = pa.table({name: pa.array(v, pa.string() if name == "id" else numbers) for name, v in rows.items()})
        pq.write_table(table, folder / f"shard-{shard:05d}.parquet")
    info = {"languages": list(languages), "frame_rate": 50.0, "codebook_size": UNITS, "stories": stories}
    (folder / "corpus.json").write_text(json.dumps(info))
    return held
