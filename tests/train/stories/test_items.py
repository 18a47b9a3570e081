"""Cloze items of the grammar, files of stories, and mistakes in the data."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from slm.errors import TresseError
from tests.train.stories.corpora import (
    BENCHMARK_SPLITS,
    benchmark,
    training_stories,
    words_of,
)
from train.stories.cloze_items import (
    BENCHMARK_ITEMS,
    KINDS,
    contradictions,
    fact_kind,
    handwritten_topics,
    make_items,
    read_handwritten,
    read_items,
    story_pair,
    write_items,
)
from train.stories.data import CORE, LANGUAGES, WORDINGS
from train.stories.endings_only import correct_choices, shortcut_scorers
from train.stories.grammar import (
    HERE,
    Grammar,
    default_grammar,
    generate_stories,
    read_stories,
    write_stories,
)


@pytest.mark.parametrize("split", BENCHMARK_SPLITS)
def test_kinds_of_facts_are_contradicted_about_equally_often(split: str) -> None:
    grammar = default_grammar()
    situations = {situation.name: situation for situation in default_grammar().situations}
    kinds: Counter[str] = Counter()
    for k in range(600):
        story, _, role = story_pair(1, k, split)
        kinds[fact_kind(situations[story.facts["situation"]], role)] += 1
    assert set(kinds) == set(contradictions(grammar, split))
    assert len(kinds) >= 6
    assert min(kinds.values()) >= 0.6 * 600 / len(kinds)
    assert max(kinds.values()) <= 1.4 * 600 / len(kinds)


def test_a_wrong_topic_ending_comes_from_another_situation() -> None:
    items = [item for item in make_items(2, 200) if item.kind == "topic"]
    assert len(items) == 200
    for item in items:
        assert all(item.right[language] != item.wrong[language] for language in LANGUAGES)


@pytest.mark.parametrize(("split", "language", "kind"), list(product(BENCHMARK_SPLITS, LANGUAGES, KINDS)))
def test_endings_alone_give_nothing_away(split: str, language: str, kind: str) -> None:
    """Bigrams of the training stories, of their endings alone, and the length: chance on every cell."""
    stories = training_stories()
    chosen = [item for item in benchmark(split) if item.kind == kind]
    assert len(chosen) == BENCHMARK_ITEMS
    for name, score in shortcut_scorers(stories, language).items():
        correct = correct_choices(chosen, language, score)
        assert abs(sum(correct) / len(correct) - 0.5) <= 0.03, name
        # Items in pairs would hide a bias of a pair's first half: that half must be at chance as well.
        half = correct[::2]
        assert abs(sum(half) / len(half) - 0.5) <= 0.06, name


def test_hand_written_items_mirror_each_other_and_stand_outside_the_grammar() -> None:
    items = read_handwritten()
    assert len(items) == 200
    assert len({item.id for item in items}) == 200
    told = {la: {s.lower() for story in training_stories() for s in story.sentences[la]} for la in LANGUAGES}
    known = {la: set(words_of(training_stories(), la)) for la in LANGUAGES}
    for language in LANGUAGES:
        texts = [s for item in items for s in [*item.context[language], item.right[language]]]
        assert not told[language] & {text.lower() for text in texts}
        words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())]
        assert sum(word in known[language] for word in words) / len(words) >= 0.93  # the rest: other forms, mostly
        scorers = shortcut_scorers(training_stories(), language)
        for score in scorers.values():
            assert sum(correct_choices(items, language, score)) == len(items) / 2
            assert sum(correct_choices(handwritten_topics(), language, score)) == len(items) / 2
    for one, two in zip(items[::2], items[1::2], strict=True):
        assert one.right == two.wrong
        assert one.wrong == two.right
        assert one.context != two.context
        assert all(len(sentences) == 4 for sentences in one.context.values())


def test_the_corpus_is_rich() -> None:
    grammar = default_grammar()
    assert len(grammar.situations) >= 60
    assert grammar.count_stories() >= 10**9
    for situation in grammar.situations:
        assert len(situation.core) == CORE
        assert all(len(wordings) >= WORDINGS for slot in situation.slots for wordings in slot.wordings.values())
    for language in LANGUAGES:
        assert len(words_of(training_stories(), language)) >= 1000
    stories = training_stories()
    assert len({tuple(s.sentences["en"] + s.sentences["fr"]) for s in stories}) >= 0.998 * len(stories)


def test_stories_are_counted_by_facts_wordings_and_silences(tmp_path: Path) -> None:
    copy_of_race(tmp_path)
    # who, another who, 8 places, 4 prizes, 2 outcomes; five sentences in four wordings, a sixth in four or none.
    assert Grammar(tmp_path).count_stories() == (18 * 17 * 8 * 4 * 2) * 4**5 * (4 + 1)


def copy_of_race(folder: Path) -> None:
    """A grammar with one situation."""
    (folder / "situations").mkdir()
    shutil.copy(HERE / "lexicon.yaml", folder)
    shutil.copy(HERE / "situations" / "race.yaml", folder / "situations")


def test_files_come_back_as_written(tmp_path: Path) -> None:
    stories, items = list(generate_stories(1, 20)), make_items(1, 10)
    write_stories(tmp_path / "stories.jsonl", stories)
    write_items(tmp_path / "items.jsonl", items)
    assert list(read_stories(tmp_path / "stories.jsonl")) == stories
    assert list(read_items(tmp_path / "items.jsonl")) == items
    (tmp_path / "stories.jsonl").write_text('{"id": "a", "sentences": {"en": ["A."], "fr": []}}\n', encoding="utf-8")
    with pytest.raises(TresseError, match="line 1"):
        list(read_stories(tmp_path / "stories.jsonl"))


def test_unknown_split_is_named() -> None:
    with pytest.raises(TresseError, match="dev"):
        list(generate_stories(0, 1, "dev"))


FLAGS = """        Flags were waving in the wind.
      fr: |
        « À vos marques, prêts, partez ! » a crié l'arbitre.
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("situations/race.yaml", "{the prize}", "{the price}", r"race\.yaml: sentences\.6.*price"),
        ("situations/race.yaml", "{tombé@who}", "{tombé@whom}", r"race\.yaml: sentences\.5.*whom"),
        ("situations/race.yaml", "problem: race", "problems: race", r"race\.yaml: top level: remove or rename"),
        ("situations/race.yaml", "combination: [who", "combination: [whose", r"race\.yaml: combination.*whose"),
        ("situations/race.yaml", "      lost:\n", "      loss:\n", r"race\.yaml: sentences\.5\.outcome"),
        (
            "situations/race.yaml",
            "        Flags were waving in the wind.\n",
            "",
            r"sentences\.3\.extra: .*3 in en, 4 in fr",
        ),
        ("situations/race.yaml", FLAGS, "      fr: |\n", r"sentences\.3\.extra: write 4 wordings at least .now 3"),
        ("situations/race.yaml", "problem: race", "problem: race\nsplit: hidden", r"race\.yaml: split: write 'unseen'"),
        ("situations/race.yaml", "  - extra:", "  - outcome:", r"race\.yaml: sentences\.3"),
        (
            "situations/race.yaml",
            "{who} courait contre {friend}",
            "Loin de {who}",
            r"sentences\.2\.fr: .*'de'.*into the tag",
        ),
        (
            "situations/race.yaml",
            "      {who} was running against {friend}.\n",
            "",
            r"sentences\.2: .*equally many lines",
        ),
        ("situations/race.yaml", "combination: [who, friend, place]", "combination: [outcome]", "combination: too few"),
        ("lexicon.yaml", "ball: {gender: f,", "ball: {", r"lexicon\.yaml: object\.words\.ball: add gender"),
        ("lexicon.yaml", "fr: Emma}", "de: Emma}", r"lexicon\.yaml: who\.words\.emma"),
        ("lexicon.yaml", "colour:\n", "colour: [\n", r"lexicon\.yaml: not valid YAML"),
    ],
)
def test_mistakes_in_the_data_are_named_by_file_and_key(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    copy_of_race(tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TresseError, match=message):
        Grammar(tmp_path)
