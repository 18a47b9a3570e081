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
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def auto_bleu(words: Sequence[str], n: int = 2) -> float | None:
    """Share of n-grams that occur more than once; None where there is none."""
    counts = ngrams(words, n)
    total = sum(counts.values())
    return sum(count for count in counts.values() if count > 1) / total if total else None


def bleu(words: Sequence[str], references: Sequence[Sequence[str]], n: int = 2) -> float:
    """BLEU of 1- to n-grams against several references, unsmoothed, with the brevity penalty."""
    if not words or not references:
        return 0.0
    total = 0.0
    for order in range(1, n + 1):
        counts = ngrams(words, order)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, order)
        matched = sum(min(count, most[gram]) for gram, count in counts.items())
        if not matched:
            return 0.0
        total += log(matched / sum(counts.values()))
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return exp(total / n) * min(1.0, exp(1 - closest / len(words)))


def self_bleu(texts: Sequence[Sequence[str]], n: int = 2) -> float | None:
    """Mean BLEU of each text against all others; None for fewer than two texts."""
    spoken = [text for text in texts if text]
    if len(spoken) < 2:
        return None
    return sum(bleu(text, [*spoken[:index], *spoken[index + 1 :]], n) for index, text in enumerate(spoken)) / len(
        spoken
    )
