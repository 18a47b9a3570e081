"""The results of an evaluation, written into the bundle (metrics, model card, report) and into pages such as measured/.

    python -m train.publish RESULTS BUNDLE [PAGE ...]
    python -m train.publish --ablation RESULTS BUNDLE [PAGE ...]

RESULTS: folder of `tresse eval all`. BUNDLE: the folder it measured; receives `metrics` in bundle.json, evaluation/ (the
report, its plots, and the scores of the first cloze items, for a test to compare with) and a new model card. PAGE: Markdown
files whose part between `<!-- figures -->` and `<!-- /figures -->` is replaced by the headline tables.

The second line does the same with the folder of an ablation (`out/ablation` of `tresse recipe ablation`): its rows become
part of the metrics, and its tables stand between `<!-- ablation -->` and `<!-- /ablation -->`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from slm.errors import TresseError
from slm.schema import read_info
from train.publish.card import write_card
from train.publish.figures import digest, figures
from train.tools.checkpoints import atomic_path, write_json

FIRST = 4
"""Cloze items of each kind whose scores are kept."""
MARKS = "<!-- figures -->", "<!-- /figures -->"
ABLATION_MARKS = "<!-- ablation -->", "<!-- /ablation -->"


def publish(results: Path, bundle: Path, pages: list[Path]) -> None:
    """See the module. Raises TresseError where the results are missing, of another bundle, or a page has no marks."""
    try:
        measured = json.loads((results / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TresseError(f"cannot read {results}/results.json: run tresse eval all") from error
    info = read_info(bundle)
    if measured["bundle"]["name"] != info.get("name"):
        raise TresseError(f"{results} measured the bundle {measured['bundle']['name']}: evaluate {bundle} first")
    parts = {page: _around(page, MARKS) for page in pages}
    report = (results / "report.md").read_text(encoding="utf-8")
    report = report.split("\n## Samples\n")[0]  # they need the recordings, which stay behind
    report = report.replace(str(bundle.resolve()), bundle.as_posix())  # not where it lay
    scores = results / "cloze" / "scores.jsonl"
    lines = scores.read_text(encoding="utf-8").splitlines() if "cloze" in measured["parts"] else []
    before = info.get("metrics", {})
    info["metrics"] = digest(measured, before.get("unit_edit_rate"))
    if "ablation" in before:
        info["metrics"]["ablation"] = before["ablation"]
    write_json(bundle / "bundle.json", info)
    folder = bundle / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in measured["parts"]:
        for plot in sorted((results / part).glob("*.png")):
            name = f"{part}-{plot.name}"
            report = report.replace(f"({part}/{plot.name})", f"({name})")
            with Image.open(plot) as picture:
                picture.convert("RGB").quantize(128).save(folder / name, optimize=True)
    if lines:
        (folder / "scores.jsonl").write_text("".join(f"{line}\n" for line in _of_first_items(lines)), encoding="utf-8")
    (folder / "report.md").write_text(report.rstrip() + "\n", encoding="utf-8")
    write_card(bundle)
    for page, around in parts.items():
        _write(page, around, figures(info["metrics"]), MARKS)


def publish_ablation(results: Path, bundle: Path, pages: list[Path]) -> None:
    """See the module. Raises TresseError where the results are missing, or a page has no marks."""
    try:
        measured = json.loads((results / "results.json").read_text(encoding="utf-8"))
        tables = (results / "ablation.md").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TresseError(f"cannot read {results}/results.json and ablation.md: run tresse recipe ablation") from error
    info = read_info(bundle)
    parts = {page: _around(page, ABLATION_MARKS) for page in pages}
    info.setdefault("metrics", {})["ablation"] = measured
    write_json(bundle / "bundle.json", info)
    tables = tables.partition("\n")[2].strip().replace("\n## ", "\n### ")  # without its title
    for page, around in parts.items():
        _write(page, around, tables, ABLATION_MARKS)


def _around(page: Path, marks: tuple[str, str]) -> tuple[str, str]:
    """What stands before and after the marks of a page. Raises TresseError where it has none."""
    text = page.read_text(encoding="utf-8")
    if not all(mark in text for mark in marks):
        raise TresseError(f"{page} has no place for figures: put {marks[0]} and {marks[1]} into it")
    before, _, rest = text.partition(marks[0])
    return before, rest.partition(marks[1])[2]


def _write(page: Path, around: tuple[str, str], text: str, marks: tuple[str, str]) -> None:
    with atomic_path(page) as temporary:
        temporary.write_text(around[0] + "\n\n".join([marks[0], text, marks[1]]) + around[1], encoding="utf-8")


def _of_first_items(lines: list[str]) -> list[str]:
    """Of rows of scores, those of the first FIRST items of each kind."""
    firsts: dict[str, list[str]] = {}
    kept = []
    for line in lines:
        row = json.loads(line)
        items = firsts.setdefault(row["kind"], [])
        if row["item"] not in items and len(items) < FIRST:
            items.append(row["item"])
        if row["item"] in items:
            kept.append(line)
    return kept
