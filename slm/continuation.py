"""Prompt -> continuation: what happens between somebody's last word and the model's first.

Sentences of units -> tokens with language tags -> sampled tokens -> units. `slm.prompt_stream` makes the sentences of a
recording, `slm.speaking` makes sound of the units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from slm.engines import Engine, Sampling
from slm.errors import TresseError
from slm.units import Units, UnitVocabulary


@dataclass(frozen=True)
class Sentence:
    """One sentence of a story, spoken by whomever: its units and its language."""

    units: Units
    language: str


@dataclass(frozen=True)
class Prompt:
    """What was said: sentences of units, all in one language, and the length of the recording in s; `before`: the story
    so far, where this is not its beginning; `in_domain`: whether it is like what the model learnt, see `understand`."""

    sentences: list[Units]
    language: str
    seconds: float
    before: tuple[Sentence, ...] = ()
    in_domain: bool = True

    @property
    def said(self) -> tuple[Sentence, ...]:
        """Its sentences, with their language."""
        return tuple(Sentence(units, self.language) for units in self.sentences)

    @property
    def added(self) -> tuple[Sentence, ...]:
        """The sentences it adds to the story: none where it is out of domain."""
        return self.said if self.in_domain else ()

    @property
    def story(self) -> tuple[Sentence, ...]:
        """What the model goes on from."""
        return (*self.before, *self.added)


@dataclass(frozen=True)
class Step:
    """One generated token: its unit ids int64 [N] (none at a sentence boundary), whether a sentence begins here, and the
    language of the sentence that it belongs to."""

    token: int
    unit_ids: np.ndarray
    boundary: bool
    language: str


LOOK_BACK = 128
"""Tokens of the story so far that a further prompt is understood with."""


def understand(
    sentences: Sequence[Units], engine: Engine, vocabulary: UnitVocabulary, before: Sequence[Sentence] = ()
) -> tuple[str, bool]:
    """The language whose tag makes the sentences likeliest under the language model, and whether they are in domain in it:
    likelier, token for token, than tokens drawn uniformly, of which each has the likelihood 1 / `len(vocabulary)`.

    before: the story so far, whose last sentences say what to expect. Out of domain are voices, noises and words far from
    all that the model was trained on. It would go on from them in sounds that are no words, so `Prompt.story` leaves
    them out.
    """
    lead = [token for tokens in fitting(before, vocabulary, LOOK_BACK) for token in tokens]
    spoken = [vocabulary.sequence((language, units.ids) for units in sentences) for language in vocabulary.languages]
    likelihoods = engine.score([[tokens[0], *lead, *tokens[1:]] for tokens in spoken])
    scores = [logs[len(lead) + 1 :] for logs in likelihoods]  # of the sentences, without the first tag's own likelihood
    best = int(np.argmax([logs.sum() for logs in scores]))
    return vocabulary.languages[best], bool(scores[best].mean() > -np.log(len(vocabulary)))


def fitting(story: Sequence[Sentence], vocabulary: UnitVocabulary, room: int) -> list[list[int]]:
    """The story's last sentences as tokens `<language> units`, at most `room` of them together; the oldest give way first.

    Of a single sentence that is longer than that, its beginning.
    """
    kept: list[list[int]] = []
    for sentence in reversed(story):
        tokens = [vocabulary.tag_ids[sentence.language], *vocabulary.encode(sentence.units.ids)]
        if len(tokens) > room:
            return kept or [tokens[:room]]
        room -= len(tokens)
        kept.insert(0, tokens)
    return kept


def prompt_tokens(prompt: Prompt, to: str, vocabulary: UnitVocabulary, limit: int) -> list[int]:
    """`<bos> <language> sentence <language> sentence ... <to>`: at most `limit` tokens, see `fitting`."""
    kept = fitting(prompt.story, vocabulary, limit - 2)
    return [vocabulary.bos_id, *(token for sentence in kept for token in sentence), vocabulary.tag_ids[to]]


def continue_prompt(
    prompt: Prompt,
    to: str | Sequence[str],
    engine: Engine,
    vocabulary: UnitVocabulary,
    sampling: Sampling,
    context: int,
) -> Iterator[Step]:
    """Sample the continuation of a prompt token by token, until the story ends.

    to: a language, in which every further sentence is; or several, which take turns sentence by sentence. The tags
    of languages whose turn it is not are banned.
    """
    languages = [to] if isinstance(to, str) else list(to)
    for language in languages:
        if language not in vocabulary.tag_ids:
            raise TresseError(f"unknown language {language!r}: this bundle speaks {', '.join(vocabulary.languages)}")
    tokens = prompt_tokens(prompt, languages[0], vocabulary, context - sampling.max_tokens)
    start, number = len(tokens), 0
    while (done := len(tokens) - start) < sampling.max_tokens:
        language = languages[number % len(languages)]
        tag = vocabulary.tag_ids[languages[(number + 1) % len(languages)]]
        banned = (vocabulary.bos_id, *(index for index in vocabulary.tag_ids.values() if index != tag))
        turn = replace(
            sampling,
            seed=sampling.seed + number,
            max_tokens=sampling.max_tokens - done,
            min_tokens=max(0, min(sampling.min_tokens, sampling.max_tokens) - done),
            banned=(*sampling.banned, *banned),
        )
        with contextlib.closing(cast(Generator, engine.generate(tuple(tokens), turn))) as drawn:
            for token in drawn:
                tokens.append(token)
                boundary = token == tag
                if boundary:
                    number += 1
                    language = languages[number % len(languages)]
                yield Step(token, np.asarray(vocabulary.token_units(token), dtype=np.int64), boundary, language)
                if boundary and len(languages) > 1:
                    break  # the other language's turn: other tags are banned
            else:
                return
