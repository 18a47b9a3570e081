"""The shipped bundle is what the README says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.bundle import SHIPPED, Bundle
from train.evaluate.cloze import evaluate_cloze, markdown_table
from train.recipe import Recipe
from train.stories.cloze import make_items

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_states_the_measured_figures(bundle: Bundle) -> None:
    text = README.read_text(encoding="utf-8")
    assert markdown_table(bundle.info["metrics"]["cloze"]) in text
    assert markdown_table(bundle.info["metrics"]["cloze"]) in (SHIPPED / "README.md").read_text(encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) / 1e6
    assert f"{megabytes:.0f} MB" in text
    assert megabytes < 40


def test_the_recipe_in_the_tree_is_the_one_it_was_made_by(bundle: Bundle) -> None:
    recipe = Recipe.load("tiny")
    assert bundle.info["provenance"]["recipe"] == recipe.name
    assert bundle.info["provenance"]["seed"] == recipe.seed
    assert bundle.info["provenance"]["stories"] == recipe.stories.train
    assert bundle.info["languages"] == list(recipe.languages)
    assert bundle.units.codebook_size == recipe.units.encoder.codebook_size
    assert sum(bundle.info["provenance"]["training_seconds"].values()) < 2 * 3600


def test_topics_cross_languages(bundle: Bundle, tmp_path: Path) -> None:
    """A small part of the benchmark, computed anew from the shipped weights, in a voice that no training heard."""
    items = [item for item in make_items(1, 30, "test") if item.kind == "topic"]
    results = evaluate_cloze(bundle, items, out=tmp_path, voices={"en": "zoe", "fr": "zoe"})
    for cell in ("en>fr", "fr>en"):
        assert results["cells"][cell]["topic"]["n"] == 30
        assert results["cells"][cell]["topic"]["accuracy"] > 0.6
    for cell in results["controls"]["without_context"]["cells"].values():
        assert cell["topic"]["accuracy"] == pytest.approx(0.5)
    assert results["problems"] == []
