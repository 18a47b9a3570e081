"""Written stories and the benchmark cut from them: no faults, no twins across splits, shortcuts at chance."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from slm.errors import TresseError
from train.stories.cloze_items import BENCHMARK_ITEMS
from train.stories.twins import near_twins, without_twins
from train.stories.written import (
    LANGUAGES,
    WrittenStory,
    check,
    faults,
    read_written,
    with_translations,
    written_stories,
)
from train.stories.written_cloze import shortcuts, splits, story_item, topic_items, written_items


def test_every_story_keeps_to_the_brief() -> None:
    assert check(written_stories()) == []


def test_faults_are_named() -> None:
    story = written_stories()[0]
    digits = replace(story, wrong={**story.wrong, "en": "He ate 3 apples all day long."})
    assert any("a character that is not spoken" in fault for fault in faults(digits))
    short = replace(story, sentences={**story.sentences, "fr": story.sentences["fr"][1:]})
    assert any("sentences in en" in fault for fault in faults(short))
    assert any("twice" in line for line in check([story, story]))


def test_a_row_without_an_ending_is_named(tmp_path) -> None:
    path = tmp_path / "z.jsonl"
    path.write_text('{"id": "z-001", "theme": "x", "sentences": {}}\n', encoding="utf-8")
    with pytest.raises(TresseError, match="line 1: add 'wrong'"):
        read_written(path)


def test_a_retold_story_is_a_twin_and_only_the_later_one_goes() -> None:
    stories = list(written_stories()[:200])
    changed = {
        language: [*sentences[:-1], "Then the evening came." if language == "en" else "Puis le soir est venu."]
        for language, sentences in stories[7].sentences.items()
    }
    twin = replace(stories[7], id="x-001", sentences=changed)
    pairs = near_twins([*stories, twin])
    assert (7, 200) in [(first, second) for first, second, _ in pairs]
    assert [story.id for story in without_twins([*stories[:100], twin])][-1] == stories[99].id


def test_a_chosen_story_stays_and_its_twins_go() -> None:
    stories = list(written_stories()[:50])
    twin = replace(stories[7], id="x-000")
    left = [story.id for story in without_twins([*stories, twin], chosen={"x-000"})]
    assert "x-000" in left
    assert stories[7].id not in left
    assert {stories[7].id, "x-000"} <= {
        story.id for story in without_twins([*stories, twin], chosen={"x-000", stories[7].id})
    }


def test_no_test_story_has_a_twin_in_training() -> None:
    parts = splits()
    everything = [*parts["test"], *parts["train"], *parts["validation"]]
    ids, stories = {story.id for story in everything}, written_stories()
    assert len(ids) == len(everything)
    test = {story.id for story in parts["test"]}
    alike = [{stories[first].id, stories[second].id} for first, second, _ in near_twins(stories)]
    assert not [pair for pair in alike if pair <= ids and not pair <= test]
    assert len(parts["test"]) == BENCHMARK_ITEMS
    assert len(parts["validation"]) >= 50


def test_stories_that_come_later_train(monkeypatch: pytest.MonkeyPatch) -> None:
    before, stories = splits(), written_stories()
    turned = [replace(story, id=f"0-{story.id}", sentences=_turned(story)) for story in stories[:40]]
    monkeypatch.setattr("train.stories.written_cloze.written_stories", lambda: [*turned, *stories])
    after = splits.__wrapped__()
    assert (after["test"], after["validation"]) == (before["test"], before["validation"])
    assert {story.id for story in turned} <= {story.id for story in after["train"]}


def _turned(story: WrittenStory) -> dict[str, list[str]]:
    """The sentences of a story with their words read backwards: like no other's."""
    return {
        language: [" ".join(word[::-1] for word in text.split()) for text in sentences]
        for language, sentences in story.sentences.items()
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_shortcuts_are_at_chance(language: str) -> None:
    items = [story_item(story) for story in splits()["test"]]
    for name, results in shortcuts(items, language).items():
        assert 0.47 <= results.mean() <= 0.53, f"{name}: {results.mean():.3f}"


def test_topic_endings_are_mirrored_and_of_one_length() -> None:
    items = topic_items(splits()["test"])
    for language in LANGUAGES:
        assert Counter(item.right[language] for item in items) == Counter(item.wrong[language] for item in items)
        assert all(item.right[language] != item.wrong[language] for item in items)
    difference = [abs(len(item.right["en"].split()) - len(item.wrong["en"].split())) for item in items]
    assert sum(difference) / len(difference) < 2


def test_items_of_both_kinds_for_every_test_story() -> None:
    kinds = Counter(item.kind for item in written_items())
    assert kinds == {"story": BENCHMARK_ITEMS, "topic": BENCHMARK_ITEMS}


def translation(path: Path, **changes: object) -> Path:
    """A file that tells the first story in a language of its own."""
    story = written_stories()[0]
    told = ["Xa xe xi."] * len(story.sentences["en"])
    row = {"id": story.id, "sentences": {"xx": told}, "wrong": {"xx": "Xo xu."}, **changes}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def test_a_story_is_told_in_the_languages_of_its_translations(tmp_path: Path) -> None:
    before = written_stories()[:3]
    after = with_translations(before, [translation(tmp_path / "x.jsonl")])
    assert [story.id for story in after] == [story.id for story in before]
    assert [story.is_told_in("en", "fr", "xx") for story in after] == [True, False, False]
    assert after[1:] == before[1:]
    assert faults(after[0]) == faults(before[0]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a-nobody"}, "a-nobody: there is no such story"),
        ({"sentences": {"xx": ["Xa xe."]}}, "a sentence for each"),
        ({"sentences": {"fr": ["Oui, bien."] * 5}}, "told in fr already"),
    ],
)
def test_translations_that_do_not_fit_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(TresseError, match=message):
        with_translations(written_stories()[:3], [translation(tmp_path / "x.jsonl", **changes)])


def test_items_in_a_third_language_are_of_the_test_stories_told_in_it() -> None:
    languages = (*LANGUAGES, "es")
    items = written_items(languages=languages)
    told = [story for story in splits()["test"] if story.is_told_in("es")]
    assert len(told) > 100
    assert Counter(item.kind for item in items) == {"story": len(told), "topic": len(told)}
    assert all(set(part) == set(languages) for item in items for part in (item.context, item.right, item.wrong))
    assert Counter(item.kind for item in written_items(languages=languages, count=7)) == {"story": 7, "topic": 7}
    assert written_items(languages=["en", "xx"]) == []
