"""Corpora mixed from sources: shares by words, the same again for a seed, nothing of the benchmarks, the unused named."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from train.recipe import Recipe
from train.stories.corpus_page import page
from train.stories.decontamination import GENERATED, Overlap, benchmarks, spoken_words
from train.stories.grammar import PAIRS, Cycles, Story
from train.stories.mixture import Mixture, describe
from train.stories.names import vary_names
from train.stories.sources import LEFT_OVER, Filters, Source, cut
from train.stories.written_cloze import splits

LANGUAGES = ("en", "fr")
NOTHING = Overlap({})
PARALLEL = Source("stories.jsonl", share=2, filters=Filters(score=0.25))
TATOEBA = Source("pairs.jsonl.gz", share=1, kind="pairs", licence="CC BY 2.0 FR", name="Pairs")
PROSE = Source("prose.jsonl", share=1, kind="text")
GRAMMAR = Source("grammar", share=2)
SOURCES = (PARALLEL, TATOEBA, PROSE, GRAMMAR)
WORDS = ["dog", "cat", "sun", "house", "tree", "river", "bread", "stone", "lamp", "bird"]


def sentence(rng: random.Random) -> str:
    return " ".join(["The", *rng.choices(WORDS, k=rng.randint(3, 6))]) + "."


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rng = random.Random(3)
    stories = [
        {
            "sentences": {la: [sentence(rng) for _ in range(12)] for la in LANGUAGES},
            "unit_scores": [None, 0.1 if number == 1 else 0.3, *[0.9] * 10],
            "source": "Storybook",
            "licence": "CC BY 4.0",
            "title": {"en": f"Title {number}", "fr": "Titre"},
            "text": "A. Author",
        }
        for number in range(40)
    ]
    pairs = [{"en": f"Tom sees {sentence(rng)}", "fr": f"Tom voit {sentence(rng)}"} for _ in range(150)]
    pairs[0]["en"] = "Write to tom@home."
    prose = [{"lang": "fr", "text": " ".join(sentence(rng) for _ in range(rng.randint(3, 20)))} for _ in range(60)]
    for name, rows in (("stories.jsonl", stories), ("pairs.jsonl.gz", pairs), ("prose.jsonl", prose)):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    return tmp_path


def mix(texts: Path, words: int, sources: tuple[Source, ...] = SOURCES, seed: int = 0, **more: object) -> Mixture:
    return Mixture(sources, LANGUAGES, texts, words=words, seed=seed, **{"overlap": NOTHING, **more})  # type: ignore[arg-type]


def test_shares_are_of_words_and_a_larger_corpus_begins_with_a_smaller_one(texts: Path) -> None:
    large = mix(texts, 6000)
    rows = [row.to_json() for row in large]
    shares = {name: source["share"] for name, source in large.report()["sources"].items()}
    assert shares == pytest.approx({"stories": 1 / 3, "pairs": 1 / 6, "prose": 1 / 6, "grammar": 1 / 3}, abs=0.03)
    small = [row.to_json() for row in mix(texts, 2500)]
    assert rows[: len(small)] == small
    assert [row.to_json() for row in mix(texts, 6000)] == rows
    assert [row.to_json() for row in mix(texts, 6000, seed=1)] != rows
    ids = [json.loads(row)["id"] for row in rows]
    assert len(set(ids)) == len(ids)


def test_rows_are_as_training_tells_them(texts: Path) -> None:
    kinds: dict[str, list[Story]] = {}
    for row in mix(texts, 5000):
        kinds.setdefault(row.source, []).append(row)
    assert all(len(row.sentences["fr"]) in range(5, 9) and set(row.sentences) == {"fr"} for row in kinds["prose"])
    assert all(
        len(row.sentences["fr"]) in range(5, 9) and set(row.sentences) == {*LANGUAGES} for row in kinds["stories"]
    )
    assert {len(row.sentences["en"]) for row in kinds["pairs"]} == {3, 4}, "told side by side they are six or eight"
    assert {row.kind for row in kinds["pairs"]} == {PAIRS}
    assert not {row.kind for source, rows in kinds.items() if source != "pairs" for row in rows} - {"story"}


def test_a_source_that_ends_is_not_filled_by_others_and_rounds_repeat_it(texts: Path) -> None:
    once = mix(texts, 40_000, (PROSE, GRAMMAR))
    rows = list(once)
    report = once.report()
    assert report["sources"]["prose"]["exhausted"]
    assert not report["sources"]["grammar"]["exhausted"]
    assert once.given[1].words.total() == pytest.approx(40_000 * 2 / 3, rel=0.02)
    twice = mix(texts, 40_000, (Source("prose.jsonl", 1, kind="text", rounds=2), GRAMMAR))
    again = Counter(tuple(row.sentences["fr"]) for row in twice if row.source == "prose")
    assert set(again.values()) == {2}
    assert set(again) == {tuple(row.sentences["fr"]) for row in rows if row.source == "prose"}


def test_what_cannot_be_used_is_counted_and_named(texts: Path) -> None:
    mixture = mix(texts, 10**6, (PARALLEL, TATOEBA, PROSE))
    list(mixture)
    reasons = {name: source["rejected"] for name, source in mixture.report()["sources"].items()}
    assert reasons["stories"]["a score below 0.25"] == {"rows": 1, "sentences": 1, "first": ["2"]}
    assert reasons["pairs"]["a character that is not spoken: @"] == {"rows": 1, "sentences": 1, "first": ["1"]}
    assert reasons["prose"][LEFT_OVER]["rows"] > 0
    sources = mixture.report()["sources"]
    assert sources["stories"]["origins"][0]["licence"] == "CC BY 4.0"
    assert "Title 3, A. Author" in sources["stories"]["credits"]
    assert sources["pairs"]["origins"] == [
        {"source": "Pairs", "licence": "CC BY 2.0 FR", "rows": sources["pairs"]["rows"]}
    ]
    assert "stories" in describe(mixture.report())
    strict = mix(
        texts, 10**6, (Source("prose.jsonl", 1, kind="text", filters=Filters(vocabulary=1.01, length=(4, 6))),)
    )
    assert list(strict) == []
    assert set(strict.report()["sources"]["prose"]["rejected"]) >= {
        "not 4 to 6 words in a sentence",
        "fewer than 101% of its words are known",
    }


def test_stories_in_some_languages_only_stay_where_they_are_asked_for(tmp_path: Path) -> None:
    rng = random.Random(5)
    told = [("en", "fr", "es"), ("en", "fr"), ("es",), ("de",)]
    rows = [{"sentences": {la: [sentence(rng) for _ in range(6)] for la in languages}} for languages in told * 8]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def spoken(partial: bool) -> set[tuple[str, ...]]:
        source = Source("s.jsonl", share=1, partial=partial)
        mixture = Mixture([source], ("en", "fr", "es"), tmp_path, words=10_000, seed=0, overlap=NOTHING)
        return {tuple(row.sentences) for row in mixture}

    assert spoken(False) == {("en", "fr", "es")}
    assert spoken(True) == {("en", "fr", "es"), ("en", "fr"), ("es",)}


def test_the_grammar_tells_only_its_own_languages(texts: Path) -> None:
    with pytest.raises(TresseError, match="grammar tells nothing in es: leave it out, or set its partial to true"):
        Mixture([GRAMMAR], ("en", "es"), texts, words=100, seed=0, overlap=NOTHING)
    partial = Source("grammar", share=1, partial=True)
    rows = list(Mixture([partial], ("en", "es"), texts, words=300, seed=0, overlap=NOTHING))
    assert rows
    assert {tuple(row.sentences) for row in rows} == {("en",)}
    with pytest.raises(TresseError, match=r"in es: leave it out$"):
        Mixture([partial], ("es",), texts, words=100, seed=0, overlap=NOTHING)


def test_validation_stories_are_not_trained_on(texts: Path) -> None:
    train = list(mix(texts, 10**6, (PARALLEL,)))
    validation = list(mix(texts, 10**6, (PARALLEL,), split="validation"))
    assert validation
    assert not {row.id.split("-")[1] for row in train} & {row.id.split("-")[1] for row in validation}


def test_cycles_of_the_grammar_begin_where_voices_do(texts: Path) -> None:
    """With stories_per_voice = cycle each cycle has one voice, whatever was rejected before."""
    spoilt = next(iter(mix(texts, 4000, (GRAMMAR,), cycles=Cycles(8)))).sentences["en"]
    overlap = Overlap({"benchmark": [("en", " ".join(spoilt))]})
    rows = list(mix(texts, 9000, cycles=Cycles(8), overlap=overlap))
    whole = [k for k, row in enumerate(rows) if row.source == "grammar"]
    assert len(whole) >= 24
    for first in whole[:-8:8]:  # the last may come when no other source has anything to fill up with
        assert first % 8 == 0
        assert len({rows[k].facts["situation"] for k in range(first, first + 8)}) == 1


def test_no_row_has_eight_words_of_a_benchmark(tmp_path: Path) -> None:
    """Counted anew, word by word, in what the project's own sources give; and a story of the test set never comes in."""
    test = splits()["test"]
    leaked = [{"sentences": {la: story.sentences[la][:5] for la in LANGUAGES}} for story in test[:40]]
    (tmp_path / "leak.jsonl").write_text("".join(json.dumps(row) + "\n" for row in leaked), encoding="utf-8")
    sources = (Source("written", 3), Source("grammar", 1), Source("leak.jsonl", 1))
    mixture = mix(tmp_path, 30_000, sources, overlap=benchmarks())
    rows = list(mixture)
    runs = {
        " ".join(words[k : k + 8])
        for story in test
        for language in LANGUAGES
        for words in [spoken_words(" ".join(story.sentences[language]))]
        for k in range(len(words) - 7)
    }
    for row in rows:
        for spoken in row.sentences.values():
            words = spoken_words(" ".join(spoken))
            assert not runs & {" ".join(words[k : k + 8]) for k in range(len(words) - 7)}, row.id
        assert not benchmarks().of(row.sentences, exempt=GENERATED if row.source == "grammar" else None)
    assert not [row for row in rows if row.source == "leak"]
    assert mixture.report()["rejected_for_overlap"]["written stories"] >= 38
    text = page("mine", mixture, rows)
    assert "| minimal pairs |" in text
    assert all(f"**{source.id}**" in text for source in sources)


