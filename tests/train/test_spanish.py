"""A third language from data alone: the recipe spanish, small, from its stories to a bundle that talks Spanish."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from demo.benchmark import Benchmark
from slm.bundle import Bundle
from slm.recognisers import open_recogniser
from tests.train.asr.tiny import PLAIN
from train.recipe import Recipe
from train.speech.voices import SAMPLE_RATE, VOICES, Voices, speak
from train.stages import run_recipe
from train.stories.grammar import read_stories
from train.stories.held_out import held_out_sentences
from train.stories.written_cloze import splits

SMALL = {
    "stories": {"words": 1000, "validation": 3, "sources": [{"file": "written", "share": 1}]},
    "units.encoder": {"codebook_size": 40, "width": 24},
    "units.training": {
        "iterations": [{"steps": 2, "clusters": 20}, {"steps": 2}],
        "sentences_per_language": 4,
        "batch_size": 4,
        "segment_frames": 64,
        "voices_per_sentence": 1,
    },
    "vocabulary.size": 120,
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "max_position": 512},
    "slm": {
        "stages": [{"mode": ["interleaved", "mixed"], "share": 1.0}],
        "steps": 6,
        "batch_rows": 2,
        "row_length": 256,
        "micro_rows": 2,
        "warmup": 2,
    },
    "vocoder": {
        "sentences_per_language": 4,
        "size": {"dim": 32, "intermediate_dim": 48, "dilations": [1, 1]},
        "training": {"steps": 4, "batch_size": 2, "validation_clips": 2, "sample_every": 100},
    },
    "asr": {
        "sentences_per_language": 5,
        "training": {
            "steps": 3,
            "model": {"width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "vocabulary": 300},
            "pool": {"utterances": 6, "scrambled": 0.0, "recorded": 0.0, "resynthesised": 0.0},
            "clips": {"batch": PLAIN.batch, "block": PLAIN.block},
            "warmup": 1,
            "ctc": 0.3,
            "precision": "no",
            "device": "cpu",
        },
    },
    "bundle.examples_per_language": 1,
    "evaluation.items": 2,
}
"""A recipe of seconds: few steps of everything, a network of each kind."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the recipe with three of its voices."""
    folder = tmp_path_factory.mktemp("spanish")
    voices = yaml.safe_load((VOICES / "voices-spanish.yaml").read_text(encoding="utf-8"))
    voices["training"] = {name: voices["training"][name] for name in ("basile", "anouk", "bruno")}
    voices["held_out"] = {"zoe": voices["held_out"]["zoe"]}
    (folder / "voices-spanish.yaml").write_text(yaml.safe_dump(voices), encoding="utf-8")
    changes = {**SMALL, "voices": str(folder / "voices-spanish.yaml")}
    recipe = Recipe.load("spanish", {key: json.dumps(value) for key, value in changes.items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are quicker so
    try:
        run_recipe(recipe, folder / "run", workers=1)
    finally:
        torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture(scope="module")
def talking(out: Path) -> Bundle:
    return Bundle.load(out / "bundle", device="cpu")


@pytest.mark.parametrize(("said", "to"), [("es", "en"), ("en", "es"), ("es", "fr")])
def test_it_talks_from_and_into_spanish(talking: Bundle, said: str, to: str) -> None:
    text = {"es": "La niña encontró un perro pequeño.", "en": "The girl saw a small dog."}[said]
    voices = Voices.of(talking.info, talking.languages)
    prompt = speak(text, said, voices.speaker("zoe"), voices)
    chunks = list(talking.continue_speech(prompt, SAMPLE_RATE, to=to, seed=1, max_seconds=1.0))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    assert len(audio)
    assert np.isfinite(audio).all()


def test_its_examples_recogniser_and_items_are_in_all_three(out: Path, talking: Bundle) -> None:
    examples = json.loads((out / "bundle" / "examples" / "examples.json").read_text(encoding="utf-8"))
    assert [example["language"] for example in examples] == ["en", "es", "fr"]
    assert set(open_recogniser(talking.path, talking.languages).languages) == {"en", "fr", "es"}
    cells = talking.info["metrics"]["cloze"]["unseen_voices"]["cells"]
    assert set(cells) == {f"{said}>{to}" for said in ("en", "fr", "es") for to in ("en", "fr", "es")}
    assert {cell[kind]["n"] for cell in cells.values() for kind in ("story", "topic")} == {2}
    assert {item["cell"] for item in Benchmark(talking).items()} <= set(cells)


def test_no_story_to_test_on_is_trained_on(out: Path) -> None:
    test = {story.id for story in splits()["test"]}
    told = [*read_stories(out / "stories" / "train.jsonl"), *read_stories(out / "stories" / "validation.jsonl")]
    assert all(set(story.sentences) == {"en", "fr", "es"} for story in told)
    assert not {story.id.removeprefix("written-") for story in told} & test
    trained = {text for story in told for text in story.sentences["es"]}
    asked = held_out_sentences({}, ["es"], 40)
    assert len(asked) == 40
    assert not trained & {text for _, text in asked}


def test_the_recipe_as_it_stands_can_be_told_and_spoken() -> None:
    recipe = Recipe.load("spanish")
    recipe.check_languages()
    recipe.check_sources()
    natural = Voices.named("voices-spanish-natural.yaml")
    assert natural.languages == Voices.named(recipe.voices).languages
    assert {"kokoro", "pico"} <= {speaker.family for speaker in natural.training.values()}
