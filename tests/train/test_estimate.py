"""The recipes of the project load, and a dry run says what they would cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.errors import TresseError
from train.estimate import describe, estimate
from train.recipe import RECIPES, Recipe

SMALL = {"model": "{hidden_size: 32, layers: 3, heads: 2, intermediate_size: 64}", "slm.row_length": "64"}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_can_be_read_and_estimated(name: str, tmp_path: Path) -> None:
    result = estimate(Recipe.load(name), tmp_path, measure=False)
    assert result["parameters"] > 1e6
    assert all(run["flops"] > 6 * run["tokens"] * 1e6 for run in result["runs"])
    assert name in describe(result)


@pytest.mark.parametrize(("name", "millions"), [("paper-360m", 360), ("paper-1b", 977)])
def test_the_papers_recipes_have_its_budgets(name: str, millions: int, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.slm.positions == 614_400
    assert (recipe.slm.betas, recipe.slm.learning_rate, recipe.slm.weight_decay) == ((0.9, 0.98), 5e-4, 0.1)
    assert recipe.slm.warmup_steps(100_000) == 5_000
    assert [stage.steps for stage in recipe.slm.stages] == [50_000, 20_000, 30_000]
    result = estimate(recipe, tmp_path, measure=False)
    assert result["parameters"] / 1e6 == pytest.approx(millions, rel=0.01)
    assert result["runs"][0]["units"] == 61_440_000_000  # 46.08 of English and 15.36 of French


@pytest.mark.parametrize("name", ["paper-360m", "paper-1b"])
def test_the_papers_recipes_fit_any_number_of_processes(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    before = estimate(recipe, tmp_path, measure=False)
    for processes in (1, 2, 4, 8, 16, 64):
        result = estimate(recipe, tmp_path, measure=False, processes=processes)
        assert result["runs"] == before["runs"], "the same steps, tokens and units"
        assert result["rows"] == -(-300 // processes)
        assert result["rows"] <= result["passes"] * (recipe.slm.micro_rows or 300)
        assert result["sharded_bytes"] <= result["memory_bytes"] or processes == 1
        whole, share = before["gpu"], result["gpu"]
        assert whole["seconds"] / processes <= share["seconds"] <= whole["seconds"] / processes * 1.07
        assert share["tokens_per_second"] * share["seconds"] == pytest.approx(result["runs"][0]["tokens"])
        text = describe(result)
        assert f"{processes} processes: at most {result['rows']} rows" in text
        assert "memory a process" in text
        assert "hours; data needed" in text
    with pytest.raises(TresseError, match="1 or more"):
        estimate(recipe, tmp_path, measure=False, processes=0)


def test_the_ablations_rows_have_matched_budgets() -> None:
    settings = Recipe.load("ablation").ablation
    assert settings is not None
    totals = {}
    for key, row in settings.rows.items():
        units: dict[str, int] = {}
        for stage in row.stages:
            assert isinstance(stage.units, dict)
            for language, count in stage.units.items():
                units[language] = units.get(language, 0) + count
        totals[key] = units
    assert totals["mixed"] == totals["interleaving"] == totals["tuned"]
    assert totals["english"] == {"en": totals["mixed"]["en"]}
    assert totals["french"] == {"fr": totals["mixed"]["fr"]}
    assert min(len(settings.rows[key].seeds) for key in ("mixed", "interleaving")) >= 2


def test_time_is_measured_here(tmp_path: Path) -> None:
    result = estimate(Recipe.load("braid", SMALL), tmp_path)
    run = result["runs"][0]
    assert run["seconds"] == pytest.approx(run["tokens"] / result["measured"]["tokens_per_second"])
    assert "tokens/s" in describe(result)


def test_keys_are_checked_inside_lists_and_mappings() -> None:
    with pytest.raises(TresseError, match=r"slm\.stages\.0\.mod: did you mean slm\.stages\.0\.mode"):
        Recipe.load("tiny", {"slm.stages": "[{mod: mixed}]"})
    with pytest.raises(TresseError, match=r"ablation\.rows\.a\.seed: did you mean ablation\.rows\.a\.seeds"):
        Recipe.load("ablation", {"ablation.rows": "{a: {name: A, stages: [], seed: [1]}}"})


def test_a_part_that_is_not_there_is_named() -> None:
    assert (Recipe.load("braid").parts.find("units") / "config.json").exists()  # type: ignore[operator]
    with pytest.raises(TresseError, match=r"parts\.vocoder: there is no vocoder in nowhere"):
        Recipe.load("tiny", {"parts.vocoder": "nowhere"}).parts.find("vocoder")
