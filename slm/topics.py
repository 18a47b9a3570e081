"""What a story is about: latent semantic analysis of unit tokens (Deerwester et al. 1990, "Indexing by Latent Semantic
Analysis"; with language models: Bellegarda 2000, "Exploiting Latent Semantic Information in Statistical Language Modeling").

Each token has a vector, learnt from stories that were told in all languages side by side (`train.lm.topics`), so that a
sentence in one language is near a story in another. A stretch of tokens is the sum of its tokens' vectors, rarer ones
weighing more. No order, no grammar: what a small language model forgets after a sentence, and what survives a prompt that is
heard with errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slm.errors import TresseError

FILE = "topics.safetensors"
STEPS = 127
"""Values of a vector are kept as whole numbers between minus and plus this."""


@dataclass(frozen=True)
class Topics:
    """vectors: of each token, float32 [V, D]; rarity: weight of each token, float32 [V], 0 for one that tells nothing."""

    vectors: np.ndarray
    rarity: np.ndarray

    def of(self, tokens: Sequence[int]) -> np.ndarray:
        """What tokens are about: a vector of length 1, float32 [D]; zeros where they tell nothing."""
        ids, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
        total = (np.log1p(counts) * self.rarity[ids]) @ self.vectors[ids]
        length = float(np.linalg.norm(total))
        return (total / length if length > 0 else np.zeros(self.vectors.shape[1])).astype(np.float32)

    def likeness(self, tokens: Sequence[int], others: Sequence[int]) -> float:
        """Cosine of what two stretches of tokens are about, -1 .. 1; 0 where one of them tells nothing."""
        return float(self.of(tokens) @ self.of(others))

    def save(self, folder: Path) -> None:
        """Write topics.safetensors: a byte a value."""
        folder.mkdir(parents=True, exist_ok=True)
        most = np.maximum(np.abs(self.vectors).max(1), 1e-12)
        rounded = np.round(self.vectors / most[:, None] * STEPS).astype(np.int8)
        parts = {"vectors": rounded, "scales": (most / STEPS).astype(np.float32), "rarity": self.rarity}
        save_file({name: np.ascontiguousarray(part) for name, part in parts.items()}, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path, tokens: int) -> Topics | None:
        """Read what `save` wrote; None where there is none. tokens: of the vocabulary. Raises TresseError where it is
        damaged or of another vocabulary."""
        if not (folder / FILE).exists():
            return None
        try:
            parts = load_file(str(folder / FILE))
            vectors = parts["vectors"].astype(np.float32) * parts["scales"][:, None]
            rarity = parts["rarity"].astype(np.float32)
            if (
                not len(vectors) == len(rarity) == tokens
                or not np.isfinite(vectors).all()
                or not np.isfinite(rarity).all()
            ):
                raise ValueError("another vocabulary")
        except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
            raise TresseError(f"cannot read {folder / FILE}: restore the bundle's files") from error
        return cls(vectors, rarity)
