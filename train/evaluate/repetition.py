"""How much a text repeats itself, and how alike several texts are: auto-BLEU and self-BLEU over words.

auto-BLEU-2 is the share of a text's bigrams that occur elsewhere in it (Lakhotia et al., "On Generative Spoken Language
Modeling from Raw Audio", TACL 2021); self-BLEU-2 is the mean BLEU-2 of each text against all others (Zhu et al., "Texygen",
SIGIR 2018). High auto-BLEU: it stutters; high self-BLEU: it always says the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, log


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """n-grams with their counts."""
    return Counter(tuple(words[place : place + n]) for place in range(len(words) - n + 1))


def auto_bleu(words: Sequence[str], n: int = 2) -> float | None:
    """Share of n-grams that occur more than once; None where there is none."""
    found = ngrams(words, n)
    total = sum(found.values())
    return sum(count for count in found.values() if count > 1) / total if total else None


def bleu(words: Sequence[str], references: Sequence[Sequence[str]], n: int = 2) -> float:
    """BLEU of 1- to n-grams against several references, unsmoothed, with the brevity penalty."""
    if not words or not references:
        return 0.0
    total = 0.0
    for order in range(1, n + 1):
        found = ngrams(words, order)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, order)
        matched = sum(min(count, most[gram]) for gram, count in found.items())
        if not matched:
            return 0.0
        total += log(matched / sum(found.values()))
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return exp(total / n) * min(1.0, exp(1 - closest / len(words)))


def self_bleu(texts: Sequence[Sequence[str]], n: int = 2) -> float | None:
    """Mean BLEU of each text against all others; None for fewer than two texts."""
    held = [text for text in texts if text]
    if len(held) < 2:
        return None
    return sum(bleu(text, [*held[:place], *held[place + 1 :]], n) for place, text in enumerate(held)) / len(held)
