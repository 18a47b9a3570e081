"""Written stories and the benchmark cut from them: no faults, no twins across splits, shortcuts at chance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from slm.errors import TresseError
from train.stories.cloze_items import BENCHMARK_ITEMS
from train.stories.twins import near_twins, without_twins
from train.stories.written import LANGUAGES, check, faults, read_written, written_stories
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
