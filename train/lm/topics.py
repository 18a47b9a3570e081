"""Learns what tokens are about (`slm.topics`) from a corpus: a story, in all its languages, is a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from slm.errors import TresseError
from slm.topics import Topics
from slm.units import UnitVocabulary


def corpus_documents(folder: Path, languages: Sequence[str], vocabulary: UnitVocabulary) -> Iterator[np.ndarray]:
    """The tokens of each story of a corpus, those of all languages together: int64 [N]."""
    import pyarrow.parquet as parquet

    for path in sorted(folder.glob("shard-*.parquet")):
        file = parquet.ParquetFile(path)
        columns = [f"units_{language}" for language in languages if f"units_{language}" in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                sentences = [np.asarray(units) for name in columns for units in row[name] or []]
                if sentences:
                    yield np.concatenate(vocabulary.encode_batch(sentences))


def learn_topics(documents: Iterable[np.ndarray], tokens: int, dimensions: int) -> Topics:
    """Latent semantic analysis. documents: tokens int64 [N] each, below `tokens`; dimensions: of the vectors, at most one
    less than there are documents or tokens.

    Counts weigh log(1 + count) and by the rarity of their tokens, log((1 + documents) / (1 + those with the token)), a
    document is brought to length 1, and all dimensions count alike. Raises TresseError for fewer than three documents.
    """
    import scipy.sparse as sparse
    from scipy.sparse.linalg import svds

    kinds = [np.unique(document, return_counts=True) for document in documents]
    dimensions = min(dimensions, len(kinds) - 1, tokens - 1)
    if dimensions < 2:
        raise TresseError("what tokens are about is learnt from three stories or more: give the corpus more")
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in kinds])])
    weights = np.concatenate([np.log1p(counts) for _, counts in kinds])
    table = sparse.csr_matrix((weights, np.concatenate([ids for ids, _ in kinds]), starts), (len(kinds), tokens))
    spread = np.diff(table.tocsc().indptr)
    rarity = np.where(spread > 0, np.log((len(kinds) + 1) / (spread + 1)), 0.0)
    table = table @ sparse.diags(rarity)
    lengths = np.sqrt(np.asarray(table.multiply(table).sum(1)).ravel())
    table = sparse.diags(1.0 / np.maximum(lengths, 1e-9)) @ table
    _, _, vectors = svds(table, k=dimensions, random_state=np.random.default_rng(0))
    return Topics(np.ascontiguousarray(vectors.T, np.float32), rarity.astype(np.float32))
