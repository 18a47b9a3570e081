"""The next sentence of a reply: of several that the language model draws, the one that the story asks for.

What a small model draws is likely anywhere. Each candidate is scored by how much likelier the story so far makes it:

    (log p(sentence | story) - WEIGHT * log p(sentence)) / tokens + TOPIC * likeness(sentence, story)

The first part is the pointwise mutual information of story and sentence for a WEIGHT of 1 (Li et al. 2016, "A
Diversity-Promoting Objective Function for Neural Conversation Models", arXiv:1510.03055), the second how far both are about
the same (`slm.topics`), where the bundle knows; tokens that the reply has had do not count, or it would say them again and
again. Sentences that the story has already are left out: nothing makes a sentence likelier than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slm.engines import Engine, Sampling
from slm.topics import Topics

WEIGHT = 0.8
TOPIC = 2.0
"""Nats a token that a sentence is worth which is about the very same as its story."""
SHORTEST, LONGEST = 4, 96
"""Tokens of a candidate: one that has not ended by then is no sentence."""
COPIED = 0.5
"""Share of its runs of RUN tokens from which on a candidate repeats a sentence of the story."""
RUN = 3


@dataclass(frozen=True)
class Candidates:
    """Where a sentence begins. told: tokens of the story so far with the head of the new sentence; head: `<bos>` and that
    head, and what there is of the sentence already; ends: tokens that end a sentence, `<eos>` first; topics: what tokens are
    about; said: the tokens of the reply so far."""

    told: Sequence[int]
    head: Sequence[int]
    ends: Sequence[int]
    topics: Topics | None = None
    said: frozenset[int] = frozenset()

    def after(self, sentence: Sequence[int]) -> Candidates:
        """Of the sentence behind this one, whose end is the head of the next."""
        head = [*self.head[:1], *sentence[-1:]]
        return replace(self, told=[*self.told, *sentence], head=head, said=self.said | {*sentence})

    def best(
        self,
        engine: Engine,
        sampling: Sampling,
        count: int,
        fits: Callable[[Sequence[int]], bool] = lambda _: True,
        *,
        must: bool = False,
    ) -> list[int]:
        """The best of `count` sentences, its end included, of those that fit. Where none does it is the best of all if there
        `must` be one, else none.

        Sampling's `max_tokens` holds; one that they cut off is chosen only where all are. `min_tokens` holds up to SHORTEST.
        """
        most = min(sampling.max_tokens, LONGEST)
        sampling = replace(sampling, max_tokens=most, min_tokens=min(sampling.min_tokens, SHORTEST, most))
        drawn = engine.propose(self.told, sampling, count, self.ends)
        there = {tuple(proposal.tokens): proposal.likelihood for proposal in drawn if proposal.tokens}
        different = [list(tokens) for tokens in there]
        different = [tokens for tokens in different if fits(tokens)] or (different if must else [])
        whole = [tokens for tokens in different if tokens[-1] in self.ends] or different
        fresh = [tokens for tokens in whole if copied(tokens, self.told) < COPIED] or whole
        if len(fresh) <= 1:
            return fresh[0] if fresh else []
        alone = engine.score([[*self.head, *tokens] for tokens in fresh])
        values = [
            worth(there[tuple(tokens)], float(logs[-len(tokens) :].sum()), len(tokens), like)
            for tokens, logs, like in zip(fresh, alone, self._likeness(fresh), strict=True)
        ]
        return fresh[int(np.argmax(values))]

    def _likeness(self, sentences: Sequence[Sequence[int]]) -> list[float]:
        """How far what is new in each sentence is about what the story is about."""
        if self.topics is None:
            return [0.0] * len(sentences)
        story = self.topics.of(self.told)
        new = ([token for token in sentence if token not in self.said] for sentence in sentences)
        return [float(story @ self.topics.of(tokens)) for tokens in new]


def worth(given: float, alone: float, tokens: int, likeness: float) -> float:
    """What a sentence is worth in a story: see the module. given, alone: its log-likelihoods with and without the story, in
    nats; likeness: -1 .. 1."""
    return (given - WEIGHT * alone) / tokens + TOPIC * likeness


def copied(tokens: Sequence[int], story: Sequence[int]) -> float:
    """Share of the RUNs of tokens in a sentence that occur in the story, 0 .. 1."""
    known = {tuple(story[at : at + RUN]) for at in range(len(story) - RUN + 1)}
    own = [tuple(tokens[at : at + RUN]) for at in range(len(tokens) - RUN + 1)]
    return sum(run in known for run in own) / len(own) if own else 0.0
