"""What an evaluation of everything found, put where people look: the bundle's metrics and card, and the README.

    python -m train.publish RESULTS BUNDLE [PAGE ...]

RESULTS: folder of `tresse eval all`. BUNDLE: the folder it measured; receives `metrics` in bundle.json, evaluation/ (the
report, its plots, and the scores of the first cloze items, for a test to compare with) and a new model card. PAGE: Markdown
files whose part between `<!-- figures -->` and `<!-- /figures -->` is replaced by the headline tables.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from PIL import Image

from slm.errors import TresseError
from train.card import write_card
from train.checkpoint import atomic_path, write_json
from train.figures import digest, figures

FIRST = 4
"""Cloze items of each kind whose scores are kept."""
MARKS = "<!-- figures -->", "<!-- /figures -->"


def publish(results: Path, bundle: Path, pages: list[Path]) -> None:
    """See the module. Raises TresseError where the results are missing, of another bundle, or a page has no marks."""
    try:
        held = json.loads((results / "results.json").read_text(encoding="utf-8"))
        info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TresseError(
            f"cannot read {results}/results.json and {bundle}/bundle.json: run tresse eval all"
        ) from error
    if held["bundle"]["name"] != info["name"]:
        raise TresseError(f"{results} measured the bundle {held['bundle']['name']}: evaluate {info['name']} first")
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for page, text in texts.items():
        if not all(mark in text for mark in MARKS):
            raise TresseError(f"{page} has no place for figures: put {MARKS[0]} and {MARKS[1]} into it")
    report = (results / "report.md").read_text(encoding="utf-8")
    report = report.split("\n## Samples\n")[0]  # they need the recordings, which stay behind
    scores = results / "cloze" / "scores.jsonl"
    lines = scores.read_text(encoding="utf-8").splitlines() if "cloze" in held["parts"] else []
    info["metrics"] = digest(held, info.get("metrics", {}).get("unit_edit_rate"))
    write_json(bundle / "bundle.json", info)
    folder = bundle / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in held["parts"]:
        for plot in sorted((results / part).glob("*.png")):
            name = f"{part}-{plot.name}"
            report = report.replace(f"({part}/{plot.name})", f"({name})")
            with Image.open(plot) as picture:
                picture.convert("RGB").quantize(128).save(folder / name, optimize=True)
    if lines:
        (folder / "scores.jsonl").write_text("".join(f"{line}\n" for line in _of_first_items(lines)), encoding="utf-8")
    (folder / "report.md").write_text(report.rstrip() + "\n", encoding="utf-8")
    write_card(bundle)
    for page, text in texts.items():
        before, _, rest = text.partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        tables = "\n\n".join([MARKS[0], figures(info["metrics"]), MARKS[1]])
        with atomic_path(page) as temporary:
            temporary.write_text(before + tables + after, encoding="utf-8")


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


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("python -m train.publish RESULTS BUNDLE [PAGE ...]")
    try:
        publish(Path(sys.argv[1]), Path(sys.argv[2]), [Path(page) for page in sys.argv[3:]])
    except TresseError as error:
        sys.exit(str(error))
