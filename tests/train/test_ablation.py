"""The ablation: rows are compared item by item, averaged over seeds, and the table says what was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm.errors import TresseError
from slm.likelihood import EndingScore
from train.ablation import compare_rows, markdown, outcomes_by_cell, run_ablation
from train.evaluate.cloze.results import Choice
from train.lm.schedule import Stage
from train.publish.results import publish_ablation
from train.recipe import AblationRow, AblationSettings, Recipe
from train.tools.checkpoints import write_json

ROWS = {
    "mixed": AblationRow("Mixed", (Stage("mixed", steps=1),), (0, 1)),
    "braided": AblationRow("Braided", (Stage("interleaved", steps=1),), (0, 1)),
}
SETTINGS = AblationSettings(ROWS, "mixed")


def score(value: float) -> EndingScore:
    return EndingScore(given=value, whole=value, unconditional=value, tokens=1, whole_tokens=1)


def write_scores(path: Path, right: dict[str, np.ndarray]) -> Path:
    """right: for each cell, whether each item is told right by voices training heard; by others it is not, then."""
    path.parent.mkdir(parents=True)
    choices = [
        Choice(
            f"item-{k}",
            kind,
            f"pair-{k // 2}",
            None,
            group,
            "same",
            *cell.split(">"),
            score(float(hit) if group == "seen" else 1 - float(hit)),
            score(0.5),
        )
        for group in ("seen", "unseen")
        for cell, hits in right.items()
        for kind in ("story", "topic")
        for k, hit in enumerate(hits)
    ]
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in choices))
    return path


def test_seeds_are_averaged_and_items_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hits = {
        (row, seed): rng.random(60) < chance for row, chance in (("mixed", 0.5), ("braided", 0.9)) for seed in (0, 1)
    }
    scored = {
        row: [write_scores(tmp_path / f"{row}{seed}" / "s.jsonl", {"en>fr": hits[row, seed]}) for seed in (0, 1)]
        for row in ROWS
    }
    results = compare_rows(SETTINGS, scored)
    voices = results["rows"]["braided"]["voices"]
    cell = voices["seen"]["en>fr"]["topic"]
    assert voices["unseen"]["en>fr"]["topic"]["accuracy"] == pytest.approx(1 - cell["accuracy"])
    means = {row: (hits[row, 0].astype(float) + hits[row, 1]) / 2 for row in ROWS}
    assert cell["accuracy"] == pytest.approx(means["braided"].mean())
    test = cell["against_baseline"]
    assert test["difference"] == pytest.approx(means["braided"].mean() - means["mixed"].mean())
    assert test["second_only"] == int((means["braided"] > means["mixed"]).sum())
    assert test["p"] < 0.01
    assert test["ci95"][0] < test["difference"] < test["ci95"][1]
    page = markdown(results)
    assert f"{100 * cell['accuracy']:.1f}" in page
    assert f"{100 * test['difference']:+.1f}" in page


def test_its_tables_are_published(tmp_path: Path) -> None:
    scored = {row: [write_scores(tmp_path / row / "s.jsonl", {"en>fr": np.ones(4)})] for row in ROWS}
    results = compare_rows(SETTINGS, scored)
    out, bundle, page = tmp_path / "ablation", tmp_path / "bundle", tmp_path / "page.md"
    out.mkdir()
    bundle.mkdir()
    write_json(out / "results.json", results)
    (out / "ablation.md").write_text(markdown(results))
    info = {"format": 1, "name": "tiny", "languages": ["en", "fr"], "max_prompt_seconds": 30}
    write_json(bundle / "bundle.json", info | {"metrics": {"unit_edit_rate": {}}})
    page.write_text("before\n<!-- ablation -->\nold\n<!-- /ablation -->\nafter\n")
    publish_ablation(out, bundle, [page])
    metrics = json.loads((bundle / "bundle.json").read_text())["metrics"]
    assert metrics == {"unit_edit_rate": {}, "ablation": json.loads(json.dumps(results))}
    text = page.read_text()
    assert text.startswith("before\n<!-- ablation -->\n\nCloze accuracy")
    assert text.endswith("<!-- /ablation -->\nafter\n")
    assert "### Voices that no training heard\n" in text
    assert "| Against Mixed |" in text
    with pytest.raises(TresseError, match="run tresse recipe ablation"):
        publish_ablation(tmp_path, bundle, [page])


def test_runs_on_different_items_are_not_compared(tmp_path: Path) -> None:
    one = write_scores(tmp_path / "a" / "s.jsonl", {"en>en": np.ones(4)})
    other = write_scores(tmp_path / "b" / "s.jsonl", {"en>en": np.ones(6)})
    with pytest.raises(TresseError, match="different items"):
        outcomes_by_cell([one, other])


def test_finished_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def train(model: Any, training: Any, data: Path, folder: Path, workers: int) -> None:
        trained.append((str(training.stages[0]), training.seed))
        folder.mkdir(parents=True)
        done = {
            "steps": 1,
            "parameters": 2,
            "units": {"en": 3},
            "tokens": {"en": 1},
            "stages": [{"mode": "x", "steps": 1}],
        }
        (folder / "summary.json").write_text(json.dumps(done))

    def evaluate(recipe: Any, settings: Any, candidate: Any, out: Path) -> None:
        if len(trained) == 3:
            raise KeyboardInterrupt
        write_scores(candidate.folder / "cloze" / "scores.jsonl", {"en>fr": np.arange(8) % 3})
        (candidate.folder / "cloze" / "results.json").write_text("{}")

    monkeypatch.setattr("train.ablation._evaluate", evaluate)
    recipe = Recipe.load("ablation")
    with pytest.raises(KeyboardInterrupt):
        run_ablation(recipe, SETTINGS, tmp_path, train, 1)
    (tmp_path / "ablation" / "braided-seed0" / "summary.json").unlink()
    (tmp_path / "ablation" / "braided-seed0").rmdir()
    results = run_ablation(recipe, SETTINGS, tmp_path, train, 1)
    assert trained == [("mixed", 0), ("mixed", 1), ("interleaved", 0), ("interleaved", 0), ("interleaved", 1)]
    assert results["rows"]["mixed"]["runs"][0]["units"] == {"en": 3}
    assert (tmp_path / "ablation" / "ablation.md").read_text() == markdown(results)
    with pytest.raises(TresseError, match="is no row"):
        run_ablation(recipe, AblationSettings(ROWS, "french"), tmp_path, train, 1)
