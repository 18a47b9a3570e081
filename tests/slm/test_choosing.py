"""Choosing the next sentence of a reply: candidates as the engine draws them, the best one by its score, nothing copied."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.bundle import Bundle
from slm.choosing import LONGEST, WEIGHT, Candidates, copied
from slm.continuation import LATER, Prompt, Time, continue_prompt, prompt_tokens
from slm.engines import APART, CTranslate2Engine, Engine, Proposal, Sampling, TorchEngine
from slm.errors import TresseError
from slm.settings import ReplySettings
from slm.topics import Topics
from tests.conftest import spoken_beginning

EOS, TAG = 0, 1


class Known:
    """An engine whose candidates and likelihoods are given: `logs` of a token, with the story and without."""

    def __init__(self, candidates: list[list[int]], story: Sequence[float], alone: Sequence[float]) -> None:
        self.candidates, self.logs = candidates, {True: list(story), False: list(alone)}
        self.asked = 0

    def propose(self, tokens: Sequence[int], sampling: Sampling, count: int, ends: Sequence[int]) -> list[Proposal]:
        self.asked += 1
        shown = [candidate[: sampling.max_tokens] for candidate in self.candidates[:count]]
        return [Proposal(tokens, sum(self.logs[True][token] for token in tokens)) for tokens in shown]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        assert all(tokens[0] == 8 for tokens in sequences), "with the story they are scored as they are drawn"
        return [np.array([self.logs[False][token] for token in tokens[1:]]) for tokens in sequences]

    def generate(self, tokens: Sequence[int], sampling: Sampling) -> list[int]:  # type: ignore[override]
        raise AssertionError("sentences are proposed")


@pytest.fixture(scope="module", params=["ctranslate2", "torch"])
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Engine:
    return TorchEngine(bundle.language_model, bundle.vocabulary) if request.param == "torch" else bundle.engine


@pytest.fixture(scope="module")
def prompt(bundle: Bundle) -> Prompt:
    return bundle.prompt(spoken_beginning("fr"), 16000)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_best_has_the_highest_score(data: st.DataObject) -> None:
    """The formula of the module, computed by hand, over whole sentences that copy nothing."""
    count = data.draw(st.integers(1, 6))
    sentence = st.lists(st.integers(2, 8), min_size=1, max_size=6).map(lambda tokens: [*tokens, TAG])
    candidates = data.draw(st.lists(sentence, min_size=count, max_size=count))
    story, alone = (data.draw(st.lists(st.floats(-9, -0.01), min_size=10, max_size=10)) for _ in range(2))
    chosen = Candidates([9, 20, 21, TAG], [8, TAG], [EOS, TAG]).best(Known(candidates, story, alone), Sampling(), count)  # type: ignore[arg-type]

    def score(tokens: list[int]) -> float:
        return sum(story[token] - WEIGHT * alone[token] for token in tokens) / len(tokens)

    assert score(chosen) == pytest.approx(max(score(tokens) for tokens in candidates))
    assert chosen in candidates


def test_of_equally_likely_sentences_the_one_about_the_story_is_chosen() -> None:
    vectors = np.zeros((10, 2), np.float32)
    vectors[[2, 3, 9], 0] = vectors[[6, 7], 1] = 1.0
    topics = Topics(vectors, np.ones(10, np.float32))
    engine = Known([[6, 7, 6, 7, TAG], [2, 3, 2, 3, TAG]], [-1.0] * 10, [-1.0] * 10)
    start = Candidates([9, 9, TAG], [8, TAG], [EOS, TAG], topics)
    assert start.best(engine, Sampling(), 2) == [2, 3, 2, 3, TAG]  # type: ignore[arg-type]
    other = Candidates([6, 6, TAG], [8, TAG], [EOS, TAG], topics)
    assert other.best(engine, Sampling(), 2) == [6, 7, 6, 7, TAG]  # type: ignore[arg-type]
    assert start.after([6, 7, TAG]).topics is topics
    engine = Known([[2, 3, 2, 3, TAG], [6, 7, 9, 9, TAG]], [-1.0] * 10, [-1.0] * 10)
    assert start.best(engine, Sampling(), 2) == [2, 3, 2, 3, TAG]  # type: ignore[arg-type]
    assert start.after([2, 3, TAG]).best(engine, Sampling(), 2) == [6, 7, 9, 9, TAG]  # type: ignore[arg-type]


def test_copies_and_sentences_without_an_end_are_left_out() -> None:
    engine = Known([[2, 3, 4, 5, TAG], [6, 7, 6, 7], [8, 7, 8, TAG]], [-1.0] * 10, [-1.0] * 10)
    engine.logs[True][2:6] = [-0.1] * 4
    story = [9, TAG, 2, 3, 4, 5, TAG]
    assert copied([2, 3, 4, 5, TAG], story) == 1.0
    assert copied([8, 7, 8, TAG], story) == 0.0
    assert copied([2, 3], story) == 0.0
    assert Candidates(story, [8, TAG], [EOS, TAG]).best(engine, Sampling(), 3) == [8, 7, 8, TAG]  # type: ignore[arg-type]
    assert Candidates([9, TAG], [8, TAG], [EOS, TAG]).best(engine, Sampling(), 3) == [2, 3, 4, 5, TAG]  # type: ignore[arg-type]
    assert Candidates(story, [8, TAG], [EOS, TAG]).best(engine, Sampling(), 1) == [2, 3, 4, 5, TAG]  # type: ignore[arg-type]


def test_candidates_are_drawn_as_replies_are(bundle: Bundle, engine: Engine) -> None:
    """The only candidate of a seed is what `generate` gives; all end where a sentence ends, and none has what is banned."""
    vocabulary = bundle.vocabulary
    start = [vocabulary.bos_id, vocabulary.tag_ids["en"]]
    for seed in range(3):
        sampling = Sampling(max_tokens=40, seed=seed, temperature=1.0)
        (proposed,) = engine.propose(start, sampling, 1, [vocabulary.eos_id])
        assert [token for token in proposed.tokens if token != vocabulary.eos_id] == list(
            engine.generate(start, sampling)
        )
    banned = (vocabulary.bos_id, vocabulary.tag_ids["fr"])
    ends = [vocabulary.eos_id, vocabulary.tag_ids["en"]]
    sampling = Sampling(max_tokens=LONGEST, temperature=1.0, banned=banned, seed=5)
    drawn = engine.propose(start, sampling, 6, ends)
    assert drawn == engine.propose(start, sampling, 6, ends)
    assert len(drawn) == 6
    assert len({tuple(proposal.tokens) for proposal in drawn}) > 3
    for tokens in (proposal.tokens for proposal in drawn):
        assert not {*tokens[:-1]} & {*ends, *banned}
        assert tokens[-1] in ends or len(tokens) == LONGEST
        assert len(tokens) > sampling.min_tokens


def test_candidates_come_with_their_likelihood(bundle: Bundle, engine: Engine, prompt: Prompt) -> None:
    """At any temperature, and with tokens banned: that which scoring them behind the story gives."""
    vocabulary = bundle.vocabulary
    start = prompt_tokens(prompt, "fr", vocabulary, bundle.context)
    ends = [vocabulary.eos_id, vocabulary.tag_ids["fr"]]
    for temperature, banned in ((1.0, ()), (0.6, (vocabulary.bos_id, vocabulary.tag_ids["en"], 7, 11, 13))):
        sampling = Sampling(max_tokens=30, seed=3, temperature=temperature, banned=banned)
        proposals = engine.propose(start, sampling, 6, ends)
        scores = engine.score([[*start, *proposal.tokens] for proposal in proposals])
        for proposal, logs in zip(proposals, scores, strict=True):
            scored = float(logs[-len(proposal.tokens) :].sum())
            rounding = 0.05 if isinstance(engine, CTranslate2Engine) else 1e-4
            assert proposal.likelihood == pytest.approx(scored, abs=rounding * len(proposal.tokens))


def drawn_alone(
    engine: TorchEngine, tokens: Sequence[int], sampling: Sampling, generator: torch.Generator, ends: Sequence[int]
) -> list[int]:
    """A continuation drawn by hand: the whole model anew for each token, from the logits of the last position."""
    drawn: list[int] = []
    while len(drawn) < sampling.max_tokens and not (drawn and drawn[-1] in ends):
        with torch.inference_mode():
            logits = engine.model(torch.tensor([[*tokens, *drawn]])).logits[0, -1].float()
        logits = logits.clone()
        logits[list(sampling.banned)] = -torch.inf
        if len(drawn) < sampling.min_tokens:
            logits[list(ends)] = -torch.inf
        if sampling.temperature == 0:
            drawn.append(int(logits.argmax()))
            continue
        likeliest, order = (logits / sampling.temperature).topk(min(sampling.top_k, len(logits)))
        ordered = likeliest.softmax(-1)
        kept = ordered.cumsum(-1) - ordered < sampling.top_p
        drawn.append(int(order[torch.multinomial(ordered * kept, 1, generator=generator)]))
    return drawn


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 8),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    most=st.integers(1, 16),
    least=st.integers(0, 6),
    top_k=st.sampled_from([5, 256]),
)
def test_drawn_side_by_side_they_are_those_drawn_alone(
    bundle: Bundle, seed: int, count: int, temperature: float, most: int, least: int, top_k: int
) -> None:
    """Each of its own seed, whatever the others do and whenever they end."""
    vocabulary, engine = bundle.vocabulary, TorchEngine(bundle.language_model, bundle.vocabulary)
    start = [vocabulary.bos_id, vocabulary.tag_ids["en"]]
    ends = [vocabulary.eos_id, vocabulary.tag_ids["en"], *range(20, 120)]  # so that they end at different times
    sampling = Sampling(temperature, 0.95, top_k, most, least, seed, (vocabulary.tag_ids["fr"],))
    expected = [
        drawn_alone(engine, start, sampling, torch.Generator().manual_seed(seed + APART * number), ends)
        for number in range(count)
    ]
    assert [proposal.tokens for proposal in engine.propose(start, sampling, count, ends)] == expected


def test_candidates_are_the_same_beside_others(bundle: Bundle) -> None:
    """Drawn at the same time, each with its own seed."""
    start = [bundle.vocabulary.bos_id, bundle.vocabulary.tag_ids["en"]]

    def draw(seed: int) -> list[Proposal]:
        return bundle.engine.propose(start, Sampling(max_tokens=30, seed=seed, temperature=1.0), 4, start[1:])

    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == alone


def split(tokens: list[int], tag: int) -> list[list[int]]:
    """Tokens between tags."""
    sentences: list[list[int]] = [[]]
    for token in tokens:
        if token == tag:
            sentences.append([])
        else:
            sentences[-1].append(token)
    return [sentence for sentence in sentences if sentence]


def test_of_the_sentences_that_end_in_time_the_best_is_said() -> None:
    candidates = [[2, 3, 4, 5, 6, TAG], [7, 8, TAG], [8, 7, 8, TAG]]
    engine = Known(candidates, [-1.0] * 10, [-1.0] * 10)
    engine.logs[True][2:6] = [-0.1] * 4
    start = Candidates([9, TAG], [8, TAG], [EOS, TAG])
    assert start.best(engine, Sampling(), 3) == candidates[0]  # type: ignore[arg-type]
    assert start.best(engine, Sampling(), 3, lambda tokens: len(tokens) < 6) in candidates[1:]  # type: ignore[arg-type]
    assert start.best(engine, Sampling(), 3, lambda tokens: len(tokens) < 4) == candidates[1]  # type: ignore[arg-type]
    assert start.best(engine, Sampling(), 3, lambda tokens: False) == []  # type: ignore[arg-type]


def test_replies_of_chosen_sentences(bundle: Bundle, engine: Engine, prompt: Prompt) -> None:
    """In the language asked for, the same for a seed, never longer than asked, whole where there is time."""
    vocabulary = bundle.vocabulary
    tag = vocabulary.tag_ids["fr"]

    def reply(seed: int, most: int = 120, seconds: float = 60.0) -> list[int]:
        sampling = Sampling(temperature=1.0, max_tokens=most, seed=seed)
        time = Time(seconds, lambda ids, language: len(ids) / 10.0, 0.2)
        steps = continue_prompt(prompt, "fr", engine, vocabulary, sampling, bundle.context, None, 3, time)
        return [step.token for step in steps]

    replies = [reply(seed) for seed in range(3)]
    assert replies[0] == reply(0)
    assert replies[0] != replies[1]
    for tokens in replies:
        assert 4 <= len(tokens) <= 120
        assert not {vocabulary.bos_id, vocabulary.eos_id, vocabulary.tag_ids["en"]} & {*tokens}
    for seconds in (0.5, 3.0, 6.0):
        for seed in range(3):
            lasts = [
                sum(len(vocabulary.token_units(token)) for token in sentence) / 10.0
                for sentence in split(reply(seed, 120, seconds), tag)
            ]
            spoken = sum(lasts) + 0.2 * (len(lasts) - 1)
            assert spoken <= seconds + 1e-9 or len(lasts) == 1  # the first sentence is always said
    for most in (1, 2, 3, 5, 9):  # a last sentence may have fewer tokens left than a sentence needs
        assert len(reply(0, most)) <= most


def test_sentences_that_nobody_waits_for_are_chosen_of_more(bundle: Bundle, prompt: Prompt) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=120, min_tokens=100, seed=2)
    for to in ("fr", ("en", "fr")):
        with mock.patch.object(bundle.engine, "propose", wraps=bundle.engine.propose) as propose:
            list(continue_prompt(prompt, to, bundle.engine, bundle.vocabulary, sampling, bundle.context, None, 2))
        counts = [call.args[2] for call in propose.call_args_list]
        assert len(counts) > 1
        assert counts == [2, *[2 * LATER] * (len(counts) - 1)]


def test_sentences_are_chosen_in_turns_and_beyond_the_context(bundle: Bundle, prompt: Prompt) -> None:
    """Languages take turns; a small context makes the story slide, and nothing else."""
    sampling = Sampling(temperature=1.0, max_tokens=200, min_tokens=150, seed=2)
    vocabulary = bundle.vocabulary
    for context in (64, bundle.context):
        steps = list(continue_prompt(prompt, ("en", "fr"), bundle.engine, vocabulary, sampling, context, None, 3))
        spoken = [step.language for step in steps if step.boundary]
        assert spoken == [("en", "fr")[(number + 1) % 2] for number in range(len(spoken))]
        assert len(steps) <= 200
        assert len(spoken) > 1


def test_the_bundle_says_how_many(bundle: Bundle, prompt: Prompt) -> None:
    """One for the shipped bundle, so that its replies stay as they are; settings may ask for others, within bounds."""

    def tokens(candidates: int | None) -> list[int]:
        asked = ReplySettings(("en",), seed=1, max_seconds=3.0, candidates=candidates)
        return [unit for chunk in bundle.reply(prompt, asked) for unit in chunk.units.ids.tolist()]

    assert bundle.candidates == 1
    assert tokens(None) == tokens(1)
    assert tokens(6) == tokens(6)
    for wrong in (0, 65):
        with pytest.raises(TresseError, match="between 1 and 64"):
            replace(ReplySettings(("en",)), candidates=wrong).check(bundle.languages, bundle.speakers)
