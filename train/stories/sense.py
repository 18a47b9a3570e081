"""Which generated stories make no sense: the rules of nonsense.yaml, written by a reader of 200 stories.

The grammar combines any facts, so a mouse may fish for a saucepan. Its generator stays as it is: shipped bundles name what
they were trained on, and what they were asked, by seed and number. Mixtures of sources leave absurd stories out instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from train.stories.grammar import Story, default_grammar

RULES = Path(__file__).with_name("nonsense.yaml")
ANIMAL, CHILD = "animal", "child"
_OWN_KEYS = {"why", "situation", "unlike", "text"}


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """The rules as they stand in the file, each with `why`."""
    return tuple(yaml.safe_load(RULES.read_text(encoding="utf-8")))


def nonsense(story: Story) -> str | None:
    """Why a generated story makes no sense, in words; None where it does, and for stories without facts."""
    return next((rule["why"] for rule in rules() if holds(rule, story)), None)


def holds(rule: Mapping[str, Any], story: Story) -> bool:
    """Whether a rule says that the story makes no sense."""
    facts = story.facts
    if rule.get("situation", facts.get("situation")) != facts.get("situation"):
        return False
    for role, values in rule.items():
        if role in _OWN_KEYS:
            continue
        if role not in facts or (being(facts[role]) if isinstance(values, str) else facts[role]) not in values:
            return False
    if "unlike" in rule and len({being(facts[role]) for role in rule["unlike"]}) == 1:
        return False
    return "text" not in rule or any(re.search(rule["text"], sentence) for sentence in story.told_in("en"))


def being(id: str) -> str | None:
    """`animal` or `child`; None for what is neither."""
    return _beings().get(id)


@cache
def _beings() -> dict[str, str]:
    entries = default_grammar().lexicon.categories["who"]
    return {entry.id: ANIMAL if entry.kind == ANIMAL else CHILD for entry in entries}
