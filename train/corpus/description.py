"""corpus.json: what a corpus says of itself, and whether it may be read beside another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from train.tools.checkpoints import atomic_path

FILE = "corpus.json"


def encoder_files(folder: Path, described: Path) -> bytes:
    """Names and hashes of the weights of a unit encoder, those of a model beneath its folder too, and of the file that
    describes it."""
    parts = []
    for path in sorted([described, *folder.rglob("*.safetensors")]):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        with path.open("rb") as file:
            parts.append(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return b"".join(parts)


def encoder_fingerprint(folder: Path) -> str:
    """Of a unit encoder: corpora whose units mean the same have the same in their corpus.json."""
    return hashlib.sha256(encoder_files(folder, folder / "config.json")).hexdigest()[:16]


def describe_corpus(folder: Path) -> dict[str, Any]:
    """What a bundle says of a corpus that it was trained on: data (a fingerprint), rows, hours."""
    made = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return {"data": made["sources"], "rows": made["stories"], "hours": round(made.get("seconds", 0) / 3600, 2)}


def unit_shares(folder: Path, languages: Iterable[str], codebook_size: int) -> dict[str, list[float]]:
    """How often each unit occurs in a corpus, by language; one that does not occur counts as heard once."""
    import pyarrow.parquet as parquet

    counts = {language: np.ones(codebook_size) for language in languages}
    for path in sorted(folder.glob("shard-*.parquet")):
        file = parquet.ParquetFile(path)
        for language in counts.keys() & {name.removeprefix("units_") for name in file.schema_arrow.names}:
            for batch in file.iter_batches(columns=[f"units_{language}"]):
                units = batch.column(0).flatten().flatten().to_numpy(zero_copy_only=False)
                counts[language] += np.bincount(units, minlength=codebook_size)
    return {
        language: [max(1e-7, round(float(share), 7)) for share in some / some.sum()]
        for language, some in counts.items()
    }


def link_corpus(name: str, corpus: Path, units: Path, link: Path) -> None:
    """Have a corpus that was prepared before, `corpora.NAME` of a recipe, among those of a run.

    Raises TresseError where it is not there or not finished, or where its units are not those of the encoder in `units`.
    """
    try:
        made = json.loads((corpus / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TresseError(f"corpora.{name}: there is no corpus in {corpus}: make one with tresse prepare") from error
    if "seconds" not in made:
        raise TresseError(f"corpora.{name}: the corpus in {corpus} is not finished: run its preparation again")
    if made.get("encoder", encoder_fingerprint(units)) != encoder_fingerprint(units):
        raise TresseError(f"corpora.{name}: {corpus} has units of another encoder: prepare it with --units {units}")
    if not (link.exists() and link.samefile(corpus)):
        with atomic_path(link) as temporary:
            temporary.symlink_to(corpus.resolve())
