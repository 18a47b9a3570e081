"""Cross-lingual interleaving: which language each sentence of a story is told in, and the tokens that follow from it.

The method (Moumen, Sun, Woodland, arXiv 2512.01865): for every sentence draw a language uniformly and append the *next
aligned* sentence in that language; never both copies of a sentence. Nothing is stored: the draw is a pure function of
(seed, epoch, story, sentence), so every epoch braids anew and every run can be repeated. A draw does not depend on how
many stories there are or how long the longest one is. Cost: about 5 ns a sentence.

`translated_retelling` goes beyond the method: after an interleaved story the same story once more, every sentence in
another language than before (the idea of translation language modelling, Conneau and Lample, arXiv 1901.07291). What the
second telling says has all been said, in the other language: the model learns to look it up there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slm.errors import TresseError
from slm.units.vocabulary import UnitVocabulary

INTERLEAVED, RETELLING, MIXED, MONOLINGUAL = "interleaved", "translated_retelling", "mixed", "monolingual"
OLD_NAMES = {"retold": RETELLING}
"""Names of modes in earlier recipes and run folders; they are still read."""
MAX_SENTENCES = 2**16


@dataclass(frozen=True)
class Mode:
    """How languages are drawn: `interleaved` (per sentence), `translated_retelling` (the same, and then every sentence again
    in another language), `mixed` (per story) or `monolingual:LANG`."""

    name: str
    language: str | None = None

    @classmethod
    def parse(cls, text: str, languages: Sequence[str]) -> Mode:
        """`interleaved` | `translated_retelling` | `mixed` | `monolingual:LANG`, or an old name.

        Raises TresseError for anything else.
        """
        name, _, language = text.partition(":")
        name = OLD_NAMES.get(name, name)
        plain = [INTERLEAVED, *([RETELLING] if len(languages) > 1 else []), MIXED]
        if name in plain and not language:
            return cls(name)
        if name == MONOLINGUAL and language in languages:
            return cls(name, language)
        choices = [*plain, *(f"{MONOLINGUAL}:{language}" for language in languages)]
        raise TresseError(f"unknown mode '{text}': choose one of {', '.join(choices)}")

    @property
    def tellings(self) -> int:
        """How often a story is told in a document."""
        return 2 if self.name == RETELLING else 1

    def __str__(self) -> str:
        return self.name if self.language is None else f"{self.name}:{self.language}"


def _draw(
    seed: int, epoch: int, sentence: int, first: int, count: int, languages: int, weights: np.ndarray | None
) -> np.ndarray:
    """Languages of sentence number `sentence` in stories first .. first+count-1: int64 [count] in 0..languages-1."""
    generator = np.random.Philox(np.random.SeedSequence([seed, epoch, sentence]))
    skip = first % 4  # Philox makes four numbers per counter value
    generator.advance(first // 4)
    return choose_languages(generator.random_raw(skip + count)[skip:], languages, weights)


def choose_languages(raw: np.ndarray, languages: int, shares: np.ndarray | None) -> np.ndarray:
    """Random numbers uint64 [N] -> languages int64 [N] in 0..languages-1; shares: of each language, None: equal ones."""
    if shares is not None:
        return np.searchsorted(shares.cumsum()[:-1], (raw >> np.uint64(11)) * 2.0**-53, side="right")
    # the upper 32 bits scaled down: biased by at most languages / 2**32
    return ((raw >> np.uint64(32)) * np.uint64(languages) >> np.uint64(32)).astype(np.int64)


def draw_languages(
    mode: Mode | str,
    languages: Sequence[str],
    *,
    seed: int,
    epoch: int,
    stories: int,
    sentences: int,
    first: int = 0,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """The language of every sentence of stories `first` .. `first + stories - 1` in one epoch.

    weights: how often each language is drawn, relative to the others; None: equally often, as the method says.
    Returns int64 [stories, sentences], indices into `languages`; int64 [stories, 2 * sentences] for
    `translated_retelling`, the second telling after the first.
    """
    if isinstance(mode, str):
        mode = Mode.parse(mode, languages)
    if not languages or not 0 <= sentences <= MAX_SENTENCES:
        raise ValueError(f"need at least one language and 0..{MAX_SENTENCES} sentences, not {sentences}")
    shares = None
    if weights is not None:
        if len(weights) != len(languages) or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"need a weight for each of {', '.join(languages)}, not {list(weights)}")
        shares = np.asarray(weights, dtype=float) / sum(weights)
    drawn = np.zeros((stories, sentences), dtype=np.int64)
    if mode.name == MONOLINGUAL:
        drawn[:] = list(languages).index(str(mode.language))
    elif mode.name == MIXED:
        drawn[:] = _draw(seed, epoch, 0, first, stories, len(languages), shares)[:, None]
    else:
        for sentence in range(sentences):
            drawn[:, sentence] = _draw(seed, epoch, sentence, first, stories, len(languages), shares)
    if mode.name == RETELLING:
        again = drawn + 1  # and up to all but one language further on: never back to the first telling's
        for sentence in range(sentences):
            again[:, sentence] += _draw(seed, epoch, MAX_SENTENCES + sentence, first, stories, len(languages) - 1, None)
        drawn = np.concatenate([drawn, again % len(languages)], axis=1)
    return drawn


def sentence_tokens(tokens: np.ndarray | Sequence[int], language: str, vocabulary: UnitVocabulary) -> np.ndarray:
    """One sentence as the model sees it: its language tag (where the model has tags), then its tokens: int32 [M]."""
    head = np.asarray(vocabulary.head(language), dtype=np.int32)
    return np.concatenate([head, np.asarray(tokens, dtype=np.int32)])


def braid(
    sentences: Mapping[str, Sequence[np.ndarray]],
    languages: Sequence[str],
    vocabulary: UnitVocabulary,
    *,
    end: bool = False,
) -> np.ndarray:
    """`<bos>`, then sentence i in language `languages[i]`, then `<eos>` with `end`: int32 [M].

    sentences: per language the tokens of every sentence; sentence i of one is sentence i of the other. Training
    sequences and prompts are both built so: a prompt is a braid of the first sentences, without `end`.
    """
    parts = [np.asarray([vocabulary.bos_id], dtype=np.int32)]
    for position, language in enumerate(languages):
        parts.append(sentence_tokens(sentences[language][position], language, vocabulary))
    if end:
        parts.append(np.asarray([vocabulary.eos_id], dtype=np.int32))
    return np.concatenate(parts)
