"""Facts in texts: found in all their forms, and no others."""

from __future__ import annotations

from itertools import pairwise

import pytest

from train.evaluate.facts import coherence, lexicon, parser, words_of
from train.evaluate.repetition import auto_bleu, bleu, self_bleu
from train.stories.grammar import default_grammar, generate_stories


def test_forms_agree_and_the_longest_wins() -> None:
    english, french = parser("en"), parser("fr")
    assert ("object", "teddy") in english.facts("She hugged her teddy bear.")
    assert ("who", "bear") not in english.facts("She hugged her teddy bear.")
    for text in ("une écharpe blanche", "des écharpes blanches", "l'écharpe blanche"):
        assert ("colour", "white") in french.facts(text)
    assert {("object", "scarf"), ("who", "squirrel")} <= set(french.facts("L'écureuil a perdu l'écharpe."))
    assert ("feeling", "worried") in french.facts("Emma était inquiète.")
    assert french.facts("Rien de tout cela.") == []


def test_a_fact_is_the_same_in_every_language() -> None:
    one = parser("en").facts("Leo found the red kite in the garden, happy.")
    other = parser("fr").facts("Léo a trouvé le cerf-volant rouge dans le jardin, heureux.")
    shared = {("who", "leo"), ("colour", "red"), ("object", "kite"), ("place", "garden"), ("feeling", "happy")}
    assert shared <= set(one) & set(other)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_facts_of_stories_are_found_in_their_text(language: str) -> None:
    """Told facts are found, and hardly any other value of the lexicon is."""
    lexical = set(default_grammar().lexicon.categories)
    found = expected = strange = 0
    situations = {situation.name: situation for situation in default_grammar().situations}
    for story in generate_stories(3, 150, "test"):
        roles = situations[story.facts["situation"]].roles
        told = {(role.kind, story.facts[name]) for name, role in roles.items() if role.kind in lexical}
        named = {fact for fact in parser(language).facts(" ".join(story.sentences[language])) if fact[0] in lexical}
        found, expected, strange = found + len(told & named), expected + len(told), strange + len(named - told)
    assert found / expected > 0.97
    assert strange / expected < 0.15


def test_coherence_counts_what_can_be_compared() -> None:
    prompt = [("who", "leo"), ("colour", "red"), ("who", "fox")]
    same = coherence(prompt, [("who", "fox"), ("colour", "red")])
    assert (same.named, same.agreeing, same.share) == (2, 2, 1.0)
    other = coherence(prompt, [("who", "emma"), ("colour", "red"), ("place", "park")])
    assert (other.named, other.agreeing) == (2, 1)
    assert coherence(prompt, [("place", "park")]).share is None


def test_a_storys_own_ending_coheres_and_anothers_does_not() -> None:
    stories = list(generate_stories(4, 60, "test"))
    own, strange = [], []
    for story, other in pairwise(stories):
        told = parser("en").facts(" ".join(story.sentences["en"][:3]))
        own.append(coherence(told, parser("fr").facts(" ".join(story.sentences["fr"][3:]))).share)
        strange.append(coherence(told, parser("fr").facts(" ".join(other.sentences["fr"][3:]))).share)
    mean = [
        sum(held) / len(held) for held in ([v for v in own if v is not None], [v for v in strange if v is not None])
    ]
    assert mean[0] > 0.85
    assert mean[1] < 0.5


def test_the_lexicon_holds_the_words_of_stories_and_not_others() -> None:
    words = [word for story in generate_stories(9, 50, "test") for word in words_of(" ".join(story.sentences["fr"]))]
    assert sum(word in lexicon("fr") for word in words) / len(words) > 0.99
    assert "quantique" not in lexicon("fr")
    assert words_of("L'œuf, c'est là-bas !") == ["l", "oeuf", "c", "est", "la", "bas"]


def test_repetition_and_likeness() -> None:
    assert auto_bleu([*"ababab"]) == 1.0
    assert auto_bleu([*"abcd"]) == 0.0
    assert auto_bleu(["a"]) is None
    assert bleu([*"abc"], [[*"abc"]]) == pytest.approx(1.0)
    assert bleu([*"abc"], [[*"xyz"]]) == 0.0
    assert bleu([*"ab"], [[*"abcd"]]) < 1.0
    assert self_bleu([[*"abc"]] * 3) == pytest.approx(1.0)
    assert self_bleu([[*"abc"], [*"xyz"]]) == 0.0
    assert self_bleu([[*"abc"]]) is None
