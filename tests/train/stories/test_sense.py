"""Rules that leave absurd stories out of mixtures: each is well formed and has something to do, and none is broken."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.train.stories.corpora import training_stories
from train.stories.data import LANGUAGES
from train.stories.grammar import default_grammar
from train.stories.sense import ANIMAL, CHILD, being, holds, nonsense, rules
from train.stories.sources import GRAMMAR, Source, Unused, read_source


@pytest.mark.parametrize("rule", rules(), ids=str)
def test_rules_name_what_there_is(rule: dict) -> None:
    situations = {situation.name: situation for situation in default_grammar().situations}
    for role in rule.keys() - {"why", "situation", "unlike", "text"}:
        roles = situations[rule.get("situation", "snowman")].roles
        known = {ANIMAL, CHILD} if isinstance(rule[role], str) else {entry.id for entry in roles[role].values}
        assert {rule[role]} <= known if isinstance(rule[role], str) else set(rule[role]) <= known
    re.compile(rule.get("text", ""))


def test_every_rule_finds_something_and_most_stories_stay() -> None:
    stories = training_stories()
    assert [rule for rule in rules() if not any(holds(rule, story) for story in stories)] == []
    assert sum(nonsense(story) is None for story in stories) > 0.85 * len(stories)


def test_rules_look_at_facts_and_sentences() -> None:
    story = next(story for story in training_stories() if story.facts["situation"] == "lost_pet")
    child = replace(story, facts={**story.facts, "who": "emma"})
    assert [being(id) for id in ("emma", "hen", "park")] == [CHILD, ANIMAL, None]
    assert nonsense(child) is None
    assert nonsense(replace(story, facts={**story.facts, "who": "hen"})) == "an animal keeps a pet"
    assert nonsense(replace(story, facts={})) is None
    hen = {**story.facts, "who": "hen", "situation": "soup"}
    assert nonsense(replace(story, facts=hen, sentences={"en": ["The hen lifted a finger."]})) is not None
    assert nonsense(replace(story, facts=hen, sentences={"en": ["The hen lifted a wing."]})) is None


def test_a_source_names_the_stories_that_make_no_sense() -> None:
    rows = list(islice(read_source(Source(GRAMMAR, 1), LANGUAGES, Path("."), 23), 200))
    told = [row[0] for row in rows if not isinstance(row, Unused)]
    assert len(rows) > len(told) > 150
    assert not [story for story in told if nonsense(story)]
    assert all(row.reason.startswith("makes no sense: ") for row in rows if isinstance(row, Unused))
