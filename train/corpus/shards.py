"""A shard of a corpus: rows of units in a Parquet file, with what it holds in its metadata. Written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slm.errors import TresseError
from slm.units import Units
from train.corpus.reader import Rejected
from train.corpus.work import Counts
from train.tools.checkpoints import atomic_path, write_json

METADATA = b"tresse"


@dataclass(frozen=True)
class Encoded:
    """A row to be written. units: by language, of each sentence; a language that is not there is written as no sentences."""

    id: str
    speaker: str
    kind: str
    units: dict[str, list[Units]]


def write_shard_file(path: Path, languages: list[str], rows: Iterable[Encoded | Rejected], distinct: int) -> Counts:
    """Write a shard; what was rejected is named in its metadata. distinct: sentences that were encoded for it."""
    columns: dict[str, list] = {"id": [], "speaker": [], "kind": []}
    for language in languages:
        columns |= {f"units_{language}": [], f"run_lengths_{language}": []}
    rejected = []
    seconds, sentences = 0.0, 0
    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(asdict(row))
            continue
        columns["id"].append(row.id)
        columns["speaker"].append(row.speaker)
        columns["kind"].append(row.kind)
        for language in languages:
            story = row.units.get(language, [])
            columns[f"units_{language}"].append([part.ids for part in story])
            columns[f"run_lengths_{language}"].append([part.run_lengths for part in story])
            seconds += sum(part.seconds for part in story)
            sentences += len(story)
    counts = Counts(len(columns["id"]), seconds, sentences, distinct)
    metadata = {"counts": asdict(counts), "rejected": rejected}
    if not counts.stories:
        write_json(empty(path), metadata)
        return counts
    numbers = pa.list_(pa.list_(pa.uint16()))
    schema = pa.schema(
        [(name, pa.string() if name in ("id", "speaker", "kind") else numbers) for name in columns],
        metadata={METADATA: json.dumps(metadata).encode()},
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
    return counts


def empty(path: Path) -> Path:
    """What is written in place of a shard without rows: `datasets` does not read an empty Parquet file."""
    return path.with_suffix(".empty.json")


def finished(path: Path) -> bool:
    """Whether a shard was written."""
    return path.exists() or empty(path).exists()


def shard_metadata(path: Path) -> dict:
    """counts, and the rows that could not be used. Raises TresseError where the shard is damaged."""
    try:
        if empty(path).exists():
            return json.loads(empty(path).read_text(encoding="utf-8"))
        return json.loads(pq.read_schema(path).metadata[METADATA])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise TresseError(f"{path} is damaged: delete it and run the preparation again") from error


def shard_counts(path: Path) -> Counts:
    """What a finished shard holds. Raises TresseError where it is damaged."""
    return Counts(**shard_metadata(path)["counts"])


def read_units(folders: Iterable[Path], languages: Iterable[str]) -> Iterator[np.ndarray]:
    """Every sentence's collapsed unit ids in some corpora, for training the vocabulary."""
    columns = [f"units_{language}" for language in languages]
    for path in (path for folder in folders for path in sorted(folder.glob("shard-*.parquet"))):
        table = pq.read_table(path, columns=columns)
        for name in table.column_names:
            for story in table[name].to_pylist():
                for sentence in story:
                    yield np.asarray(sentence, dtype=np.int64)
