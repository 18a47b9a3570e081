"""Stories: right forms, honest splits, endings that give nothing away."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter, defaultdict
from itertools import pairwise, product
from pathlib import Path

import pytest

from slm.errors import TresseError
from train.stories import english, french
from train.stories.cloze import KINDS, make_items, read_items, story_pair, write_items
from train.stories.data import LANGUAGES
from train.stories.grammar import (
    HERE,
    SPLITS,
    Grammar,
    combination,
    default_grammar,
    generate_stories,
    read_stories,
    rng_for,
    write_stories,
)
from train.stories.words import Entry, parse_tag


def entries(**chosen: str) -> dict[str, Entry]:
    """`object="scarf"`: entries of the lexicon by role; `friend` is a `who`."""
    categories = default_grammar().lexicon.categories
    found = {}
    for role, id in chosen.items():
        category = "who" if role == "friend" else role
        found[role] = next(entry for entry in categories[category] if entry.id == id)
    return found


OWL = Entry("owl", "noun", {"en": "owl", "fr": "hibou"}, "m")

FRENCH_CASES = [
    ("le object", {"object": "scarf"}, "l'écharpe"),
    ("son object", {"object": "scarf"}, "son écharpe"),
    ("son object colour", {"object": "key", "colour": "white"}, "sa clé blanche"),
    ("son beau object", {"object": "scarf"}, "sa belle écharpe"),
    ("ce object", {"object": "accordion"}, "cet accordéon"),
    ("un vieux object", {"object": "accordion"}, "un vieil accordéon"),
    ("un vieux object", {"object": "drum"}, "un vieux tambour"),
    ("de le object colour", {"object": "ball", "colour": "green"}, "de la balle verte"),
    ("de le object", {"object": "drum"}, "du tambour"),
    ("de le object", {"object": "accordion"}, "de l'accordéon"),
    ("de le object", {"object": "gloves"}, "des gants"),
    ("à le object", {"object": "boots"}, "aux bottes"),
    ("un beau object colour", {"object": "gloves", "colour": "white"}, "de beaux gants blancs"),
    ("de un object", {"object": "boots"}, "de bottes"),
    ("de un object", {"object": "kite"}, "d'un cerf-volant"),
    ("de food", {"food": "orange"}, "d'orange"),
    ("de who", {"who": "emma"}, "d'Emma"),
    ("de who", {"who": "fox"}, "du renard"),
    ("de who", {"who": "squirrel"}, "de l'écureuil"),
    ("à who", {"who": "rabbit"}, "au lapin"),
    ("que who", {"who": "oscar"}, "qu'Oscar"),
    ("que who", {"who": "mouse"}, "que la souris"),
    ("que il@who", {"who": "nina"}, "qu'elle"),
    ("si il@who", {"who": "tom"}, "s'il"),
    ("si il@who", {"who": "nina"}, "si elle"),
    ("dans place", {"place": "park"}, "au parc"),
    ("dans place", {"place": "island"}, "sur l'île"),
    ("dans place", {"place": "forest"}, "dans la forêt"),
    ("feeling@who", {"who": "lily", "feeling": "worried"}, "inquiète"),
    ("feeling@who", {"who": "lily", "feeling": "happy"}, "heureuse"),
    ("feeling@who", {"who": "lily", "feeling": "proud"}, "fière"),
    ("perdu@object", {"object": "boots"}, "perdues"),
    ("était|étaient@object", {"object": "gloves"}, "étaient"),
    ("il@who+friend", {"who": "emma", "friend": "mouse"}, "elles"),
    ("il@who+friend", {"who": "emma", "friend": "fox"}, "ils"),
    ("prêt@who+friend", {"who": "emma", "friend": "nina"}, "prêtes"),
    ("intro who", {"who": "lily"}, "une fille nommée Lily"),
    ("intro who", {"who": "mouse"}, "une petite souris"),
    ("mon family", {"family": "uncle"}, "mon oncle"),
    ("son family", {"family": "grandmother"}, "sa grand-mère"),
]

ENGLISH_CASES = [
    ("a object", {"object": "umbrella"}, "an umbrella"),
    ("a colour object", {"object": "umbrella", "colour": "red"}, "a red umbrella"),
    ("a old object", {"object": "drum"}, "an old drum"),
    ("a object", {"object": "boots"}, "some boots"),
    ("her@who colour object", {"who": "fox", "object": "ball", "colour": "blue"}, "his blue ball"),
    ("was|were@object", {"object": "gloves"}, "were"),
    ("them@object", {"object": "key"}, "it"),
    ("them@object", {"object": "boots"}, "them"),
    ("who", {"who": "fox"}, "the fox"),
    ("in place", {"place": "island"}, "on the island"),
    ("intro who", {"who": "oscar"}, "a boy named Oscar"),
]


@pytest.mark.parametrize(("tag", "chosen", "expected"), FRENCH_CASES)
def test_french_agrees_contracts_and_elides(tag: str, chosen: dict[str, str], expected: str) -> None:
    adjectives = default_grammar().lexicon.adjectives["fr"]
    assert french.render(parse_tag(tag), entries(**chosen), adjectives) == expected


@pytest.mark.parametrize(("tag", "chosen", "expected"), ENGLISH_CASES)
def test_english_articles_and_pronouns(tag: str, chosen: dict[str, str], expected: str) -> None:
    adjectives = default_grammar().lexicon.adjectives["en"]
    assert english.render(parse_tag(tag), entries(**chosen), adjectives) == expected


def test_h_aspire_neither_elides_nor_contracts_like_a_vowel() -> None:
    for tag, expected in [("de le owl", "du hibou"), ("ce owl", "ce hibou"), ("un beau owl", "un beau hibou")]:
        assert french.render(parse_tag(tag), {"owl": OWL}, frozenset({"beau"})) == expected
    assert french.elides("herbe")
    assert not french.elides("haricots verts")


def test_only_marked_clitics_elide_before_the_text_that_follows() -> None:
    key = entries(object="key")
    clitic = french.render(parse_tag("le@object"), key, frozenset())
    assert french.finish(f"Il {clitic} attrape.") == "Il l'attrape."
    assert french.finish(f"Il {clitic} cherche.") == "Il la cherche."
    assert french.finish("Il vient de le avoir.") == "Il vient de le avoir."


def test_french_text_has_no_form_that_should_have_contracted_or_elided() -> None:
    wrong = re.compile(
        r"\b(de le|de les|à le|à les) (?=\w+)|(?<!-)\b(le|la|de|que|ne|se|me|te|je|ce) (?=[aeiouyéèêâîôœ])|"
        r"\b(ma|ta|sa) (?=[aeiouéèêâîô])|\bdes (beaux|belles|petit|grand|bon)",
        re.IGNORECASE,
    )
    for story in generate_stories(11, 1500):
        for sentence in story.sentences["fr"]:
            # h aspiré and clitics before infinitives written in full never match: no vowel follows them.
            assert not wrong.search(sentence), sentence
            assert sentence[0].isupper() or sentence[0] == "«"


def test_sentences_are_clean_and_short() -> None:
    lengths: dict[str, list[int]] = defaultdict(list)
    for story in generate_stories(3, 1500):
        for language in LANGUAGES:
            assert len(story.sentences[language]) == 5
            for sentence in story.sentences[language]:
                assert not re.search(r"[{}@|\x1f—–]|  | [.,]|_", sentence), sentence
                assert sentence.rstrip(' "»')[-1] in ".!?"
                assert sentence.count('"') % 2 == 0
                assert sentence.count("«") == sentence.count("»")
                lengths[language].append(len(re.findall(r"\w+", sentence)))
    for values in lengths.values():
        assert 6 <= sum(values) / len(values) <= 11
        assert max(values) <= 18


def test_a_story_depends_on_seed_split_and_number_alone() -> None:
    few, many = list(generate_stories(5, 10)), list(generate_stories(5, 40))
    assert few == many[:10]
    assert [s.sentences for s in generate_stories(6, 10)] != [s.sentences for s in few]
    assert [s.sentences for s in generate_stories(5, 10, "test")] != [s.sentences for s in few]
    assert make_items(5, 6, "test")[:6] == make_items(5, 20, "test")[:6]


def test_every_fact_holds_in_the_text() -> None:
    """The word of every fact drawn from the lexicon stands in the story, in both languages."""
    grammar = default_grammar()
    for k in range(600):
        draft = grammar.draw(rng_for("facts", k), "train")
        story = grammar.story(draft, "x")
        assert set(draft.facts) | {"situation", "problem", "kind"} == set(story.facts)
        for role, entry in draft.facts.items():
            assert story.facts[role] == entry.id
            if role == "outcome" or role in {slot.by for slot in draft.situation.slots}:
                continue
            for language in LANGUAGES:
                base = entry.text[language].lower()
                forms = {base, french.feminine(base)} if entry.type == "adjective" else {base}
                text = " ".join(story.sentences[language]).lower()
                assert any(form in text for form in forms), (story, role)


def test_splits_never_share_a_combination_and_training_has_every_fact() -> None:
    grammar = default_grammar()
    seen: dict[str, set[str]] = {}
    facts: dict[str, set[tuple[str, str, str]]] = {}
    for split in SPLITS:
        drafts = [grammar.draw(rng_for("split", split, k), split) for k in range(6000 if split == "train" else 1500)]
        seen[split] = {combination(d.situation, d.facts) for d in drafts}
        facts[split] = {(d.situation.name, role, e.id) for d in drafts for role, e in d.facts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    declared = {(s.name, role, e.id) for s in grammar.situations for role, r in s.roles.items() for e in r.values}
    assert declared == facts["train"]
    assert min(len(seen["test"]), len(seen["validation"])) > 100


@pytest.mark.parametrize("split", SPLITS)
def test_a_wrong_story_ending_contradicts_exactly_one_fact(split: str) -> None:
    grammar = default_grammar()
    contradicted = Counter()
    items = [item for item in make_items(2, 400, split) if item.kind == "story"]
    for k, (item, mirror) in enumerate(zip(items[::2], items[1::2], strict=True)):
        first, second, role = story_pair(2, k, split)
        assert [key for key in first.facts if first.facts[key] != second.facts[key]] == [role]
        contradicted[role] += 1
        for language in LANGUAGES:
            assert item.context[language] == first.sentences[language][:4]
            assert mirror.context[language] == second.sentences[language][:4]
            assert item.right[language] == mirror.wrong[language] == first.sentences[language][4]
            assert item.wrong[language] == mirror.right[language] == second.sentences[language][4]
            assert item.right[language] != item.wrong[language]
        situation = next(s for s in grammar.situations if s.name == first.facts["situation"])
        assert role in situation.checkable
    assert len(contradicted) >= 6, contradicted


def test_a_wrong_topic_ending_comes_from_another_situation() -> None:
    items = [item for item in make_items(2, 200) if item.kind == "topic"]
    assert len(items) == 200
    for item in items:
        assert all(item.right[language] != item.wrong[language] for language in LANGUAGES)


class Bigrams:
    """Mean log-likelihood a word under add-one bigrams."""

    def __init__(self, sentences: list[str]) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.words: Counter[str] = Counter()
        for sentence in sentences:
            words = self.split(sentence)
            self.pairs.update(pairwise(words))
            self.words.update(words[:-1])

    @staticmethod
    def split(sentence: str) -> list[str]:
        return ["<s>", *re.findall(r"\w+|[^\w\s]", sentence.lower()), "</s>"]

    def score(self, sentence: str) -> float:
        words = self.split(sentence)
        pairs = list(pairwise(words))
        total = sum(math.log((self.pairs[p] + 1) / (self.words[p[0]] + len(self.words))) for p in pairs)
        return total / len(pairs)


def test_endings_alone_give_nothing_away() -> None:
    """Bigrams of the training stories, of the endings alone, and the length alone: chance on every cell."""
    stories = list(generate_stories(0, 4000))
    items = make_items(1, 1000)
    for language, kind in product(LANGUAGES, KINDS):
        chosen = [item for item in items if item.kind == kind]
        assert len(chosen) == 1000
        scorers = {
            "stories": Bigrams([s for story in stories for s in story.sentences[language]]).score,
            "endings": Bigrams([story.sentences[language][-1] for story in stories]).score,
            "length": lambda sentence: len(sentence),
        }
        for name, score in scorers.items():
            margins = [score(item.right[language]) - score(item.wrong[language]) for item in chosen]
            accuracy = sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)
            assert abs(accuracy - 0.5) <= 0.04, (language, kind, name, accuracy)
            # Items in pairs would hide a bias of a pair's first half: half of each pair must be at chance as well.
            half = [(m > 0) + 0.5 * (m == 0) for m in margins[::2]]
            assert abs(sum(half) / len(half) - 0.5) <= 0.09, (language, kind, name)


def test_there_are_a_million_stories_and_more() -> None:
    assert default_grammar().count_stories() >= 10**6
    stories = list(generate_stories(9, 2000))
    assert len({tuple(s.sentences["en"] + s.sentences["fr"]) for s in stories}) >= 1990


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


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("situations/race.yaml", "{the prize}", "{the price}", r"race\.yaml: sentences\.5.*price"),
        ("situations/race.yaml", "{tombé@who}", "{tombé@whom}", r"race\.yaml: sentences\.4.*whom"),
        ("situations/race.yaml", "problem: race", "problems: race", r"race\.yaml: top level: remove or rename"),
        ("situations/race.yaml", "combination: [who", "combination: [whose", r"race\.yaml: combination.*whose"),
        ("situations/race.yaml", "      lost:\n", "      loss:\n", r"race\.yaml: sentences\.4\.outcome"),
        ("lexicon.yaml", "ball: {gender: f,", "ball: {", r"lexicon\.yaml: object\.words\.ball: add gender"),
        ("lexicon.yaml", "fr: Emma}", "de: Emma}", r"lexicon\.yaml: who\.words\.emma"),
        ("lexicon.yaml", "colour:\n", "colour: [\n", r"lexicon\.yaml: not valid YAML"),
    ],
)
def test_mistakes_in_the_data_are_named_by_file_and_key(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    (tmp_path / "situations").mkdir()
    shutil.copy(HERE / "lexicon.yaml", tmp_path)
    shutil.copy(HERE / "situations" / "race.yaml", tmp_path / "situations")
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TresseError, match=message):
        Grammar(tmp_path)
