"""The page of a mixed corpus: `python -m train.stories.corpus_page [RECIPE]` mixes the recipe's sources (`open` by default)
and writes measured/corpus.md. Nothing is spoken; it takes about a minute a million words.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from slm.errors import TresseError
from train.stories.decontamination import GENERATED, GRAM, benchmarks
from train.stories.grammar import PAIRS, Story
from train.stories.held_out import RECIPES, StoriesSettings
from train.stories.mixture import WORDS_AN_HOUR, Given, Mixture, mixture_of
from train.stories.sources import GRAMMAR, WRITTEN
from train.tools.checkpoints import atomic_path

PAGE = Path(__file__).parents[2] / "measured" / "corpus.md"


def page(name: str, mixture: Mixture, rows: Sequence[Story]) -> str:
    """Markdown: sources with licences, what they gave and did not, overlap with the benchmarks, examples.

    rows: all that the mixture yielded.
    """
    report = mixture.report()
    lines = [
        "# The corpus of open stories",
        "",
        f"What the sources of the recipe `{name}` give: {report['words']:,} words of {report['asked']:,} asked for, about "
        f"{report['hours']:g} hours of speech ({WORDS_AN_HOUR:,} words an hour). Written by "
        f"`python -m train.stories.corpus_page {name}`.",
        "",
        *_table(report, mixture.languages),
        "",
        *_left_out(report),
        "",
        *_overlap(report, rows),
        "",
        "## Examples",
        "",
        "The beginnings of three rows of the project's own sources; texts of others are not repeated here.",
        "",
    ]
    for given in mixture.given:
        if given.source.file not in (WRITTEN, GRAMMAR):
            continue
        lines += [f"**{given.source.id}**", "", *_examples(given), ""]
    return "\n".join(lines)


def _table(report: dict[str, Any], languages: Sequence[str]) -> Iterator[str]:
    yield (
        "| Source | Licence | Rows | "
        + " | ".join(f"Sentences {la}" for la in languages)
        + " | "
        + (" | ".join(f"Words {la}" for la in languages) + " | Share of words |")
    )
    yield "|---|---|" + "---:|" * (2 * len(languages) + 2)
    for name, source in report["sources"].items():
        licences = list(dict.fromkeys(origin["licence"] for origin in source["origins"]))
        origins = [origin["source"] for origin in source["origins"]]
        shown = "; ".join(origins[:3]) + (f" and {len(origins) - 3} more" if len(origins) > 3 else "")
        sentences = " | ".join(f"{source['sentences'].get(la, 0):,}" for la in languages)
        words = " | ".join(f"{source['words'].get(la, 0):,}" for la in languages)
        share = f"{source['share']:.1%}" + (" (all there is)" if source["exhausted"] else "")
        yield f"| **{name}**: {shown} | {'; '.join(licences)} | {source['rows']:,} | {sentences} | {words} | {share} |"


def _left_out(report: dict[str, Any]) -> Iterator[str]:
    yield "## Left out"
    yield ""
    yield "Rows that were read and could not be used, in part or whole (`out/stories/sources.json` names them)."
    yield ""
    yield "| Source | Reason | Rows | Sentences |"
    yield "|---|---|---:|---:|"
    for name, source in report["sources"].items():
        for reason, count in source["rejected"].items():
            yield f"| {name} | {reason.replace('|', chr(92) + '|')} | {count['rows']:,} | {count['sentences']:,} |"


def _overlap(report: dict[str, Any], rows: Iterable[Story]) -> Iterator[str]:
    """Counted again in the rows as they are written."""
    yield "## Overlap with the benchmarks"
    yield ""
    yield (
        f"Rows with {GRAM} words in a row of an item are left out. The last two columns are counted in the rows that stay; "
        f"the grammar's stories share sentences with the {GENERATED} by design (what the splits keep apart are combinations "
        "of facts), so there the two are not compared before."
    )
    yield ""
    left: dict[str, list[int]] = {name: [0, 0] for name in benchmarks().names}
    for row in rows:
        for name in benchmarks().of(row.sentences):
            left[name][row.source == GRAMMAR] += 1
    yield "| Benchmark | Rows left out | Rows that stay and overlap | of the grammar |"
    yield "|---|---:|---:|---:|"
    for name, count in report["rejected_for_overlap"].items():
        yield f"| {name} | {count:,} | {left[name][0]:,} | {left[name][1]:,} |"


def _examples(given: Given) -> Iterator[str]:
    for story in given.examples:
        count = 1 if story.kind == PAIRS else 2
        yield "- " + " / ".join(" ".join(texts[:count]) for texts in story.sentences.values())


def main() -> None:
    """Mix and write the page."""
    name = sys.argv[1] if len(sys.argv) > 1 else "open"
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        settings, recipe = read_settings(path)
        mixture = mixture_of(settings, recipe["languages"], recipe.get("seed", 0))
        rows = list(mixture)
        with atomic_path(PAGE) as temporary:
            temporary.write_text(page(recipe["name"], mixture, rows), encoding="utf-8")
    except TresseError as error:
        sys.exit(str(error))


def read_settings(path: Path) -> tuple[StoriesSettings, dict[str, Any]]:
    """The stories of a recipe's file, and the whole of it. Raises TresseError where it has no sources."""
    from pydantic import TypeAdapter

    if not path.exists():
        raise TresseError(f"there is no recipe {path}: give the name of a recipe, or a .yaml file")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = TypeAdapter(StoriesSettings).validate_python(recipe.get("stories") or {})
    if not settings.sources:
        raise TresseError(f"{path} has no stories.sources: choose a recipe that mixes sources, like open")
    return settings, recipe


if __name__ == "__main__":
    main()
