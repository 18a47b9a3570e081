"""The shipped bundle is what the README says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.bundle import SHIPPED, Bundle
from slm.units import load_encoder
from train.evaluate.cloze import evaluate_cloze, markdown_table
from train.evaluate.units import measure, speak_panel
from train.recipe import Recipe
from train.speech import Voices
from train.stories.cloze import read_items
from train.stories.grammar import distinct_sentences, generate_stories

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_states_the_measured_figures(bundle: Bundle) -> None:
    text = README.read_text(encoding="utf-8")
    assert markdown_table(bundle.info["metrics"]["cloze"]) in text
    assert markdown_table(bundle.info["metrics"]["cloze"]) in (SHIPPED / "README.md").read_text(encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) / 1e6
    assert f"{megabytes:.0f} MB" in text
    assert megabytes < 40


def test_its_origin_is_known(bundle: Bundle) -> None:
    recipe = Recipe.load("tiny")
    assert bundle.info["provenance"]["commit"]
    assert bundle.info["provenance"]["recipe"] == recipe.name
    assert bundle.info["provenance"]["seed"] == recipe.seed
    assert bundle.info["provenance"]["stories"] == recipe.stories.train
    assert bundle.info["languages"] == list(recipe.languages)
    assert sum(bundle.info["provenance"]["training_seconds"].values()) < 2 * 3600


def test_topics_cross_languages(bundle: Bundle, tmp_path: Path) -> None:
    """A small part of the benchmark of its release, computed anew from the weights, in a voice that no training heard."""
    items = list(read_items(Path(__file__).with_name("shipped_topics.jsonl")))
    results = evaluate_cloze(bundle, items, out=tmp_path, voices={"en": "zoe", "fr": "zoe"})
    for cell in ("en>fr", "fr>en"):
        assert results["cells"][cell]["topic"]["n"] == 30
        assert results["cells"][cell]["topic"]["accuracy"] > 0.6
    for cell in results["controls"]["without_context"]["cells"].values():
        assert cell["topic"]["accuracy"] == pytest.approx(0.5)
    assert results["problems"] == []


def test_the_next_bundles_units_hear_words_not_voices() -> None:
    """A small part of `slm/units/README.md`, measured anew: held-out sentences in voices that no training heard."""
    encoder = load_encoder(SHIPPED.parent / "braid" / "units")
    sentences = distinct_sentences(generate_stories(0, 40, "validation"), ["en", "fr"], 6)
    speech = speak_panel(sentences, Voices.load(), voices_per_group=3, changes={})
    for (_, group), row in measure(encoder, speech).items():
        assert row["edit_rate"]["mean"] < {"training": 0.12, "held_out": 0.26}[group]
        assert row["pnmi"] > 0.75  # few sentences flatter it
