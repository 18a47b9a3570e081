"""A unit corpus in memory, as flat tokens: read from its shards and tokenised once, by story, sentence and language.

A *document* is one story as the model sees it: `<bos>`, sentences, `<eos>`, and in a translated retelling the same once
more, so that the second telling can look back at the first. A row of pairs has every sentence twice in a row, so that both
of its languages can be told side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from slm.errors import TresseError
from slm.interleave import INTERLEAVED, MIXED, MONOLINGUAL, Mode
from slm.units.vocabulary import UnitVocabulary
from train.stories.grammar import PAIRS, STORY

SENTENCES_AT_ONCE = 50_000


@dataclass(frozen=True)
class TokenCorpus:
    """A unit corpus as flat tokens. Arrays by [story, sentence, language]; the length is 0 past a story's end, and where a
    story is not told in a language.

    tokens: int32 [total], each sentence with its tag in front, where there are tags. starts, lengths: where one lies in
    `tokens`. units: collapsed units of each sentence. index: the story's number in the corpus on disk (draws depend on it).
    paired: bool [stories], rows of pairs: sentences 2k and 2k + 1 are the same, to be told in two languages.
    """

    languages: tuple[str, ...]
    bos_id: int
    eos_id: int
    frame_rate: float
    ids: np.ndarray
    index: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    units: np.ndarray
    paired: np.ndarray
    left_out: int = 0
    """Stories with a sentence that has no units in a language they are told in: unusable, so not among the stories here."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sentences(self) -> np.ndarray:
        """Of each story, int64 [stories]."""
        return (self.units > 0).any(axis=2).sum(axis=1)

    @property
    def told(self) -> np.ndarray:
        """The languages that each story is told in, bool [stories, languages]."""
        return self.units[:, 0] > 0

    def served(self, mode: Mode, weights: Sequence[float] | None = None) -> TokenCorpus:
        """The stories that a mode tells. weights: how often it draws each language; equally often when None.

        `monolingual:LANG` tells stories that have that language and `mixed` all that have any it draws, but no pairs; the
        others tell stories that have all languages, and of these only `interleaved` tells pairs, where it draws them all.
        """
        drawn = np.ones(len(self.languages), bool) if weights is None else np.asarray(weights) > 0
        if mode.name == MONOLINGUAL:
            served = self.told[:, self.languages.index(str(mode.language))] & ~self.paired
        elif mode.name == MIXED:
            served = self.told[:, drawn].any(axis=1) & ~self.paired
        else:
            pairs = mode.name == INTERLEAVED and bool(drawn.all())
            served = self.told.all(axis=1) & (~self.paired | pairs)
        return self if served.all() else self.select(np.flatnonzero(served))

    @classmethod
    def load(
        cls,
        folder: Path,
        vocabulary: UnitVocabulary,
        *,
        progress: Callable[[str], None] | None = None,
    ) -> TokenCorpus:
        """Read corpus.json and all Parquet shards of a folder and tokenise every sentence once, behind the vocabulary's
        `head` of its language.

        Raises TresseError where the corpus cannot be used.
        """
        import pyarrow.parquet as parquet

        folder = Path(folder)
        try:
            info = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
            languages = tuple(info["languages"])
            shards = sorted(folder.glob("*.parquet"))
            if not shards:
                raise FileNotFoundError(folder)
        except (OSError, ValueError, KeyError) as error:
            raise TresseError(f"no unit corpus in {folder}: make one with `tresse prepare`") from error
        missing = [language for language in languages if language not in vocabulary.tag_ids]
        if missing:
            raise TresseError(f"the vocabulary has no tag for {missing[0]}: rebuild it with {', '.join(languages)}")
        if info.get("codebook_size", vocabulary.codebook_size) != vocabulary.codebook_size:
            raise TresseError(
                f"the corpus has {info['codebook_size']} units and the vocabulary {vocabulary.codebook_size}: "
                "rebuild the vocabulary from this corpus"
            )
        ids: list[str] = []
        kinds: list[str] = []
        tokens, sentences = [], [_Sentences() for _ in languages]
        total = 0
        for number, shard in enumerate(shards):
            try:
                known = ["kind"] if "kind" in parquet.read_schema(shard).names else []  # corpora of earlier versions
                table = parquet.read_table(shard, columns=["id", *known, *(f"units_{la}" for la in languages)])
            except Exception as error:  # pyarrow raises many kinds
                raise TresseError(f"cannot read {shard}: delete it and prepare the corpus again") from error
            for language, spoken in zip(languages, sentences, strict=True):
                column = table.column(f"units_{language}").combine_chunks()
                encoded = spoken.add(column, len(ids), vocabulary, language, total)
                tokens.append(encoded)
                total += len(encoded)
            ids += table.column("id").to_pylist()
            kinds += table.column("kind").to_pylist() if known else [STORY] * len(table)
            if progress is not None:
                progress(f"tokenised {len(ids):,} stories, {total:,} tokens ({number + 1}/{len(shards)} shards)")
        if len(ids) < info.get("stories", 0):
            raise TresseError(f"the corpus in {folder} is not finished: run its preparation again")
        paired = np.asarray([kind == PAIRS for kind in kinds], dtype=bool)
        return cls._assemble(languages, vocabulary, float(info["frame_rate"]), ids, paired, tokens, sentences)

    @classmethod
    def _assemble(
        cls,
        languages: tuple[str, ...],
        vocabulary: UnitVocabulary,
        frame_rate: float,
        ids: list[str],
        paired: np.ndarray,
        tokens: list[np.ndarray],
        sentences: list[_Sentences],
    ) -> TokenCorpus:
        counts = np.stack([spoken.counts(len(ids)) for spoken in sentences])  # [languages, stories]
        most = counts.max(axis=0, initial=0)
        odd = np.flatnonzero(((counts != most) & (counts > 0)).any(axis=0))
        if len(odd):
            each = ", ".join(f"{n} in {language}" for n, language in zip(counts[:, odd[0]], languages, strict=True))
            raise TresseError(f"story {ids[odd[0]]} has sentences that do not align ({each}): prepare the corpus again")
        copies = 1 + paired.astype(np.int64)
        shape = (len(ids), int((most * copies).max(initial=0)), len(languages))
        arrays = {name: np.zeros(shape, kind) for name, kind in (("start", np.int64), ("length", np.int32))}
        units = np.zeros(shape, np.int32)
        for k, spoken in enumerate(sentences):
            story, position = spoken.positions()
            for copy in (0, 1):
                rows = copies[story] > copy
                at = (story[rows], (position * copies[story] + copy)[rows], k)
                arrays["start"][at] = np.concatenate(spoken.starts)[rows]
                arrays["length"][at] = np.concatenate(spoken.lengths)[rows]
                units[at] = np.concatenate(spoken.units)[rows]
        real = np.arange(shape[1])[None, :, None] < (counts * copies).T[:, None, :]
        usable = np.flatnonzero(((units > 0) | ~real).all(axis=(1, 2)) & (most > 0))
        if not len(usable):
            raise TresseError("the unit corpus has no story whose sentences all have units: prepare it again")
        return cls(
            languages=languages,
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_id,
            frame_rate=frame_rate,
            ids=np.asarray(ids, dtype=object)[usable],
            index=usable,
            tokens=np.concatenate(tokens),
            starts=arrays["start"][usable],
            lengths=arrays["length"][usable],
            units=units[usable],
            paired=paired[usable],
            left_out=len(ids) - len(usable),
        )

    def select(self, stories: np.ndarray) -> TokenCorpus:
        """Only these stories (positions in this corpus), with the draws they have in the whole corpus."""
        names = ("ids", "index", "starts", "lengths", "units", "paired")
        return replace(self, **{name: getattr(self, name)[stories] for name in names}, left_out=0)

    def split(self, held_out: int, seed: int) -> tuple[TokenCorpus, TokenCorpus]:
        """(training, held out): `held_out` distinct story ids, in all their voices, are kept from training."""
        names = np.unique(self.ids.astype(str))
        if not 0 <= held_out < len(names):
            raise TresseError(f"cannot hold out {held_out} of {len(names)} stories: hold out fewer")
        drawn = np.random.default_rng([seed, 1]).permutation(names)[:held_out]
        chosen = np.isin(self.ids.astype(str), drawn)
        return self.select(np.flatnonzero(~chosen)), self.select(np.flatnonzero(chosen))

    def document(self, story: int, languages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [M], language of each token but the first int64 [M - 1]) of one story.

        languages: of each sentence, int64 [sentences], or [tellings, sentences].
        """
        tokens: list[np.ndarray | list[int]] = []
        spoken: list[np.ndarray] = []
        for telling in np.atleast_2d(languages):
            lengths = self.lengths[story, np.arange(len(telling)), telling]
            starts = self.starts[story, np.arange(len(telling)), telling]
            parts = [self.tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]
            tokens += [[self.bos_id], *parts, [self.eos_id]]
            spoken += [telling[:1], np.repeat(telling, lengths), telling[-1:]]
        return np.concatenate(tokens).astype(np.int32, copy=False), np.concatenate(spoken)[1:]


class _Sentences:
    """The sentences of one language while a corpus is read: parallel lists of arrays, one per shard."""

    def __init__(self) -> None:
        self.first_story: list[int] = []
        self.per_story: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.units: list[np.ndarray] = []

    def add(
        self, column: object, first_story: int, vocabulary: UnitVocabulary, language: str, total: int
    ) -> np.ndarray:
        """Tokenise a list<list<uint16>> column; returns its flat tokens, which will lie at `total`."""
        outer = column.offsets.to_numpy().astype(np.int64)  # type: ignore[attr-defined]
        inner = column.values  # type: ignore[attr-defined]
        bounds = inner.offsets.to_numpy().astype(np.int64)[outer[0] : outer[-1] + 1]
        values = inner.values.to_numpy()
        encoded: list[np.ndarray] = []
        for first in range(0, len(bounds) - 1, SENTENCES_AT_ONCE):
            part = bounds[first : first + SENTENCES_AT_ONCE + 1]
            encoded += vocabulary.encode_batch([values[a:b] for a, b in pairwise(part)])
        head = np.asarray(vocabulary.head(language), dtype=np.int32)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) + len(head)
        if len(head):
            encoded = [part for sentence in encoded for part in (head, sentence)]
        flat = np.concatenate([np.zeros(0, np.int32), *encoded])
        self.first_story.append(first_story)
        self.per_story.append(np.diff(outer))
        self.starts.append(total + np.cumsum(lengths) - lengths)
        self.lengths.append(lengths)
        self.units.append(np.diff(bounds))
        return flat

    def counts(self, stories: int) -> np.ndarray:
        counts = np.concatenate([np.zeros(0, np.int64), *self.per_story])
        if len(counts) != stories:
            raise ValueError(f"{len(counts)} stories instead of {stories}")
        return counts

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """(story, position in the story) of every sentence read."""
        counts = np.concatenate(self.per_story)
        story = np.repeat(np.arange(len(counts)), counts)
        return story, np.arange(len(story)) - np.repeat(np.cumsum(counts) - counts, counts)
