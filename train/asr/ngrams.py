"""N-grams estimated from text: modified Kneser-Ney, interpolated (Chen and Goodman 1998), small counts left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from slm.errors import TresseError
from slm.ngrams import BEGIN, END, MOST_WORDS, UNKNOWN, NGrams

NEVER = -99.0
"""log10 of a probability that is none."""


def estimate_ngrams(
    sentences: Iterable[Sequence[str]], words: Sequence[str], least: Sequence[int] = (1, 1, 2)
) -> NGrams:
    """N-grams of sentences, as many orders as `least` has entries: of each, how often an n-gram must occur to be kept.

    words: those that have a probability; all others are UNKNOWN. Raises TresseError where there are too many, or there is
    nothing to count.
    """
    if len(words) + 3 > MOST_WORDS:
        raise TresseError(f"{len(words)} words are too many for a recogniser: at most {MOST_WORDS - 3}")
    known = [UNKNOWN, BEGIN, END, *words]
    numbers = {word: number for number, word in enumerate(known)}
    orders = len(least)
    counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(orders)]
    for sentence in sentences:
        row = (1, *(numbers.get(word, 0) for word in sentence), 2)
        counts[-1].update(zip(*(row[start:] for start in range(orders)), strict=False))
        for order in range(1, orders):  # only beginnings of sentences have nothing before them
            counts[order - 1][row[:order]] += 1
    if not counts[-1]:
        raise TresseError("a recogniser learns its words from sentences: there are none")
    for order in range(orders - 1, 0, -1):  # how many different words an n-gram follows
        followed: Counter[tuple[int, ...]] = Counter(ngram[1:] for ngram in counts[order])
        beginnings = counts[order - 1]
        counts[order - 1] = followed
        if order > 1:
            followed.update({ngram: count for ngram, count in beginnings.items() if ngram[0] == 1})
    return _table(known, counts, least)


def _table(known: list[str], counts: list[Counter[tuple[int, ...]]], least: Sequence[int]) -> NGrams:
    """Probabilities of the n-grams that are kept, and the weight that each context leaves to the shorter one."""
    below: dict[tuple[int, ...], float] = {(): 1.0 / (len(known) - 1)}  # of all words but <s>
    tables: list[dict[tuple[int, ...], float]] = []
    left: list[dict[tuple[int, ...], float]] = []
    for order, counted in enumerate(counts, 1):
        discounts = _discounts(counted)
        totals: dict[tuple[int, ...], int] = defaultdict(int)
        taken: dict[tuple[int, ...], float] = defaultdict(float)
        kept: dict[tuple[int, ...], int] = {}
        before = tables[-1] if tables else None
        for ngram, count in counted.items():
            if order == 1 and ngram[0] == 1:
                continue
            context = ngram[:-1]
            totals[context] += count
            if count >= least[order - 1] and (before is None or (context in before and ngram[1:] in before)):
                kept[ngram] = count
                taken[context] += discounts[min(count, 3)]
            else:
                taken[context] += count
        spare = {context: taken[context] / total for context, total in totals.items()}
        table: dict[tuple[int, ...], float] = {}
        names = [(number,) for number in range(len(known)) if number != 1] if order == 1 else kept
        for ngram in names:
            context, count = ngram[:-1], kept.get(ngram, 0)
            own = (count - discounts[min(count, 3)]) / totals[context] if count else 0.0
            table[ngram] = own + spare.get(context, 0.0) * below[ngram[1:] if order > 1 else ()]
        if order == 1:
            table[(1,)] = 0.0
        tables.append(table)
        left.append(spare)
        below = table
    return _arrays(known, tables, left)


def _discounts(counted: Counter[tuple[int, ...]]) -> list[float]:
    """What counts of 0, 1, 2, and 3 or more give away."""
    seen = [0] + [sum(count == number for count in counted.values()) for number in (1, 2, 3, 4)]
    if not all(seen[1:]):
        return [0.0, 0.5, 0.5, 0.5]  # too few to estimate it
    share = seen[1] / (seen[1] + 2 * seen[2])
    estimated = (number - (number + 1) * share * seen[number + 1] / seen[number] for number in (1, 2, 3))
    return [0.0, *(max(0.1, discount) for discount in estimated)]  # few counts may ask for less than none


def _arrays(
    known: list[str], tables: list[dict[tuple[int, ...], float]], left: list[dict[tuple[int, ...], float]]
) -> NGrams:
    ids, probabilities, backoffs = [], [], []
    for order, table in enumerate(tables, 1):
        rows = sorted(table)
        ids.append(np.array(rows, np.int64).reshape(-1, order))
        values = np.array([table[row] for row in rows])
        probabilities.append(np.where(values > 0, np.log10(np.maximum(values, 1e-30)), NEVER).astype(np.float32))
        spare = left[order] if order < len(tables) else {}
        backoffs.append(np.log10([max(1e-9, spare.get(row, 1.0)) for row in rows]).astype(np.float32))
    return NGrams(known, ids, probabilities, backoffs)
