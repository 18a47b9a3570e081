"""The context is never exceeded, and is used: prompts keep their ends, replies get the room that they can need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from slm.bundle import Bundle
from slm.continuation import (
    Prompt,
    Sentence,
    continue_prompt,
    expected_tokens,
    fitting,
    kept_free,
    most_tokens,
    prompt_tokens,
    understand,
)
from slm.engines import CTranslate2Engine, Engine, Sampling, TorchEngine
from slm.settings import ReplySettings
from slm.units import Units, UnitVocabulary
from tests.conftest import spoken_beginning

UNITS = 30
CONTEXT = 48
LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=6)


def vocabulary(tags: bool = True) -> UnitVocabulary:
    words = UnitVocabulary.train([], codebook_size=UNITS, languages=["en", "fr"], vocab_size=None)
    return words.with_tags(tags)


def story_of(lengths: Sequence[int], run: int = 1) -> list[Sentence]:
    """Sentences of so many units, each `run` frames long, by turns in English and French."""
    rng = np.random.default_rng(sum(lengths))
    return [
        Sentence(Units(rng.integers(0, UNITS, length), np.full(length, run), 50.0), ("en", "fr")[k % 2])
        for k, length in enumerate(lengths)
    ]


class Scripted:
    """An engine that draws a boundary every `sentence` tokens, ends after `total`, and keeps what it was given."""

    def __init__(self, words: UnitVocabulary, sentence: int, total: int) -> None:
        self.words, self.sentence, self.total = words, sentence, total
        self.asked: list[tuple[tuple[int, ...], Sampling]] = []
        self.scored: list[list[int]] = []
        self.drawn = 0

    def generate(self, tokens: Sequence[int], sampling: Sampling) -> Iterator[int]:
        self.asked.append((tuple(tokens), sampling))
        tags = [tag for tag in self.words.tag_ids.values() if tag not in sampling.banned]
        for _ in range(sampling.max_tokens):
            if self.drawn == self.total:
                return
            self.drawn += 1
            yield tags[0] if tags and self.drawn % self.sentence == 0 else self.drawn % UNITS

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.scored = [list(tokens) for tokens in sequences]
        return [-np.arange(1.0, len(tokens)) for tokens in sequences]


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, context=st.integers(4, 300), before=LENGTHS, tags=st.booleans())
def test_what_is_scored_of_a_prompt_fits_and_is_its_end(
    lengths: list[int], context: int, before: list[int], tags: bool
) -> None:
    words = vocabulary(tags)
    said = [sentence.units for sentence in story_of(lengths)]
    engine = Scripted(words, 1, 0)
    language, _ = understand(said, engine, words, story_of(before), context=context)
    assert language == ("en" if tags else "")
    heard = np.concatenate([sentence.units.ids for sentence in story_of(before)] + [units.ids for units in said])
    for tokens in engine.scored:
        assert 2 <= len(tokens) <= context
        kept = words.decode(tokens)
        assert np.array_equal(kept, heard[len(heard) - len(kept) :])
    assert len(engine.scored) == (2 if tags else 1)
    if sum(lengths) + len(lengths) < context:
        assert len(kept) >= sum(lengths)


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, room=st.integers(2, 300), tags=st.booleans())
def test_a_last_sentence_that_is_too_long_keeps_its_end(lengths: list[int], room: int, tags: bool) -> None:
    words, story = vocabulary(tags), story_of(lengths)
    kept = fitting(story, words, room)
    assert 0 < sum(map(len, kept)) <= room
    if lengths[-1] + tags > room:
        assert [len(tokens) for tokens in kept] == [room]
    heard = np.concatenate([sentence.units.ids for sentence in story])
    decoded = np.concatenate([words.decode(tokens) for tokens in kept])
    assert np.array_equal(decoded, heard[len(heard) - len(decoded) :])
    if tags:
        assert [tokens[0] for tokens in kept] == [words.tag_ids[s.language] for s in story[len(story) - len(kept) :]]


@settings(deadline=None, max_examples=300)
@given(
    lengths=LENGTHS,
    context=st.integers(8, 200),
    max_tokens=st.integers(1, 400),
    total=st.integers(0, 500),
    expected=st.none() | st.integers(1, 400),
    tags=st.booleans(),
    to=st.sampled_from([["en"], ["fr"], ["fr", "en"]]),
)
def test_a_reply_is_as_long_as_it_may_be_and_never_leaves_the_context(
    lengths: list[int], context: int, max_tokens: int, total: int, expected: int | None, tags: bool, to: list[str]
) -> None:
    to = to if tags else to[:1]
    words, story = vocabulary(tags), story_of(lengths)
    prompt = Prompt([story[-1].units], story[-1].language, 1.0, tuple(story[:-1]))
    engine = Scripted(words, 7, total)
    sampling = Sampling(max_tokens=max_tokens)
    drawn = [step.token for step in continue_prompt(prompt, to, engine, words, sampling, context, expected)]
    assert len(drawn) == min(max_tokens, total)
    first, turn = engine.asked[0]
    free = kept_free(context, max_tokens, max_tokens if expected is None else expected)
    assert list(first) == prompt_tokens(prompt, to[0], words, context - free)
    assert turn.max_tokens >= free
    everything = np.concatenate([*(sentence.units.ids for sentence in story), words.decode(drawn)])
    for tokens, turn in engine.asked:
        assert tokens[0] == words.bos_id
        assert 1 <= turn.max_tokens <= context - len(tokens)
        assert len(words.decode(tokens)) > 0  # something to go on from, however small the context
    assert len(engine.asked) <= 2 + len(drawn) * (8 / context + len(to) / 7)  # not computed anew for each token
    last = words.decode(engine.asked[-1][0])
    done = len(drawn) - sum(turn.max_tokens for _, turn in engine.asked[-1:])
    if total >= max_tokens and len(to) == 1:
        before = len(everything) - len(words.decode(drawn[max(0, done) :]))
        assert np.array_equal(last, everything[before - len(last) : before])


def test_a_prompt_longer_than_the_context_is_understood_and_continued_by_models_with_learnt_positions() -> None:
    """OPT and GPT-2 have no position behind their last one."""
    words = vocabulary()
    torch.manual_seed(0)
    shape = {"vocab_size": len(words), "bos_token_id": words.bos_id, "eos_token_id": words.eos_id}
    models = [
        OPTForCausalLM(
            OPTConfig(
                **shape,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                ffn_dim=32,
                word_embed_proj_dim=32,
                max_position_embeddings=CONTEXT,
            )
        ),
        GPT2LMHeadModel(GPT2Config(**shape, n_embd=32, n_layer=1, n_head=2, n_positions=CONTEXT)),
    ]
    said = [sentence.units for sentence in story_of([200, 90])]
    for model in models:
        engine: Engine = TorchEngine(model, words)
        language, _ = understand(said, engine, words, story_of([60]), context=CONTEXT)
        assert language in words.languages
        prompt = Prompt(said, language, 5.8)
        for max_tokens in (10, CONTEXT, 3 * CONTEXT):
            sampling = Sampling(max_tokens=max_tokens, min_tokens=max_tokens)
            assert len(list(continue_prompt(prompt, "fr", engine, words, sampling, CONTEXT))) == max_tokens


def test_ctranslate2_goes_on_beyond_the_context_too(bundle: Bundle) -> None:
    engine = bundle.engine
    assert isinstance(engine, CTranslate2Engine)
    prompt = bundle.prompt(spoken_beginning("en"), 16000)
    sampling = Sampling(max_tokens=90, min_tokens=90)
    assert len(list(continue_prompt(prompt, "fr", engine, bundle.vocabulary, sampling, 64))) == 90
    short = list(continue_prompt(prompt, "fr", engine, bundle.vocabulary, Sampling(max_tokens=20), 1024))
    longer = list(continue_prompt(prompt, "fr", engine, bundle.vocabulary, Sampling(max_tokens=700), 1024))
    assert [step.token for step in longer[: len(short)]] == [step.token for step in short]


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, run=st.integers(1, 12), seconds=st.floats(0.5, 60.0))
def test_the_room_for_a_reply_follows_from_how_fast_its_story_is_told(
    lengths: list[int], run: int, seconds: float
) -> None:
    words, story = vocabulary(), story_of(lengths, run)
    expected = expected_tokens(story, words, seconds, 50.0, CONTEXT)
    rates = [(1 + len(sentence.units)) / sentence.units.seconds for sentence in story]
    assert expected <= most_tokens(seconds, 50.0)
    assert min(most_tokens(seconds, 50.0), seconds * min(rates)) <= expected <= 1.5 * seconds * max(rates) + 1
    assert expected_tokens([], words, seconds, 50.0, CONTEXT) == most_tokens(seconds, 50.0)


@pytest.mark.parametrize("number", range(6))
def test_a_reply_of_the_shipped_bundle_takes_no_more_than_was_kept_free(bundle: Bundle, number: int) -> None:
    """12 s, of which most of the context used to be kept free: 512 of 1,024."""
    from slm.audio import read_audio

    prompt = bundle.prompt(*read_audio(bundle.examples[number].path))
    used, limit, forgotten = bundle.context_use(prompt.story, 12.0)
    assert (used, forgotten) == (sum(map(len, fitting(prompt.story, bundle.vocabulary, 1000))), 0)
    assert limit > 0.8 * bundle.context
    to = bundle.languages[number % 2]
    chunks = list(bundle.reply(prompt, ReplySettings((to,), number, temperature=1.2, max_seconds=12.0)))
    assert 20 < chunks[-1].tokens <= bundle.context - limit


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "{", "[]"])
def test_a_model_that_does_not_say_its_context_is_named(bundle: Bundle, tmp_path: Path, text: str) -> None:
    import shutil

    from slm.errors import TresseError

    shutil.copytree(bundle.path, tmp_path / "bundle")
    (tmp_path / "bundle" / "slm" / "config.json").write_text(text)
    with pytest.raises(TresseError, match=r"config\.json"):
        Bundle.load(tmp_path / "bundle", device="cpu")


@pytest.mark.parametrize("collapse", [True, False])
def test_the_unit_of_silence_is_its_commonest_frame(collapse: bool) -> None:
    """Without collapsing all runs are of one frame: the first used to be taken, which is part of the beginning."""

    class Frames:
        sample_rate = 16000

        def encode(self, waveform: np.ndarray, sample_rate: int) -> Units:
            return Units.from_frames(np.array([3, 4, *[5] * 46, 4, 3]), 50.0, collapse)

    bundle = object.__new__(Bundle)
    bundle.units = Frames()  # type: ignore[assignment]
    assert bundle.silence == 5
