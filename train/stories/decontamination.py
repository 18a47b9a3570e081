"""What training rows share with the benchmarks: runs of eight words, in any language.

A row that has eight words in a row of a benchmark's text is not trained on. Items shorter than that count whole, from five
words on. The generated items are the exception: the grammar's training stories tell the same facts in other combinations
(`train.stories.grammar`), in sentences that they share by design, so stories of the grammar are compared with every
benchmark but their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from train.stories.cloze_items import BENCHMARK_ITEMS, ClozeItem, make_items, read_handwritten
from train.stories.data import UNSEEN
from train.stories.grammar import read_lines
from train.stories.written_cloze import splits, story_item

GRAM = 8
"""Words in a row that are an overlap."""
SHORTEST = 5
"""Words of the shortest text that counts whole."""
EVALUATE = Path(__file__).parents[1] / "evaluate"
GENERATED = "generated items"
"""The benchmark that the grammar's training stories share sentences with."""


def spoken_words(text: str) -> list[str]:
    """Lower-case words without marks."""
    return re.findall(r"[^\W_]+", text.lower())


def grams(words: Sequence[str], size: int = GRAM) -> Iterator[str]:
    """Every run of `size` words; where there are fewer, but five at least, all of them."""
    if SHORTEST <= len(words) < size:
        yield " ".join(words)
    for start in range(len(words) - size + 1):
        yield " ".join(words[start : start + size])


class Overlap:
    """The runs of words of benchmarks, by name and language, and which of them a row has.

    texts: by name of the benchmark, (language, text) of all that its items say.
    """

    def __init__(self, texts: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        self._grams: dict[tuple[str, str], set[str]] = {}
        for name, spoken in texts.items():
            for language, text in spoken:
                self._grams.setdefault((name, language), set()).update(grams(spoken_words(text)))
        self.sizes = sorted({gram.count(" ") + 1 for known in self._grams.values() for gram in known})

    @property
    def names(self) -> list[str]:
        """Of the benchmarks."""
        return list(dict.fromkeys(name for name, _ in self._grams))

    def of(self, sentences: Mapping[str, Sequence[str]], exempt: str | None = None) -> Counter[str]:
        """Distinct runs that a row shares with each benchmark, but `exempt`. sentences: of the row, by language."""
        shared: Counter[str] = Counter()
        for language, texts in sentences.items():
            words = spoken_words(" ".join(texts))
            said = {
                " ".join(words[start : start + size]) for size in self.sizes for start in range(len(words) - size + 1)
            }
            for (name, spoken), known in self._grams.items():
                if spoken == language and name != exempt and (common := len(known & said)):
                    shared[name] += common
        return shared


def _item_texts(items: Iterable[ClozeItem]) -> Iterator[tuple[str, str]]:
    """The story with its right ending, and its last sentence with the wrong one."""
    for item in items:
        for language, context in item.context.items():
            yield language, " ".join([*context, item.right[language]])
            yield language, " ".join([*context[-1:], item.wrong[language]])


def _pair_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Minimal pairs of sentences; those of words in phonemes have no text."""
    for path in sorted(folder.glob("*.jsonl")):
        for _, row in read_lines(path):
            for text in (row.get("right"), row.get("wrong")):
                if isinstance(text, str):
                    yield row["language"], text


@cache
def benchmarks() -> Overlap:
    """All benchmarks of the project. Takes about 5 s and 200 MB, once a process."""
    return Overlap(
        {
            "written stories": _item_texts(story_item(story, story.sentences) for story in splits()["test"]),
            "hand-written items": _item_texts(read_handwritten()),
            GENERATED: _item_texts(make_items(1, BENCHMARK_ITEMS, "test")),
            "unseen situations": _item_texts(make_items(1, BENCHMARK_ITEMS, UNSEEN)),
            "minimal pairs": _pair_texts(EVALUATE),
        }
    )