@given(count=st.integers(0, 100))
def test_passages_have_five_to_eight_sentences_and_leave_out_few(count: int) -> None:
    passages = cut([{"en": str(number)} for number in range(count)])
    sizes = [len(passage) for passage in passages]
    assert all(5 <= size <= 8 for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert count - sum(sizes) == (count if count < 5 else 1 if count == 9 else 0)
    assert [unit["en"] for passage in passages for unit in passage] == [str(n) for n in range(sum(sizes))]


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_names_change_in_both_languages_and_keep_their_gender(seed: int) -> None:
    pair = {
        "en": "Tom's sister Mary knew that Tom was late.",
        "fr": "Marie, la sœur de Tom, savait que Tom était en retard.",
    }
    varied = vary_names(pair, random.Random(seed))
    man, woman = varied["en"].split("'s")[0], varied["en"].split(" ")[2]
    assert varied["fr"] == f"{woman}, la sœur de {man}, savait que {man} était en retard."
    assert not {man[0], woman[0]} & set("AEIOUYH"), "nothing is elided"
    alone = {"en": "Tom was late.", "fr": "Il était en retard."}
    assert vary_names(alone, random.Random(seed)) == alone


def test_sources_that_cannot_be_mixed_name_the_mend(texts: Path) -> None:
    with pytest.raises(TresseError, match=r"lacks a\.jsonl, b\.jsonl: set stories\.texts, or TRESSE_TEXTS"):
        mix(texts, 10, (Source("a.jsonl", 1), Source("b.jsonl", 1), GRAMMAR))
    with pytest.raises(TresseError, match="share above 0"):
        mix(texts, 10, (Source("grammar", 0),))
    with pytest.raises(TresseError, match="twice"):
        mix(texts, 10, (PROSE, PROSE))
    with pytest.raises(TresseError, match=r"prose\.jsonl, line \d+: not a story"):
        list(mix(texts, 10, (Source("prose.jsonl", 1),)))
    (texts / "broken.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(TresseError, match="cannot read"):
        list(mix(texts, 10, (Source("broken.jsonl.gz", 1),)))
    with pytest.raises(TresseError, match=r"unknown key stories\.sources\.0\.shares: did you mean"):
        Recipe.load("tiny", {"stories.sources": "[{file: written, shares: 1}]"})
    with pytest.raises(TresseError, match="add the mode mixed"):
        Recipe.load("tiny", {"stories.sources": "[{file: a.jsonl, share: 1, kind: text}]"}).check_sources()
    with pytest.raises(TresseError, match="leave out one of them"):
        Recipe.load("tiny", {"stories": "{file: a.jsonl, sources: [{file: written, share: 1}]}"})
