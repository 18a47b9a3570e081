"""Stories: right forms, honest splits, endings that give nothing away."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations, product
from pathlib import Path

import pytest

from slm.errors import TresseError
from train.stories import english, french
from train.stories.cloze_items import (
    BENCHMARK_ITEMS,
    KINDS,
    ClozeItem,
    contradictions,
    fact_kind,
    handwritten_topics,
    make_items,
    read_handwritten,
    read_items,
    story_pair,
    topic_pair,
    write_items,
)
from train.stories.data import CORE, EXTRAS, LANGUAGES, UNSEEN, WORDINGS, Situation
from train.stories.endings_only import correct_choices, shortcut_scorers
from train.stories.grammar import (
    HERE,
    SPLITS,
    Cycles,
    Grammar,
    Story,
    combination,
    default_grammar,
    generate_stories,
    read_stories,
    rng_for,
    split_of,
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
BENCHMARK_SPLITS = ("test", UNSEEN)


@cache
def benchmark(split: str) -> list[ClozeItem]:
    """The items of the benchmark in one split."""
    return make_items(1, BENCHMARK_ITEMS, split)


@cache
def training_stories() -> list[Story]:
    return list(generate_stories(0, 6000))


def words_of(stories: list[Story], language: str) -> Counter[str]:
    """Word types and how often each occurs."""
    words: Counter[str] = Counter()
    for story in stories:
        for sentence in story.sentences[language]:
            words.update(re.findall(r"[^\W\d_]+", sentence.lower()))
    return words


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
