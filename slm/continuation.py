"""Prompt -> continuation: what happens between somebody's last word and the model's first.

Sentences of units -> tokens, with language tags where the model has them -> sampled tokens -> units. `slm.prompt_stream`
makes the sentences of a recording, `slm.speaking` makes sound of the units.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from slm.choosing import SHORTEST, Candidates
from slm.engines import Engine, Sampling
from slm.settings import check_languages
from slm.topics import Topics
from slm.units import Units, UnitVocabulary
from slm.voice_check import Voice


@dataclass(frozen=True)
class Sentence:
    """One sentence of a story, spoken by whomever: its units and its language."""

    units: Units
    language: str


@dataclass(frozen=True)
class Prompt:
    """What was said: sentences of units, all in one language (or UNKNOWN), and the length of the recording in s; `before`:
    the story so far, where this is not its beginning; `in_domain`: whether it is like what the model learnt, see
    `understand`; `voice`: how it was recorded, where it was."""

    sentences: list[Units]
    language: str
    seconds: float
    before: tuple[Sentence, ...] = ()
    in_domain: bool = True
    voice: Voice | None = None

    @property
    def advice(self) -> str:
        """What would help the model to understand the speaker, a name of `slm.voice_check.ADVICE`; "" for nothing."""
        if self.voice is None:
            return "" if self.in_domain else "unfamiliar"
        return self.voice.advice(self.in_domain)

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
UNKNOWN = ""
"""The language of a prompt where the model has no language tags to tell it by."""
MARGIN = 0.1
"""Nats a unit by which a prompt in domain is likelier than units drawn by their shares."""
LATER = 2
"""How many times as many candidates there are for a sentence that is drawn while the one before is heard."""
SPARE = 1.5
"""How many times as many tokens a second as its story a reply is expected to need, at most."""


def understand(
    sentences: Sequence[Units],
    engine: Engine,
    vocabulary: UnitVocabulary,
    before: Sequence[Sentence] = (),
    *,
    context: int,
    shares: Mapping[str, Sequence[float]] | None = None,
) -> tuple[str, bool]:
    """The language whose tag makes the sentences likeliest under the language model, and whether they are in domain in it:
    likelier, by MARGIN a unit, than the same units drawn one by one, each as often as it occurs in speech.

    before: the story so far, whose last sentences say what to expect. context: tokens that the model can look back on; of a
    prompt that is longer its end is scored. shares: how often each unit occurs, by language; None: a prompt is in domain
    where it is likelier, token for token, than tokens drawn uniformly, of which each has the likelihood 1 /
    `len(vocabulary)`. Out of domain are voices, noises and words far from all that the model was trained on. It would go on
    from them in sounds that are no words, so `Prompt.story` leaves them out. Without language tags the language is UNKNOWN.
    """
    languages = vocabulary.languages if vocabulary.tags else [UNKNOWN]
    asked, own, scored = [], [], 0
    for language in languages:
        said = [Sentence(units, language) for units in sentences]
        kept = fitting(said, vocabulary, context - 1)
        own = _flat(kept)
        room = min(LOOK_BACK, context - 1 - len(own)) if len(kept) == len(said) else 0
        lead = _flat(fitting(before, vocabulary, room))
        asked.append([vocabulary.bos_id, *lead, *own])
        scored = len(own) - len(own[:1]) * vocabulary.tags  # without the first tag's own likelihood
    scores = [logs[len(logs) - scored :] for logs in engine.score(asked)]
    best = int(np.argmax([logs.sum() for logs in scores]))
    if not shares:
        return languages[best], bool(scores[best].mean() > -np.log(len(vocabulary)))
    units = [unit for token in own[len(own) - scored :] for unit in vocabulary.token_units(token)]
    known = [shares[languages[best]]] if languages[best] in shares else list(shares.values())
    drawn = np.log(np.mean(known, 0))[units]
    return languages[best], bool(scores[best].sum() > drawn.sum() + MARGIN * len(units))


def ending(prompt: Prompt, engine: Engine, vocabulary: UnitVocabulary, *, context: int) -> float:
    """Log-odds, under the language model, that the prompt's last sentence ends with its last unit: the story ends there, or
    another sentence begins. context: tokens that the model can look back on; the latest LOOK_BACK of them are."""
    tokens = [vocabulary.bos_id, *_flat(fitting(prompt.story, vocabulary, min(LOOK_BACK, context - 2)))]
    ends = [vocabulary.eos_id, *(vocabulary.tag_ids.values() if vocabulary.tags else ())]
    share = sum(math.exp(logs[-1]) for logs in engine.score([[*tokens, end] for end in ends]))
    share = min(1 - 1e-6, max(1e-6, share))
    return math.log(share / (1 - share))


def fitting(story: Sequence[Sentence], vocabulary: UnitVocabulary, room: int) -> list[list[int]]:
    """The story's last sentences as tokens `<language> units`, at most `room` of them together; the oldest give way first.

    Of a last sentence that is longer than that, its tag and its end.
    """
    newest_first = ([*vocabulary.head(part.language), *vocabulary.encode(part.units.ids)] for part in reversed(story))
    return _latest(newest_first, room, int(vocabulary.tags))


def _latest(newest_first: Iterable[list[int]], room: int, head: int) -> list[list[int]]:
    """The last sentences of those given, in order, see `fitting`. head: tokens before the units of each."""
    kept: list[list[int]] = []
    for tokens in newest_first:
        if len(tokens) > room:
            if not kept and room > head:
                kept = [[*tokens[:head], *tokens[len(tokens) - room + head :]]]
            break
        room -= len(tokens)
        kept.insert(0, tokens)
    return kept


def _flat(sentences: Iterable[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def prompt_tokens(prompt: Prompt, to: str, vocabulary: UnitVocabulary, limit: int) -> list[int]:
    """`<bos> <language> sentence <language> sentence ... <to>`: at most `limit` tokens, see `fitting`."""
    head = vocabulary.head(to)
    return [vocabulary.bos_id, *_flat(fitting(prompt.story, vocabulary, limit - 1 - len(head))), *head]


def expected_tokens(
    story: Sequence[Sentence], vocabulary: UnitVocabulary, seconds: float, frame_rate: float, context: int
) -> int:
    """Tokens that a reply of so many s is expected to need at most: SPARE times as many a second as the latest `context`
    tokens of its story, and never more than one a frame (and 8 that end it). frame_rate: of the units, Hz."""
    tokens, spoken = 0, 0.0
    for sentence in reversed(story):
        tokens += int(vocabulary.tags) + len(vocabulary.encode(sentence.units.ids))
        spoken += sentence.units.seconds
        if tokens >= context:
            break
    most = most_tokens(seconds, frame_rate)
    return min(most, math.ceil(SPARE * seconds * tokens / spoken)) if spoken else most


def most_tokens(seconds: float, frame_rate: float) -> int:
    """Tokens that surely suffice for so many s: one a frame of `frame_rate` Hz."""
    return int(seconds * frame_rate) + 8


def kept_free(context: int, max_tokens: int, expected: int) -> int:
    """Tokens of the context that a story leaves to the reply: those it is expected to need, at least an eighth of the
    context unless it may not be so long, at most half."""
    return max(1, min(max_tokens, max(expected, context // 8), context // 2))


def continue_prompt(
    prompt: Prompt,
    to: str | Sequence[str],
    engine: Engine,
    vocabulary: UnitVocabulary,
    sampling: Sampling,
    context: int,
    expected: int | None = None,
    candidates: int = 1,
    time: Time | None = None,
    topics: Topics | None = None,
) -> Iterator[Step]:
    """Sample the continuation of a prompt token by token, until the story ends.

    to: a language, in which every further sentence is; or several, which take turns sentence by sentence. The tags
    of languages whose turn it is not are banned. context: tokens of story and reply together that the model can look
    back on. expected: tokens of the reply for which the story makes room; `sampling.max_tokens` by default. A reply that
    needs more goes on while the oldest sentences give way. candidates: sentences that are drawn side by side, of which the
    best is said (`slm.choosing`); behind the first sentence, for which somebody waits, LATER times as many. time: of these,
    only sentences that end in it are said, the first one excepted. topics: what tokens are about, to choose by. Raises
    TresseError for a language that the model does not have, and for several where it has no language tags.
    """
    languages = [to] if isinstance(to, str) else list(to)
    check_languages(languages, vocabulary.languages, vocabulary.tags)
    expected = sampling.max_tokens if expected is None else expected
    candidates = candidates if vocabulary.tags and sampling.temperature > 0 else 1
    story = fitting(prompt.story, vocabulary, context)
    current, done, turns, number = vocabulary.head(languages[0]), 0, 0, 0
    said: set[int] = set()
    while done < sampling.max_tokens:
        room = context - 1 - kept_free(context, sampling.max_tokens - done, expected - done)
        own = _flat(_latest([current], room, int(vocabulary.tags)))
        tokens = [vocabulary.bos_id, *_flat(_latest(reversed(story), room - len(own), int(vocabulary.tags))), *own]
        language = languages[number % len(languages)]
        tag = vocabulary.tag_ids[languages[(number + 1) % len(languages)]] if vocabulary.tags else None
        banned = (vocabulary.bos_id, *(index for index in vocabulary.tag_ids.values() if index != tag))
        most = min(sampling.max_tokens - done, context - len(tokens))
        turn = replace(
            sampling,
            seed=sampling.seed + turns,
            max_tokens=most,
            min_tokens=min(most, max(0, sampling.min_tokens - done)),
            banned=(*sampling.banned, *banned),
        )
        turns, until = turns + 1, done + most
        if candidates == 1:
            drawing = engine.generate(tuple(tokens), turn)
        else:
            begun, ends = [vocabulary.bos_id, *own], (vocabulary.eos_id, *vocabulary.tag_ids.values())
            clock = None if time is None else _Clock(time, vocabulary, language)
            choice = Candidates(tokens, begun, ends, topics, frozenset(said))
            drawing = _chosen(engine, choice, turn, candidates, clock, said=number > 0)
        with contextlib.closing(cast(Generator, drawing)) as drawn:
            for token in drawn:
                done += 1
                said.add(token)
                boundary = token == tag
                if boundary:
                    number += 1
                    language = languages[number % len(languages)]
                    story, current = [*story, current], []
                current.append(token)
                yield Step(token, np.asarray(vocabulary.token_units(token), dtype=np.int64), boundary, language)
                if boundary and len(languages) > 1:
                    break  # the other language's turn: other tags are banned
            else:
                if done < until:
                    return


@dataclass
class Time:
    """What a reply has time for. seconds: that are left; lasts: s of units int64 [N] in a language; pause: s between two
    sentences."""

    seconds: float
    lasts: Callable[[np.ndarray, str], float]
    pause: float


@dataclass
class _Clock:
    """The time of a reply, and the language of its sentences."""

    time: Time
    vocabulary: UnitVocabulary
    language: str

    def _lasts(self, sentence: Sequence[int]) -> float:
        ids = [self.vocabulary.token_units(token) for token in sentence]
        return self.time.lasts(np.array([unit for units in ids for unit in units], np.int64), self.language)

    def fits(self, sentence: Sequence[int]) -> bool:
        """Whether a sentence ends in time."""
        return self._lasts(sentence) <= self.time.seconds

    def say(self, sentence: Sequence[int]) -> None:
        """There is less time behind a sentence."""
        self.time.seconds -= self._lasts(sentence) + self.time.pause


def _chosen(
    engine: Engine, candidates: Candidates, sampling: Sampling, count: int, clock: _Clock | None, *, said: bool
) -> Generator[int]:
    """The tokens of the sentence that is chosen of `count`, and of further ones, up to `<eos>` or `sampling.max_tokens`.

    Where no sentence ends in time the reply does, unless nothing is `said` yet.
    """
    eos, most = candidates.ends[0], sampling.max_tokens
    done = 0
    while done < most:
        more = sampling.min_tokens - done
        banned = (*sampling.banned, eos) if more > SHORTEST else sampling.banned
        turn = replace(sampling, seed=sampling.seed + 7919 * done, max_tokens=most - done, banned=banned)
        fits = clock.fits if clock else lambda _: True
        sentence = candidates.best(engine, turn, LATER * count if said else count, fits, must=not said)
        if not sentence:
            return
        if clock:
            clock.say(sentence)
        said = True
        yield from (token for token in sentence if token != eos)
        if sentence[-1] not in candidates.ends[1:]:
            return
        done += len(sentence)
        candidates = candidates.after(sentence)
