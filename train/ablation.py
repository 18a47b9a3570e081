"""The paper's comparison: language models trained on the same budgets of units, with and without interleaving.

Every row of the table is a schedule (recipes/ablation.yaml), trained once a seed on the same corpus, vocabulary and
initialisation, and evaluated on the same cloze items, spoken by voices that training heard (as in the paper) and, apart,
by voices that it did not. A cell's accuracy is the mean over seeds; its interval and the paired test treat items, not
runs, as what was drawn: outcomes of an item are averaged over seeds first. Runs that are done are not repeated, and one
that was killed goes on from its checkpoint.
Cost: the training; evaluating a run takes minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.errors import TresseError
from train.tools.checkpoints import atomic_path, write_json

if TYPE_CHECKING:
    from train.recipe import AblationSettings, Recipe

Cell = tuple[str, str, str]
"""(`seen`, `en>fr`, `topic`)"""


@dataclass(frozen=True)
class Candidate:
    """What an evaluation needs of a bundle: `path` holds units/ and, in `folder`, slm/; `info` names its voices."""

    path: Path
    folder: Path
    languages: list[str]
    info: dict[str, Any]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from slm.model import load_model

        return load_model(self.folder / "slm")

    @property
    def language_model(self) -> Any:
        """The transformers causal LM."""
        return self._loaded[0]

    @property
    def vocabulary(self) -> Any:
        """Its unit vocabulary."""
        return self._loaded[1]

    @cached_property
    def units(self) -> Any:
        """The unit encoder."""
        from slm.units import load_encoder

        return load_encoder(self.path / "units")


def run_ablation(
    recipe: Recipe, settings: AblationSettings, out: Path, train: Callable[..., None], workers: int
) -> dict[str, Any]:
    """Train and evaluate all rows in out/ablation/ROW-seedN/; write out/ablation/{results.json,ablation.md}.

    train: (model, training, folder of the data, folder, workers). Raises TresseError.
    """
    if settings.baseline not in settings.rows:
        raise TresseError(f"ablation.baseline {settings.baseline} is no row: choose of {', '.join(settings.rows)}")
    scored: dict[str, list[Path]] = {}
    for key, row in settings.rows.items():
        for seed in row.seeds:
            folder = out / "ablation" / f"{key}-seed{seed}"
            scores = folder / "cloze" / "scores.jsonl"
            if not (folder / "cloze" / "results.json").exists():
                training = replace(recipe.slm, stages=row.stages, seed=seed)
                print(f"{row.name}, seed {seed}", flush=True)
                train(recipe.model, training, out, folder, workers)
                info = {"provenance": {"voices": list(recipe.corpus.speakers)}} if recipe.corpus.speakers else {}
                _evaluate(recipe, settings, Candidate(out, folder, list(recipe.languages), info), out)
            scored.setdefault(key, []).append(scores)
    results = compare_rows(settings, scored)
    for key, row in results["rows"].items():
        row["runs"] = [_consumed(path.parent.parent) for path in scored[key]]
    write_json(out / "ablation" / "results.json", results)
    with atomic_path(out / "ablation" / "ablation.md") as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")
    return results


def _evaluate(recipe: Recipe, settings: AblationSettings, candidate: Candidate, out: Path) -> None:
    from train.evaluate.cloze.evaluation import evaluate_cloze
    from train.evaluate.cloze.protocol import SEEN, UNSEEN
    from train.stories.cloze_items import make_items

    items = make_items(recipe.seed + 1, settings.items, "test")
    cache = out / "ablation" / "speech"
    evaluate_cloze(candidate, items, out=candidate.folder / "cloze", groups=(SEEN, UNSEEN), cache=cache)


def _consumed(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {name: summary[name] for name in ("steps", "parameters", "units", "tokens", "stages")}


def outcomes_by_cell(scores: Sequence[Path]) -> dict[Cell, tuple[np.ndarray, np.ndarray]]:
    """Outcomes of each item averaged over runs, and its pair of mirrored items: (float64 [N], str [N]) by cell.

    Items come in the order of the first run. Raises TresseError where runs were evaluated on different items.
    """
    from train.evaluate.cloze.protocol import HEADLINE, SAME, value_of
    from train.evaluate.cloze.results import read_scores
    from train.tools.statistics import outcomes

    runs: list[dict[Cell, dict[str, tuple[float, str]]]] = []
    for path in scores:
        choices = read_scores(path)
        cells: dict[Cell, dict[str, tuple[float, str]]] = {}
        for choice in choices:
            if choice.pairing == SAME:
                values = (np.asarray([value_of(side, HEADLINE)]) for side in (choice.right, choice.wrong))
                outcome = float(outcomes(*values)[0])
                cell = (choice.group, f"{choice.context}>{choice.ending}", choice.kind)
                cells.setdefault(cell, {})[choice.item] = (outcome, choice.pair)
        runs.append(cells)
    if any({cell: set(run[cell]) for cell in run} != {cell: set(runs[0][cell]) for cell in runs[0]} for run in runs):
        raise TresseError("runs of the ablation were evaluated on different items: delete their cloze folders")
    return {
        cell: (
            np.asarray([np.mean([run[cell][item][0] for run in runs]) for item in items]),
            np.asarray([pair for _, pair in items.values()]),
        )
        for cell, items in runs[0].items()
    }


def compare_rows(settings: AblationSettings, scored: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """{"baseline", "rows": {key: {"name", "seeds", "voices": {"seen": {"en>fr": {"topic": accuracy and, of all rows but
    the baseline, "against_baseline": `statistics.compare`}}}, "unseen": ...}}}}."""
    from train.tools.statistics import accuracy, compare

    outcomes = {key: outcomes_by_cell(paths) for key, paths in scored.items()}
    base = outcomes[settings.baseline]
    rows: dict[str, Any] = {}
    for key, cells in outcomes.items():
        shown: dict[str, dict[str, dict[str, Any]]] = {}
        for (group, cell, kind), (values, pairs) in cells.items():
            entry = accuracy(values, pairs)
            if key != settings.baseline:
                entry["against_baseline"] = compare(base[group, cell, kind][0], values, pairs)
            shown.setdefault(group, {}).setdefault(cell, {})[kind] = entry
        rows[key] = {"name": settings.rows[key].name, "seeds": list(settings.rows[key].seeds), "voices": shown}
    return {"baseline": settings.baseline, "rows": rows}


def markdown(results: Mapping[str, Any]) -> str:
    """For each group of voices the table with intervals and the differences from the baseline with their p; then what
    each row was trained on."""
    rows, baseline = results["rows"], results["baseline"]
    lines = [
        "# Interleaving against its alternatives, at matched budgets",
        "",
        "Cloze accuracy in %, 95 % bootstrap intervals over pairs of mirrored items; mean over seeds; chance is 50 %.",
        f"Beneath it the difference from {rows[baseline]['name']} in points with its 95 % interval, and p of the exact",
        "paired test on the items that one of the two gets right more often (with one seed: McNemar's).",
    ]
    for group in next(iter(rows.values()))["voices"]:
        lines += ["", f"## {_GROUPS[group]}", "", *_tables(rows, baseline, group)]
    lines += ["", "## Trained on", "", "| Row | Schedule (steps) | Units by language |", "|---|---|---|"]
    for row in rows.values():
        for run in row.get("runs", [])[:1]:
            stages = ", ".join(f"{stage['mode']} {stage['steps']:,}" for stage in run["stages"])
            units = ", ".join(f"{language} {count:,}" for language, count in run["units"].items())
            lines.append(f"| {row['name']} | {stages} | {units} |")
    return "\n".join(lines) + "\n"


_GROUPS = {"seen": "Voices that training heard", "unseen": "Voices that no training heard"}


def _tables(rows: Mapping[str, Any], baseline: str, group: str) -> list[str]:
    """Accuracies and differences in one group of voices."""
    columns = [(cell, kind) for kind in ("topic", "story") for cell in rows[baseline]["voices"][group]]
    head, rule = " | ".join(f"{kind} {cell}" for cell, kind in columns), "---|" * len(columns)
    lines = [f"| Row | Seeds | {head} |", f"|---|---|{rule}"]
    differences = [f"| Against {rows[baseline]['name']} | {head} |", f"|---|{rule}"]
    for key, row in rows.items():
        shown = [row["voices"][group][cell][kind] for cell, kind in columns]
        values = " | ".join(
            f"{100 * entry['accuracy']:.1f} [{100 * entry['ci95'][0]:.1f}, {100 * entry['ci95'][1]:.1f}]"
            for entry in shown
        )
        lines.append(f"| {row['name']} | {len(row['seeds'])} | {values} |")
        if key != baseline:
            values = " | ".join(
                f"{100 * against['difference']:+.1f} [{', '.join(f'{100 * end:+.1f}' for end in against['ci95'])}], "
                f"p {_p(against['p'])}"
                for against in (entry["against_baseline"] for entry in shown)
            )
            differences.append(f"| {row['name']} | {values} |")
    return [*lines, "", *differences]


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
