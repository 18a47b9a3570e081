"""From prompt to continuation: reproducible, in the language asked for, and never mixed up between users."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.audio import read_audio
from slm.bundle import Bundle
from slm.continuation import LOOK_BACK, MARGIN, Prompt, continue_prompt, prompt_tokens, understand
from slm.engines import CTranslate2Engine, Engine, Sampling, TorchEngine
from slm.errors import TresseError
from slm.settings import ReplySettings
from slm.speaking import Chunk
from slm.units import Units, UnitVocabulary
from slm.voice_activity import speech_segments
from tests.conftest import spoken_beginning
from train.speech.voices import Voices, speak
from train.stories.grammar import generate_stories
from train.stories.written_cloze import splits


@pytest.fixture(scope="module", params=["ctranslate2", "torch"])
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Engine:
    if request.param == "torch":
        return TorchEngine(bundle.language_model, bundle.vocabulary)
    return bundle.engine


@pytest.fixture(scope="module")
def prompt(bundle: Bundle) -> Prompt:
    return bundle.prompt(spoken_beginning("fr"), 16000)


def test_the_default_engine_on_a_cpu_is_ctranslate2(bundle: Bundle) -> None:
    assert isinstance(bundle.engine, CTranslate2Engine)


def test_prompts_are_cut_into_sentences_at_pauses(bundle: Bundle) -> None:
    for language in ("en", "fr"):
        waveform = spoken_beginning(language)
        prompt = bundle.prompt(waveform, 16000)
        assert len(prompt.sentences) == 2
        assert prompt.seconds == pytest.approx(len(waveform) / 16000)
        assert sum(sentence.seconds for sentence in prompt.sentences) < prompt.seconds
        (_, end), (start, _) = speech_segments(waveform, 16000)
        assert 0.2 < start - end < 0.6


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("speaker", ["zoe", "boris", "anouk"])
def test_the_prompt_language_is_heard(bundle: Bundle, language: str, speaker: str) -> None:
    prompt = bundle.prompt(spoken_beginning(language, speaker), 16000)
    assert (prompt.language, prompt.in_domain) == (language, True)


def test_what_is_likelier_than_chance_is_in_domain(bundle: Bundle) -> None:
    """Units drawn blindly are not, nor is a sentence of another topic; and the reply is that to nothing at all."""
    rng = np.random.default_rng(0)
    for length in (3, 10, 40, 200):
        ids = rng.integers(0, bundle.units.codebook_size, length)
        noise = Units(ids, rng.integers(1, 8, length), bundle.units.frame_rate)
        assert not understand([noise, noise], bundle.engine, bundle.vocabulary, context=bundle.context)[1]
    panel = Voices.load()
    story = bundle.prompt(spoken_beginning("fr", "zoe"), 16000)
    text = "The quarterly report shows that revenue grew by seven percent."
    prompt = bundle.prompt(speak(text, "en", panel.speaker("basile"), panel), 16000, before=story.story)
    assert not prompt.in_domain
    assert prompt.sentences
    assert prompt.story == story.story  # of the story only what was said before
    again = replace(prompt, sentences=[])
    drawn = [
        [chunk.units.ids.tolist() for chunk in bundle.reply(asked, ReplySettings(("en",), max_seconds=2.0))]
        for asked in (prompt, again)
    ]
    assert drawn[0] == drawn[1]


class Guessing:
    """An engine for which every token has the same likelihood."""

    def __init__(self, likelihood: float) -> None:
        self.likelihood = likelihood

    def score(self, sequences: list[list[int]]) -> list[np.ndarray]:
        return [np.full(len(tokens) - 1, self.likelihood) for tokens in sequences]


@settings(deadline=None, max_examples=100)
@given(
    ids=st.lists(st.integers(0, 7), min_size=1, max_size=60),
    weights=st.lists(st.floats(0.01, 1.0), min_size=8, max_size=8),
    likelihood=st.floats(-12.0, -0.01),
    tags=st.booleans(),
)
def test_what_is_likelier_than_its_units_one_by_one_is_in_domain(
    ids: list[int], weights: list[float], likelihood: float, tags: bool
) -> None:
    words = UnitVocabulary.train([], codebook_size=8, languages=["en", "fr"], vocab_size=None).with_tags(tags)
    spoken = (np.array(weights) / sum(weights)).tolist()
    sentence = Units(np.array(ids), np.ones(len(ids), np.int64), 50.0)
    engine: Any = Guessing(likelihood)
    _, in_domain = understand([sentence], engine, words, context=200, shares={"en": spoken, "fr": spoken})
    drawn = float(np.log(spoken)[ids].sum())
    if abs(likelihood * len(ids) - drawn - MARGIN * len(ids)) > 1e-6:
        assert in_domain == (likelihood * len(ids) > drawn + MARGIN * len(ids))


def test_speech_backwards_is_out_of_domain() -> None:
    """The bundle that people talk with: sentences of stories are in domain, in a voice that nothing was trained on; the
    same recordings backwards are phones that follow each other as in no language."""
    bundle, panel = Bundle.load("natural", device="cpu"), Voices.load()
    told = [story.sentences["en"] for story in splits()["test"][:400:50]]
    spoken = [speak(" ".join(sentences[:2]), "en", panel.speaker("zoe"), panel) for sentences in told]
    forwards = [bundle.prompt(waveform, 16000).in_domain for waveform in spoken]
    backwards = [bundle.prompt(waveform[::-1].copy(), 16000).in_domain for waveform in spoken]
    assert sum(forwards) >= 7
    assert sum(backwards) <= 1


def test_a_further_prompt_is_understood_with_the_story_so_far(bundle: Bundle) -> None:
    """Four sentences of a story, the last of them alone: likelier, in the same language, after what was told before."""
    panel = Voices.load()
    scored: list[list[list[int]]] = []

    class Listening:
        def score(self, sequences: list[list[int]]) -> list[np.ndarray]:
            scored.append(sequences)
            return bundle.engine.score(sequences)

    engine: Any = Listening()
    for number, story in enumerate(generate_stories(3, 4, "test")):
        language = ("en", "fr")[number % 2]
        spoken = [speak(text, language, panel.speaker("boris"), panel) for text in story.sentences[language][:4]]
        before = [one for waveform in spoken[:3] for one in bundle.prompt(waveform, 16000).said]
        sentences = bundle.prompt(spoken[3], 16000).sentences
        assert understand(sentences, engine, bundle.vocabulary, before, context=bundle.context) == (language, True)
        alone = bundle.vocabulary.sequence([(language, one.ids) for one in sentences])
        place = bundle.languages.index(language)
        assert scored[-1][place][-len(alone) + 1 :] == alone[1:]
        assert len(alone) < len(scored[-1][place]) <= len(alone) + LOOK_BACK
        (cold,) = bundle.engine.score([alone])
        (warm,) = bundle.engine.score([scored[-1][place]])
        assert warm[-len(alone) + 2 :].mean() > cold[1:].mean()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 80), min_size=1, max_size=8), limit=st.integers(8, 200))
def test_long_prompts_lose_their_oldest_sentences(bundle: Bundle, lengths: list[int], limit: int) -> None:
    vocabulary = bundle.vocabulary
    rng = np.random.default_rng(sum(lengths))
    sentences = [
        Units.from_frames(rng.integers(0, bundle.units.codebook_size, length), bundle.units.frame_rate)
        for length in lengths
    ]
    tokens = prompt_tokens(Prompt(sentences, "en", 1.0), "fr", vocabulary, limit)
    assert len(tokens) <= limit
    assert tokens[0] == vocabulary.bos_id
    assert tokens[-1] == vocabulary.tag_ids["fr"]
    assert tokens[1] == vocabulary.tag_ids["en"]
    heard = np.concatenate([sentence.ids for sentence in sentences])
    kept = vocabulary.decode(tokens)
    if len(kept) < len(heard) and tokens.count(vocabulary.tag_ids["en"]) > 1:
        assert np.array_equal(kept, heard[len(heard) - len(kept) :])


@pytest.mark.parametrize("to", ["en", "fr"])
def test_every_sentence_is_in_the_language_asked_for(bundle: Bundle, engine: Engine, prompt: Prompt, to: str) -> None:
    other = bundle.vocabulary.tag_ids["fr" if to == "en" else "en"]
    for seed in range(3):
        sampling = Sampling(temperature=1.2, top_p=1.0, max_tokens=80, seed=seed)
        tokens = [s.token for s in continue_prompt(prompt, to, engine, bundle.vocabulary, sampling, bundle.context)]
        assert tokens
        assert other not in tokens
        assert bundle.vocabulary.bos_id not in tokens
        assert bundle.vocabulary.eos_id not in tokens


def test_seeds_decide(bundle: Bundle, engine: Engine, prompt: Prompt) -> None:
    def tokens(seed: int, temperature: float = 1.0) -> list[int]:
        sampling = Sampling(temperature=temperature, top_p=1.0, max_tokens=30, seed=seed)
        return [s.token for s in continue_prompt(prompt, "en", engine, bundle.vocabulary, sampling, bundle.context)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(1, 0.0) == tokens(2, 0.0)


def test_engines_agree_on_likelihoods(bundle: Bundle, prompt: Prompt) -> None:
    """int8 against float32: close, token by token on average."""
    tokens = bundle.vocabulary.sequence([("fr", sentence.ids) for sentence in prompt.sentences])
    (fast,) = bundle.engine.score([tokens])
    (exact,) = TorchEngine(bundle.language_model, bundle.vocabulary).score([tokens])
    assert fast.shape == exact.shape == (len(tokens) - 1,)
    assert abs(fast.mean() - exact.mean()) < 0.1


def test_users_at_the_same_time_get_what_they_would_get_alone(bundle: Bundle) -> None:
    prompts = {language: spoken_beginning(language) for language in ("en", "fr")}
    requests = [(language, to, seed) for seed in (1, 2) for language in prompts for to in prompts]

    def reply(request: tuple[str, str, int]) -> tuple[list[int], np.ndarray]:
        language, to, seed = request
        chunks = list(bundle.continue_speech(prompts[language], 16000, to=to, seed=seed, max_seconds=3.0))
        ids = np.concatenate([chunk.units.ids for chunk in chunks])
        return ids.tolist(), np.concatenate([chunk.audio for chunk in chunks])

    alone = {request: reply(request) for request in requests}
    together: dict[tuple[str, str, int], tuple[list[int], np.ndarray]] = {}
    threads = [
        threading.Thread(target=lambda request=request: together.update({request: reply(request)}))
        for request in requests
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request, (ids, audio) in alone.items():
        assert together[request][0] == ids
        assert together[request][1] == pytest.approx(audio, abs=1e-5)  # sums may be taken in another order


def test_chunks_tell_the_truth(bundle: Bundle) -> None:
    chunks: list[Chunk] = list(bundle.continue_speech(spoken_beginning("en"), 16000, to="fr", seed=3, max_seconds=20.0))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    units = Units.concatenate([chunk.units for chunk in chunks])
    assert len(chunks) > 5
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() <= 1.0
    assert [chunk.elapsed for chunk in chunks] == sorted(chunk.elapsed for chunk in chunks)
    assert [chunk.tokens for chunk in chunks] == sorted(chunk.tokens for chunk in chunks)
    assert {chunk.prompt.language for chunk in chunks} == {"en"}
    if len(audio) < 20.0 * bundle.sample_rate:  # nothing was cut off: the sound is that of these units, spoken offline
        sentence = np.concatenate([chunk.sentence for chunk in chunks])
        begins = np.r_[True, (sentence[1:] >= 0) & (sentence[:-1] < 0)]
        stream = bundle.vocoder.stream()
        again = stream.push(units.ids, units.run_lengths, "fr", begins=begins.tolist(), final=True)
        assert len(again) == len(audio)
        assert np.abs(again - audio).max() < 1e-4


def test_max_seconds_holds_and_speakers_differ(bundle: Bundle) -> None:
    def reply(speaker: str) -> np.ndarray:
        chunks = bundle.continue_speech(
            spoken_beginning("en"), 16000, to="en", seed=1, max_seconds=2.0, speaker=speaker
        )
        return np.concatenate([chunk.audio for chunk in chunks])

    replies = [reply(speaker) for speaker in bundle.speakers]
    for audio in replies:
        assert len(audio) <= 2.0 * bundle.sample_rate
    assert not np.array_equal(*[audio[:8000] for audio in replies[:2]])


def test_stopping_early_ends_the_generation(bundle: Bundle) -> None:
    chunks = bundle.continue_speech(spoken_beginning("en"), 16000, to="en", seed=1, max_seconds=30.0)
    next(chunks)
    chunks.close()
    assert len(list(bundle.continue_speech(spoken_beginning("en"), 16000, to="en", seed=1, max_seconds=1.0))) > 0


def test_a_bundle_without_speech_in_the_prompt_says_so(bundle: Bundle) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 32000).astype(np.float32)
    with pytest.raises(TresseError, match="no speech found"):
        list(bundle.continue_speech(noise, 16000, to="en"))


def test_examples_are_spoken_in_their_language_and_were_not_trained_on(bundle: Bundle) -> None:
    from train.recipe import Recipe
    from train.stories.grammar import generate_stories

    recipe = Recipe.load("braid")
    trained = {
        " ".join(story.sentences[language][:2])
        for story in generate_stories(recipe.seed, recipe.stories.train, cycles=recipe.stories.cycles)
        for language in recipe.languages
    }
    assert {example.language for example in bundle.examples} == set(bundle.languages)
    for example in bundle.examples:
        assert example.text not in trained
        waveform, rate = read_audio(example.path)
        assert 2.0 < len(waveform) / rate < 15.0
        prompt = bundle.prompt(waveform, rate)
        assert (prompt.language, prompt.in_domain) == (example.language, True)


def test_nothing_of_a_bundle_is_pickled(bundle: Bundle) -> None:
    suffixes = {path.suffix for path in Path(bundle.path).rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".md", ".flac", ".bin", ".png"}
    assert sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()) < 40e6
