"""The table of metrics: each one's name, unit, direction, where it is in the results, and how it is printed.

Reports, the figures in a bundle's bundle.json, its model card, the pages of `measured/` and the demo's results all read it.
It imports nothing heavy: the demo reads it without the extra `train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    field: its key in bundle.json. title: what it is called in tables. unit: "%" for a share 0 .. 1, which is printed in per
    cent; "" where it has none. better: which way is better. digits: decimals printed. at: path to it in a row of its part's
    results, the field itself where empty. former: its keys in older files. interval: printed with its 95 % interval
    where it has one. published: whether bundles carry it.
    """

    field: str
    title: str
    unit: str = "%"
    better: Literal["higher", "lower", ""] = "higher"
    digits: int = 1
    at: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    interval: bool = False
    published: bool = True

    def entry(self, row: Row | None) -> Any:
        """What a row of results, or of published figures, has for it: a number, a mapping with "mean", or None where it was
        not measured."""
        for path in filter(None, (self.at, (self.field,), *((name,) for name in self.former))):
            entry: Any = row
            for key in path:
                entry = entry.get(key) if isinstance(entry, Mapping) else None
            if entry is not None:
                return entry
        return None

    def value(self, row: Row | None) -> float | None:
        """The number in a row of results or of published figures; None where it was not measured."""
        entry = self.entry(row)
        return entry["mean"] if isinstance(entry, Mapping) else entry

    def number(self, value: float | None) -> str:
        """A value as tables print it, without its unit; a dash for None."""
        return "-" if value is None else f"{self._scale * value:.{self.digits}f}"

    def text(self, value: float) -> str:
        """A value as sentences print it, with its unit."""
        return self.number(value) + (self.unit if self.unit in ("", "%") else f" {self.unit}")

    def cell(self, row: Row | None) -> str:
        """A table's cell for a row of results: the number, and its interval where it is printed with one."""
        entry = self.entry(row)
        text = self.number(self.value(row))
        around = entry if isinstance(entry, Mapping) else row
        if text == "-" or not self.interval or around is None:
            return text
        low, high = (self.number(bound) for bound in around["ci95"])
        return f"{text} [{low}, {high}]"

    @property
    def _scale(self) -> int:
        return 100 if self.unit == "%" else 1


CONTINUATION = (
    Metric("in_domain", "prompts in domain", digits=0, former=("familiar",)),
    Metric("language", "in the language asked for", digits=0, interval=True),
    Metric("lexicon", "words of the lexicon", digits=0, interval=True),
    Metric("confidence", "recogniser's confidence", digits=0),
    Metric("coherence", "facts that agree with the prompt", digits=0, interval=True),
    Metric("coherence_control", "with another prompt (control)", better="", digits=0),
    Metric("ceiling", "of the story itself (upper bound)", better="", digits=0),
    Metric("facts", "facts named", "", "", published=False),
    Metric("auto_bleu_2", "auto-BLEU-2", "", "lower", 2, published=False),
    Metric("self_bleu_2", "self-BLEU-2", "", "lower", 2, published=False),
    Metric("seconds", "length, s", "s", "", published=False),
    Metric("silent", "silent", "", "lower", 0, published=False),
)
"""A row: one language pair at one temperature. `coherence_control` is the control, `ceiling` the upper bound."""

RESYNTHESIS = (
    Metric("f0_correlation", "f0 correlation", "", digits=2),
    Metric("level_spread", "level spread", "dB", "lower"),
    Metric("mel_distance", "mel distance", "nats", "lower", 2),
    Metric("original_word_error", "word error", better="lower", at=("word_error", "original")),
    Metric("word_error", "word error, resynthesised", better="lower", at=("word_error", "resynthesis")),
    Metric("rise", "rise", better="lower", interval=True, published=False),
    Metric("goal", "goal", better="", digits=0, published=False),
    Metric("character_error", "character error", better="lower", at=("character_error", "original"), published=False),
    Metric(
        "resynthesised_character_error", "character error, resynthesised", better="lower",
        at=("character_error", "resynthesis"), published=False,
    ),
    Metric("judged_original", "judge's word error", better="lower", at=("judge", "word_error", "original")),
    Metric("judged", "judge's word error, resynthesised", better="lower", at=("judge", "word_error", "resynthesis")),
    Metric("judged_rise", "judge's rise", better="lower", at=("judge", "rise"), interval=True, published=False),
    Metric("natural_original", "DNSMOS", "", digits=2, at=("naturalness", "original")),
    Metric("natural", "DNSMOS, resynthesised", "", digits=2, at=("naturalness", "resynthesis")),
    Metric("f0_error", "f0 error", "semitones", "lower", 2, published=False),
    Metric("voicing_error", "voicing error", better="lower", published=False),
    Metric("level", "level", "dB", "", published=False),
    Metric("peak", "peak", "", "lower", 2, published=False),
)  # fmt: skip
"""A row: one language in one group of voices."""

ALIGNMENT = (
    Metric("retrieval", "retrieval@1", interval=True),
    Metric("retrieval_back", "back", interval=True),
    Metric("cosine", "cosine", "", digits=3, interval=True),
    Metric("cosine_mismatched", "mismatched", "", "", 3),
    Metric("centred_cosine", "centred", "", digits=3, published=False),
    Metric("centred_cosine_mismatched", "mismatched", "", "", 3, published=False),
    Metric("cka", "CKA", "", digits=3, published=False),
    Metric("cka_mismatched", "shifted", "", "", 3, published=False),
)
"""A row: a layer; the one that retrieves best is published. `mismatched` and `shifted` are the controls."""

RECOGNISER = (
    Metric("word_error", "word error", better="lower"),
    Metric("language", "language recognised"),
    Metric("confidence", "confidence"),
    Metric("real_time_factor", "real-time factor", "", "lower", 3),
)

ACCURACY = Metric("accuracy", "accuracy", interval=True)
"""Of cloze items and pairs."""
UNIT_EDIT_RATE = Metric("unit_edit_rate", "unit edit rate", better="lower")

COUNTS = tuple(
    Metric(field, field, unit="", better="", digits=0) for field in ("layer", "sentences", "utterances", "n", "groups")
)
"""What published figures were measured on."""

PARTS: Mapping[str, tuple[Metric, ...]] = {
    "unit_edit_rate": (UNIT_EDIT_RATE,),
    "cloze": (ACCURACY,),
    "pairs": (ACCURACY,),
    "grammar": (ACCURACY,),
    "alignment": ALIGNMENT,
    "resynthesis": RESYNTHESIS,
    "recogniser": RECOGNISER,
    "continuation": CONTINUATION,
}
"""The metrics of each part of a bundle's published figures."""


def named(metrics: Iterable[Metric], field: str) -> Metric:
    """The metric of a field. Raises KeyError where there is none."""
    return {metric.field: metric for metric in metrics}[field]


def published(metrics: Iterable[Metric], row: Row) -> dict[str, Any]:
    """A row of results -> the figures that a bundle carries: those that were measured, by field."""
    return {metric.field: metric.value(row) for metric in metrics if metric.published and metric.entry(row) is not None}


def plain_digits() -> dict[str, int]:
    """By field, the decimals of figures that are no shares; every other figure is printed in per cent."""
    return {
        metric.field: metric.digits
        for metrics in (*PARTS.values(), COUNTS)
        for metric in metrics
        if metric.published and metric.unit != "%"
    }
