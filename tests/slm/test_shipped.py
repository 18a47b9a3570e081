"""The shipped bundle is what the README says it is: its figures were measured, and small parts of them come again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slm.bundle import Bundle
from slm.errors import TresseError
from slm.model import BUNDLES
from slm.recognisers import open_recogniser
from slm.settings import ReplySettings
from slm.units import load_encoder
from tests.bundles import BRAID
from tests.conftest import spoken_beginning
from tests.tiny_encoders import check_streaming
from train.evaluate.cloze.evaluation import evaluate_cloze
from train.evaluate.cloze.protocol import HEADLINE, value_of
from train.evaluate.cloze.results import read_scores
from train.evaluate.recogniser import evaluate_recogniser
from train.evaluate.units import measure, speak_panel
from train.publish.figures import figures
from train.recipe import Recipe
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.stories.cloze_items import BENCHMARK_ITEMS, make_items
from train.stories.grammar import distinct_sentences, generate_stories
from train.stories.held_out import held_out_sentences

README = Path(__file__).parents[2] / "README.md"
RESULTS = README.parent / "measured" / "results.md"
STRANGE = (
    "The quarterly report shows that revenue grew by seven percent.",
    "Yesterday the parliament voted on a new law about fisheries.",
    "To be or not to be, that is the question.",
    "Four score and seven years ago our fathers brought forth a new nation.",
)


def test_the_readme_states_the_measured_figures(bundle: Bundle) -> None:
    tables = figures(bundle.info["metrics"])
    for page in (RESULTS, BRAID / "README.md"):
        assert tables in page.read_text(encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in BRAID.rglob("*") if path.is_file()) / 1e6
    assert f"{megabytes:.0f} MB" in README.read_text(encoding="utf-8")
    assert megabytes < 40
    assert sum(path.stat().st_size for path in (BRAID / "asr").iterdir()) < 12e6


def test_its_origin_is_known(bundle: Bundle) -> None:
    made = bundle.info["provenance"]
    for one, name in ((made, "braid-more"), (made["warm_start"], "braid")):
        recipe = Recipe.load(name)
        assert one["commit"]
        assert (one["recipe"], one["seed"], one["stories"]) == (recipe.name, recipe.seed, recipe.stories.train)
        assert bundle.info["languages"] == list(recipe.languages)


def test_the_scores_of_its_first_items_come_again(bundle: Bundle, tmp_path: Path) -> None:
    """The first cloze items of the report, spoken, encoded and scored anew, in the same voices."""
    kept = {
        (one.item, one.group, one.pairing, one.context, one.ending): one
        for one in read_scores(BRAID / "evaluation" / "scores.jsonl")
    }
    names = {item for item, *_ in kept}
    items = [item for item in make_items(1, BENCHMARK_ITEMS, "test") if item.id in names]
    assert len(items) == len(names) == 8
    results = evaluate_cloze(bundle, items, out=tmp_path)
    assert results["problems"] == []
    again = read_scores(tmp_path / "scores.jsonl")
    assert len(again) == len(kept)
    differences = []
    for one in again:
        other = kept[one.item, one.group, one.pairing, one.context, one.ending]
        differences += [
            abs(value_of(score, HEADLINE) - value_of(before, HEADLINE))
            for score, before in ((one.right, other.right), (one.wrong, other.wrong))
        ]
    assert np.mean(np.array(differences) < 0.01) > 0.9  # another processor may round a unit elsewhere


@pytest.mark.parametrize("name", sorted(path.parent.name for path in BUNDLES.glob("*/bundle.json")))
def test_every_shipped_bundle_goes_on_by_its_name(name: str) -> None:
    """With a synthetic voice that all encoders heard: understood, and gone on with in both languages by every speaker."""
    bundle = Bundle.load(name)
    assert bundle.info["name"] == name
    voices = Voices.load()
    for language, text in (("en", "The little dog was in the garden."), ("fr", "Le petit chien était dans le jardin.")):
        prompt = speak(text, language, voices.speaker(voices.reference), voices)
        understood = bundle.prompt(prompt, SAMPLE_RATE)
        assert (understood.language, understood.in_domain) == (language, True)
        for speaker, to in zip(bundle.speakers, ("fr", "en"), strict=False):
            chunks = list(bundle.continue_speech(prompt, SAMPLE_RATE, to=to, speaker=speaker, max_seconds=3.0))
            reply = np.concatenate([chunk.audio for chunk in chunks])
            assert len(reply) > bundle.sample_rate / 2
            assert np.isfinite(reply).all()
            assert 0.01 < np.sqrt(np.mean(np.square(reply))) < 0.3
            assert np.abs(reply).max() < 1.0
    with pytest.raises(TresseError, match=name):
        Bundle.load(f"{name}-that-is-not-there")


def test_its_ears_hear_what_the_readme_says(bundle: Bundle) -> None:
    stated = bundle.info["metrics"]["recogniser"]
    ears = open_recogniser(BRAID, bundle.languages)
    sentences = held_out_sentences(bundle.info, bundle.languages, 8)
    found = evaluate_recogniser(ears, sentences, Voices.load())
    for group, rates in stated["word_error"].items():
        for language, rate in rates.items():
            assert found["word_error"][group][language] < rate + 0.1
        assert found["language"][group] > 0.9


@pytest.mark.parametrize(("told", "asked"), [("en", "fr"), ("fr", "en")])
def test_a_continuation_is_in_the_language_asked_for(bundle: Bundle, told: str, asked: str) -> None:
    example = next(one for one in bundle.examples if one.language == told)
    from slm.audio import read_audio

    waveform, rate = read_audio(example.path)
    chunks = list(bundle.continue_speech(waveform, rate, to=asked, seed=1, max_seconds=8.0))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    assert len(audio) > 2 * SAMPLE_RATE
    heard = open_recogniser(BRAID, bundle.languages).transcribe(audio, bundle.sample_rate)
    assert heard.language == asked
    assert len(heard.text.split()) > 4


def test_what_it_cannot_make_out_it_does_not_imitate(bundle: Bundle) -> None:
    """Sentences of another world: told to go on from them all the same, it speaks less clearly than of itself."""
    panel, ears = Voices.load(), open_recogniser(BRAID, bundle.languages)
    own, imitated = [], []
    for number, text in enumerate(STRANGE):
        prompt = bundle.prompt(speak(text, "en", panel.speaker("zoe"), panel), SAMPLE_RATE)
        assert not prompt.in_domain
        for asked, heard in ((prompt, own), (replace(prompt, in_domain=True), imitated)):
            for to in bundle.languages:
                chunks = list(bundle.reply(asked, ReplySettings((to,), number, max_seconds=6.0)))
                audio = np.concatenate([chunk.audio for chunk in chunks])
                heard.append(ears.transcribe(audio, bundle.sample_rate).confidence)
    assert np.mean(own) > np.mean(imitated) + 0.05


def test_its_units_hear_words_not_voices(bundle: Bundle) -> None:
    """A small part of `slm/units/README.md`, measured anew: held-out sentences in voices that no training heard."""
    sentences = distinct_sentences(generate_stories(0, 40, "validation"), ["en", "fr"], 6)
    speech = speak_panel(sentences, Voices.load(), voices_per_group=3, changes={})
    for (_, group), row in measure(bundle.units, speech).items():
        assert row["edit_rate"]["mean"] < {"training": 0.12, "held_out": 0.26}[group]
        assert row["pnmi"] > 0.75  # few sentences flatter it


def test_natural_is_as_large_as_the_readme_says() -> None:
    megabytes = sum(path.stat().st_size for path in (BUNDLES / "natural").rglob("*") if path.is_file()) / 1e6
    assert f"It has {megabytes:.0f} MB." in README.read_text(encoding="utf-8")
    assert megabytes < 40


def test_natural_names_speech_as_it_arrives_as_it_names_it_at_once() -> None:
    encoder = load_encoder(BUNDLES / "natural" / "units")
    speech = spoken_beginning("fr", "zoe")[: 4 * SAMPLE_RATE]
    for size in (1_000, 7_777):
        check_streaming(encoder, speech, [size] * (len(speech) // size + 1))
    short, whole = encoder.encode_batch([speech[:20_000], speech])
    assert np.array_equal(short.frames(), encoder.encode(speech[:20_000], SAMPLE_RATE).frames())
    assert np.array_equal(whole.frames(), encoder.encode(speech, SAMPLE_RATE).frames())
