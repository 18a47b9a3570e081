"""A unit corpus as its stories' tokens: mapped from disk (train.lm.token_files), by story, sentence and language.

A *document* is one story as the model sees it: `<bos>`, sentences, `<eos>`, and in a translated retelling the same once
more, so that the second telling can look back at the first. A row of pairs has every sentence twice in a row, so that both
of its languages can be told side by side. In memory are 4 bytes a story, where some stories of the corpus are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from slm.errors import TresseError
from slm.interleave import INTERLEAVED, MIXED, MONOLINGUAL, Mode
from slm.units.vocabulary import UnitVocabulary
from train.lm.token_files import Part, TokenFiles, token_files
from train.lm.tokenise import PAIRED, UNUSABLE

AT_ONCE = 1 << 20
"""Stories counted at once."""


@dataclass(frozen=True)
class TokenCorpus:
    """Stories of a unit corpus.

    tags: whether a tag stands before each sentence. numbers: uint32 [stories], the numbers that the stories have in the
    corpus on disk (draws depend on them), in order; None: all that there are.
    """

    languages: tuple[str, ...]
    bos_id: int
    eos_id: int
    frame_rate: float
    tags: bool
    files: TokenFiles
    numbers: np.ndarray | None = None
    _served: dict[bytes, TokenCorpus] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.files) if self.numbers is None else len(self.numbers)

    @property
    def left_out(self) -> int:
        """Stories with a sentence that has no units in a language they are told in: unusable, so not among the stories."""
        return self.files.left_out

    def on_disk(self, stories: np.ndarray) -> np.ndarray:
        """Positions in this corpus -> numbers in the corpus on disk, int64."""
        return (stories if self.numbers is None else self.numbers[stories]).astype(np.int64)

    @property
    def index(self) -> np.ndarray:
        """The numbers of all stories in the corpus on disk, int64 [stories]."""
        return self.on_disk(np.arange(len(self)))

    @property
    def ids(self) -> np.ndarray:
        """Names of all stories, str [stories]."""
        return np.asarray(self.files.names(self.index), dtype=object)

    @property
    def told(self) -> np.ndarray:
        """The languages that each story is told in, bool [stories, languages]."""
        return self._told(self.files.gather("masks", self.index))

    def _told(self, masks: np.ndarray) -> np.ndarray:
        return masks[:, None] >> np.arange(len(self.languages), dtype=np.uint32) & 1 > 0

    def serves(self, masks: np.ndarray, mode: Mode, weights: Sequence[float] | None = None) -> np.ndarray:
        """Whether a mode tells stories with these masks (train.lm.token_files): bool [N]. See `served`."""
        drawn = np.ones(len(self.languages), bool) if weights is None else np.asarray(weights) > 0
        told, paired = self._told(masks), masks & PAIRED > 0
        if mode.name == MONOLINGUAL:
            serves = told[:, self.languages.index(str(mode.language))] & ~paired
        elif mode.name == MIXED:
            serves = told[:, drawn].any(axis=1) & ~paired
        else:
            serves = told.all(axis=1) & (~paired | (mode.name == INTERLEAVED and bool(drawn.all())))
        return serves & (masks & UNUSABLE == 0)

    @property
    def kinds(self) -> np.ndarray:
        """The masks that stories of the corpus on disk have, uint32."""
        return np.asarray(list(self.files.statistics), dtype=np.uint32)

    def count(self, kinds: np.ndarray) -> int:
        """How many of the stories have one of these masks."""
        if self.numbers is None:
            return sum(int(self.files.statistics[int(mask)][0]) for mask in kinds)
        parts = (self.numbers[first : first + AT_ONCE] for first in range(0, len(self.numbers), AT_ONCE))
        return sum(int(np.isin(self.files.gather("masks", part.astype(np.int64)), kinds).sum()) for part in parts)

    def sums(self, mode: Mode, weights: Sequence[float] | None = None) -> tuple[int, np.ndarray, np.ndarray]:
        """Of the stories on disk that a mode tells: how many, and units and tokens of all their sentences, int64
        [languages] each; those of pairs count twice, since they are told twice."""
        served = self.serves(self.kinds, mode, weights)
        count, (units, tokens) = 0, np.zeros((2, len(self.languages)), np.int64)
        for mask, serves in zip(self.kinds.tolist(), served, strict=True):
            if serves:
                values = self.files.statistics[mask]
                both = values[2:].reshape(2, -1) * (2 if mask & PAIRED else 1)
                count, units, tokens = count + int(values[0]), units + both[0], tokens + both[1]
        return count, units, tokens

    def served(self, mode: Mode, weights: Sequence[float] | None = None) -> TokenCorpus:
        """The stories that a mode tells. weights: how often it draws each language; equally often when None.

        `monolingual:LANG` tells stories that have that language and `mixed` all that have any it draws, but no pairs; the
        others tell stories that have all languages, and of these only `interleaved` tells pairs, where it draws them all.
        """
        kinds = self.kinds
        served = self.serves(kinds, mode, weights)
        if served.all():
            return self
        if served.tobytes() not in self._served:
            wanted = kinds[served]
            self._served[served.tobytes()] = self._where(lambda part: np.isin(part["masks"], wanted))
        return self._served[served.tobytes()]

    def _where(self, chosen: Callable[[Part], np.ndarray]) -> TokenCorpus:
        numbers = self.files.where(chosen)
        if self.numbers is not None:
            numbers = np.intersect1d(numbers, self.numbers, assume_unique=True)
        return self._of(numbers)

    def _of(self, numbers: np.ndarray) -> TokenCorpus:
        return replace(self, numbers=numbers, _served={})

    def select(self, stories: np.ndarray) -> TokenCorpus:
        """Only these stories (positions in this corpus), with the draws they have in the whole corpus."""
        return self._of(np.sort(self.on_disk(stories)).astype(np.uint32))

    @classmethod
    def load(
        cls,
        folder: Path,
        vocabulary: UnitVocabulary,
        *,
        progress: Callable[[str], None] | None = None,
    ) -> TokenCorpus:
        """The usable stories of a folder with corpus.json and Parquet shards. Their tokens, every sentence behind the
        vocabulary's `head` of its language, are written into it the first time, and only mapped into memory afterwards.

        Raises TresseError where the corpus cannot be used.
        """
        folder = Path(folder)
        try:
            info = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
            languages, frame_rate = tuple(info["languages"]), float(info["frame_rate"])
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
        say = progress or (lambda line: None)
        files = token_files(folder, shards, info, vocabulary, say)
        return cls.of(files, languages, vocabulary, frame_rate)

    @classmethod
    def of(
        cls, files: TokenFiles, languages: tuple[str, ...], vocabulary: UnitVocabulary, frame_rate: float
    ) -> TokenCorpus:
        """The usable stories of token files. Raises TresseError where there is none."""
        corpus = cls(languages, vocabulary.bos_id, vocabulary.eos_id, frame_rate, vocabulary.tags, files)
        if files.left_out:
            corpus = corpus._where(lambda part: part["masks"] & UNUSABLE == 0)
        if not len(corpus):
            raise TresseError("the unit corpus has no story whose sentences all have units: prepare it again")
        return corpus

    def split(self, held_out: int, seed: int) -> tuple[TokenCorpus, TokenCorpus]:
        """(training, held out): `held_out` distinct story ids, in all their voices, are kept from training."""
        if held_out == 0:
            return self, self._of(np.zeros(0, np.uint32))
        salt = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)
        least = np.zeros(0, np.uint64)
        for part, first in zip(self.files.parts, self.files.starts, strict=False):  # the first of a drawn order of ids
            keys = part["keys"] ^ salt
            if self.numbers is not None:
                begin, end = np.searchsorted(self.numbers, [first, first + len(keys)])
                keys = keys[self.numbers[begin:end] - np.uint32(first)]
            least = np.unique(np.r_[least, keys])[: held_out + 1]
        if not 0 <= held_out < len(least):
            raise TresseError(f"cannot hold out {held_out} of {len(least)} stories: hold out fewer")
        chosen = least[:held_out] ^ salt
        return (
            self._where(lambda part: ~np.isin(part["keys"], chosen)),
            self._where(lambda part: np.isin(part["keys"], chosen)),
        )

    def document(self, story: int, languages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [M], language of each token but the first int64 [M - 1]) of one story.

        languages: of each sentence, int64 [sentences], or [tellings, sentences].
        """
        passages = self.files.passages(self.on_disk(np.asarray([story])))
        languages = np.atleast_2d(languages)
        places = passages.places[np.arange(languages.shape[1]), languages]
        return self.assemble(int(passages.parts[0]), places, languages)

    def assemble(self, part: int, places: np.ndarray, languages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `document` gives, of sentences at `places` (int64 [tellings, sentences, 2]) of a part."""
        tokens: list[np.ndarray | list[int]] = []
        spoken: list[np.ndarray] = []
        source = self.files.parts[part]["tokens"]
        self.files.touched(1)
        for telling, at in zip(languages, places.tolist(), strict=True):
            parts = [source[begin:end] for begin, end in at]
            tokens += [[self.bos_id], *parts, [self.eos_id]]
            spoken += [telling[:1], np.repeat(telling, [end - begin for begin, end in at]), telling[-1:]]
        return np.concatenate(tokens).astype(np.int32, copy=False), np.concatenate(spoken)[1:]
