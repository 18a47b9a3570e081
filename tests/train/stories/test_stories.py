"""Stories: right forms, honest splits, endings that give nothing away."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations, product

import pytest

from slm.errors import TresseError
from tests.train.stories.corpora import (
    BENCHMARK_SPLITS,
    benchmark,
    training_stories,
    words_of,
)
from train.stories import english, french
from train.stories.cloze_items import (
    KINDS,
    make_items,
    story_pair,
    topic_pair,
)
from train.stories.data import CORE, EXTRAS, LANGUAGES, UNSEEN, WORDINGS, Situation
from train.stories.grammar import (
    SPLITS,
    Cycles,
    combination,
    default_grammar,
    generate_stories,
    rng_for,
    split_of,
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
    ("de who", {"who": "hedgehog"}, "du hérisson"),
    ("que who", {"who": "hedgehog"}, "que le hérisson"),
    ("ce who", {"who": "hedgehog"}, "ce hérisson"),
    ("de who", {"who": "bear"}, "de l'ours"),
    ("à who", {"who": "bear"}, "à l'ours"),
    ("ce who", {"who": "bear"}, "cet ours"),
    ("un vieux object", {"object": "teddy"}, "un vieil ours en peluche"),
    ("le object colour", {"object": "plane", "colour": "grey"}, "l'avion en papier gris"),
    ("à who", {"who": "alice"}, "à Alice"),
    ("que who", {"who": "alice"}, "qu'Alice"),
    ("intro who", {"who": "adam"}, "un garçon nommé Adam"),
    ("un object colour", {"object": "boots", "colour": "brown"}, "des bottes marron"),
    ("un object colour", {"object": "lamp", "colour": "grey"}, "une lampe grise"),
    ("un object colour", {"object": "gloves", "colour": "grey"}, "des gants gris"),
    ("un object colour", {"object": "slippers", "colour": "pink"}, "des pantoufles roses"),
    ("un beau object", {"object": "slippers"}, "de belles pantoufles"),
    ("à son family", {"family": "sister"}, "à sa sœur"),
    ("mon family", {"family": "aunt"}, "ma tante"),
    ("feeling@who", {"who": "hen", "feeling": "nervous"}, "nerveuse"),
    ("feeling@who", {"who": "goat", "feeling": "disappointed"}, "déçue"),
    ("feeling@who", {"who": "nina", "feeling": "touched"}, "émue"),
    ("feeling@who", {"who": "alice", "feeling": "grateful"}, "reconnaissante"),
    ("dans place", {"place": "school"}, "à l'école"),
    ("dans place", {"place": "harbour"}, "au port"),
    ("dans place", {"place": "valley"}, "dans la vallée"),
    ("dans place", {"place": "lake"}, "au bord du lac"),
    ("de food", {"food": "apricot"}, "d'abricot"),
    ("un bon food", {"food": "apricot"}, "un bon abricot"),
    ("quel@food", {"food": "peach"}, "quelle"),
    ("allé@who+friend", {"who": "hen", "friend": "goat"}, "allées"),
    ("allé@who+friend", {"who": "hen", "friend": "bear"}, "allés"),
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
    ("intro who", {"who": "hedgehog"}, "a little hedgehog"),
    ("a food", {"food": "apricot"}, "an apricot"),
    ("a big food", {"food": "apple"}, "a big apple"),
    ("a colour object", {"object": "slippers", "colour": "pink"}, "some pink slippers"),
    ("her@who family", {"who": "goat", "family": "uncle"}, "her uncle"),
    ("this object", {"object": "slippers"}, "these slippers"),
    ("to place", {"place": "lake"}, "to the lake"),
    ("in place", {"place": "harbour"}, "at the harbour"),
    ("in place", {"place": "lake"}, "by the lake"),
    ("herself@who", {"who": "hen"}, "herself"),
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
        r"\b(ma|ta|sa) (?=[aeiouéèêâîô])|\bsi ils? |"
        r"\bdes (beaux|belles|petite?s|grande?s|bons|bonnes|vieux|vieilles|jolie?s) (?!pois|gens)",
        re.IGNORECASE,
    )
    for story in (*generate_stories(11, 1500), *generate_stories(11, 500, UNSEEN)):
        for sentence in story.sentences["fr"]:
            # h aspiré and clitics before infinitives written in full never match: no vowel follows them.
            assert not wrong.search(sentence), sentence
            assert sentence[0].isupper() or sentence[0] == "«"


def test_sentences_are_clean_and_short() -> None:
    lengths: dict[str, list[int]] = defaultdict(list)
    for story in (*generate_stories(3, 1500), *generate_stories(3, 500, UNSEEN)):
        for language in LANGUAGES:
            for sentence in story.sentences[language]:
                assert not re.search(r"[{}@|\x1f—–:;()0-9]|  | [.,]|_", sentence), sentence
                assert sentence.rstrip(' "»')[-1] in ".!?", sentence
                assert sentence.count('"') % 2 == 0
                assert sentence.count("«") == sentence.count("»")
                lengths[language].append(len(re.findall(r"[\w'-]+", sentence)))
    for values in lengths.values():
        assert 6 <= sum(values) / len(values) <= 11.5
        assert max(values) <= 21


def test_optional_sentences_come_and_go_between_the_first_and_the_last() -> None:
    grammar, told = default_grammar(), Counter()
    for k in range(1500):
        draft = grammar.draw(rng_for("extras", k), "train")
        story, slots = grammar.story(draft, "x"), draft.situation.slots
        assert {len(sentences) for sentences in story.sentences.values()} == {len(draft.told)}
        assert set(draft.situation.core) <= set(draft.told)
        assert (draft.told[0], draft.told[-1]) == (0, len(slots) - 1)
        told[len(draft.told)] += 1
    assert set(told) == set(range(CORE, CORE + EXTRAS + 1))
    assert min(told.values()) >= 20
    for split, language in product(BENCHMARK_SPLITS, LANGUAGES):
        assert {len(item.context[language]) for item in benchmark(split)} == {CORE - 1}


def test_sentences_in_all_languages_are_the_same_wording() -> None:
    grammar, seen = default_grammar(), set()
    for k in range(300):
        draft = grammar.draw(rng_for("paired", k), "train")
        for i in draft.told:
            wordings = draft.situation.slots[i].of(draft.facts)
            chosen = {
                next(n for n, w in enumerate(wordings) if w[la] is grammar.template(draft, la, i)) for la in LANGUAGES
            }
            assert len(chosen) == 1
            seen |= chosen
    assert seen >= set(range(WORDINGS))


@pytest.mark.parametrize("cycles", [Cycles(50), Cycles(50, values=2, wordings=1)])
def test_a_cycle_combines_few_facts_and_shares_sentences(cycles: Cycles) -> None:
    stories = list(generate_stories(4, 200, cycles=cycles))
    assert stories[:70] == list(generate_stories(4, 70, cycles=cycles))
    situations = {situation.name: situation for situation in default_grammar().situations}
    for k in range(0, 200, 50):
        group = stories[k : k + 50]
        (name,) = {story.facts["situation"] for story in group}
        for role in situations[name].roles:
            assert 1 <= len({story.facts[role] for story in group}) <= cycles.values
        assert len({tuple(story.facts.items()) for story in group}) > {3: 25, 2: 5}[cycles.values]
        for language in LANGUAGES:
            sentences = [sentence for story in group for sentence in story.sentences[language]]
            assert len(set(sentences)) < {3: 0.7, 2: 0.3}[cycles.values] * len(sentences)
        for story in group:
            assert split_of(situations[name], _entries(situations[name], story.facts)) == "train"
    with pytest.raises(TresseError, match="cycle"):
        Cycles(0)


def _entries(situation: Situation, facts: dict[str, str]) -> dict[str, Entry]:
    """The values of the roles that the ids name."""
    return {
        name: next(entry for entry in role.values if entry.id == facts[name]) for name, role in situation.roles.items()
    }


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
        count = 25_000 if split == "train" else 1500
        drafts = [grammar.draw_facts(rng_for("split", split, k), split) for k in range(count)]
        seen[split] = {combination(d.situation, d.facts) for d in drafts}
        facts[split] = {(d.situation.name, role, e.id) for d in drafts for role, e in d.facts.items()}
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other], (one, other)
    known = grammar.situations_of("train")
    declared = {(s.name, role, e.id) for s in known for role, r in s.roles.items() for e in r.values}
    assert declared == facts["train"]
    assert min(len(seen[split]) for split in SPLITS) > 100


def test_held_out_situations_are_in_no_other_split() -> None:
    grammar = default_grammar()
    held_out = {situation.name for situation in grammar.situations if situation.unseen}
    assert len(held_out) >= 8
    for split in SPLITS:
        names = {story.facts["situation"] for story in generate_stories(8, 400, split)}
        assert names <= held_out if split == UNSEEN else not names & held_out
        for kind in KINDS:
            pairs = [story_pair(8, k, split) if kind == "story" else topic_pair(8, k, split) for k in range(100)]
            names = {story.facts["situation"] for pair in pairs for story in pair[:2]}
            assert names <= held_out if split == UNSEEN else not names & held_out


def test_words_of_held_out_situations_are_known_from_training() -> None:
    for language in LANGUAGES:
        known = words_of(training_stories(), language)
        heard = words_of(list(generate_stories(0, 1500, UNSEEN)), language)
        covered = sum(count for word, count in heard.items() if word in known) / heard.total()
        assert covered >= 0.95, (language, covered)


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
