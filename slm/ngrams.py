"""Word n-grams with back-off: what a recogniser knows of its language (Katz 1987; the ARPA format of the HTK Book, ch. 16).

words.json           the words, the commonest spelling of each; the first three are <unk>, <s> and </s>
ngrams.safetensors   for each order n: ids uint16 [count, n], log10 of the probability and of the back-off, float16
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import StrictStr
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slm.errors import TresseError
from slm.schema import parse, read_json

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
WORDS, TABLES = "words.json", "ngrams.safetensors"
MOST_WORDS = 2**16


@dataclass(frozen=True)
class NGrams:
    """words: the first three are UNKNOWN, BEGIN and END. For each order n: ids int64 [count, n] in words, log10
    probabilities float32 [count], log10 back-off weights float32 [count] (0 in the last order)."""

    words: Sequence[str]
    ids: Sequence[np.ndarray]
    probabilities: Sequence[np.ndarray]
    backoffs: Sequence[np.ndarray]

    def write_arpa(self, path: Path) -> None:
        """An ARPA file, as KenLM and others read it."""
        orders = len(self.ids)
        with path.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(ids)}\n" for n, ids in enumerate(self.ids, 1))
            for n, (ids, probabilities, backoffs) in enumerate(
                zip(self.ids, self.probabilities, self.backoffs, strict=True), 1
            ):
                file.write(f"\n\\{n}-grams:\n")
                ends = [""] * len(ids) if n == orders else [f"\t{weight:.4f}" for weight in backoffs.tolist()]
                for row, value, end in zip(ids.tolist(), probabilities.tolist(), ends, strict=True):
                    file.write(f"{value:.4f}\t{' '.join(self.words[number] for number in row)}{end}\n")
            file.write("\n\\end\\\n")

    def save(self, folder: Path) -> None:
        """Write words.json and ngrams.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tables: dict[str, np.ndarray] = {}
        for n, (ids, probabilities, backoffs) in enumerate(
            zip(self.ids, self.probabilities, self.backoffs, strict=True), 1
        ):
            tables |= {f"ids.{n}": np.ascontiguousarray(ids, np.uint16)}
            tables |= {
                f"probabilities.{n}": probabilities.astype(np.float16),
                f"backoffs.{n}": backoffs.astype(np.float16),
            }
        save_file(tables, str(folder / TABLES))
        (folder / WORDS).write_text(json.dumps(list(self.words), ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> NGrams:
        """Read what `save` wrote. Raises TresseError where it is missing or damaged."""
        words = parse(list[StrictStr], read_json(folder / WORDS), folder / WORDS)
        try:
            tables = load_file(str(folder / TABLES))
            orders = range(1, 1 + len(tables) // 3)
            ids, probabilities, backoffs = (
                [tables[f"{name}.{n}"] for n in orders] for name in ("ids", "probabilities", "backoffs")
            )
            _check(words, ids, probabilities, backoffs)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise TresseError(f"cannot read the n-grams in {folder}: restore the recogniser's files") from error
        return cls(
            words,
            [table.astype(np.int64) for table in ids],
            [table.astype(np.float32) for table in probabilities],
            [table.astype(np.float32) for table in backoffs],
        )


def _check(
    words: Sequence[str], ids: list[np.ndarray], probabilities: list[np.ndarray], backoffs: list[np.ndarray]
) -> None:
    """Raises ValueError where tables of a file cannot be true."""
    spelt = all(word and not any(sign.isspace() or not sign.isprintable() for sign in word) for word in words)
    if not spelt or len(set(words)) != len(words) or tuple(words[:3]) != (UNKNOWN, BEGIN, END):
        raise ValueError("words that cannot be")
    if not ids or len(ids[0]) != len(words) or len(words) > MOST_WORDS:
        raise ValueError("not every word has a probability")
    for n, (rows, values, weights) in enumerate(zip(ids, probabilities, backoffs, strict=True), 1):
        if rows.dtype != np.uint16 or rows.shape != (len(values), n) or weights.shape != values.shape:
            raise ValueError("sizes that do not fit")
        if rows.size and int(rows.max()) >= len(words):
            raise ValueError("a word that is not there")
        if not (np.isfinite(values).all() and np.isfinite(weights).all()):
            raise ValueError("numbers that are none")
        if n > 1 and not _contained(rows[:, :-1], ids[n - 2], len(words)):
            raise ValueError("an n-gram whose beginning is not there")


def _contained(rows: np.ndarray, among: np.ndarray, base: int) -> bool:
    """Whether all rows are rows of `among`; both int [*, n]."""
    powers = np.array([base**power for power in range(rows.shape[1])], np.int64)
    return bool(np.isin(rows.astype(np.int64) @ powers, among.astype(np.int64) @ powers).all())
