"""The grammar set: what it holds, what can be had without grammar, and that it runs from texts to a table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.cli import main
from slm.bundle import Bundle
from slm.errors import TresseError
from tests.bundles import BRAID
from tests.tiny_evaluation import TinyBundle
from train.evaluate.lexical import phonemes_of
from train.evaluate.pairs import HEADLINE, RULES, Pair, evaluate_pairs, markdown_table, read_pairs, shipped_pairs
from train.evaluate.syntax import SHORTCUTS, controls, controls_table, minimal_pairs
from train.publish.figures import digest, figures
from train.speech.voices import Voices
from train.tools.statistics import accuracy, mean_accuracy

LANGUAGES = ("en", "fr")
LEANING = {
    "en, missing or doubled article",
    "en, pronoun case",
    "fr, adjective position",
    "fr, auxiliary être/avoir",
    "fr, determiner gender",
    "fr, negation order",
}
"""Phenomena in which bigrams of the written training stories find the right sentence at least four times in five."""


def test_there_are_twelve_phenomena_a_language_of_seventy_pairs_that_differ() -> None:
    pairs = minimal_pairs()
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({(pair.language, pair.right, pair.wrong) for pair in pairs}) == len(pairs)
    assert all(pair.right != pair.wrong for pair in pairs)
    rights = {(pair.language, pair.right) for pair in pairs}
    assert not rights & {(pair.language, pair.wrong) for pair in pairs}, "what is right once is never wrong"
    for language in LANGUAGES:
        counts = Counter(pair.phenomenon for pair in pairs if pair.language == language)
        assert len(counts) >= 12
        assert min(counts.values()) >= 70


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_wrong_sounds_wrong(language: str) -> None:
    """Word by word, as espeak-ng reads: a mistake that only spelling shows is no item for a listener."""
    pairs = [pair for pair in minimal_pairs() if pair.language == language]
    strip = str.maketrans("’", "'", '.,?!;:«»"')
    told = {text: text.lower().translate(strip).split() for pair in pairs for text in (pair.right, pair.wrong)}
    said = phonemes_of({word for words in told.values() for word in words}, Voices.load().languages[language])
    sounds = {text: "".join("".join(said.get(word, (word,))) for word in words) for text, words in told.items()}
    assert not [pair.id for pair in pairs if sounds[pair.right] == sounds[pair.wrong]]


def test_length_tells_nothing_and_bigrams_of_the_stories_lean_where_it_is_said() -> None:
    """Length is at chance in every phenomenon. Bigrams are not: a model above them knows more than its neighbours' rules."""
    pairs = minimal_pairs()
    results = controls([(pair.group, pair.language, pair.right, pair.wrong) for pair in pairs])
    phenomena = {name: entry for name, entry in results.items() if not name.endswith(", mean")}
    for entry in phenomena.values():
        assert abs(entry["words"]["accuracy"] - 0.5) < 0.01
        assert abs(entry["letters"]["accuracy"] - 0.5) < 0.02
    assert {name for name, entry in phenomena.items() if entry["bigrams"]["accuracy"] >= 0.8} == LEANING
    for language in LANGUAGES:
        assert 0.65 < results[f"{language}, mean"]["bigrams"]["accuracy"] < 0.75
    table = controls_table(results).splitlines()
    assert len(table) == 2 + len(results)
    assert all(title in table[0] for title in SHORTCUTS.values())


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0])), min_size=1), st.integers(2, 4))
def test_a_mean_over_groups_counts_each_the_same_however_many_items_it_has(
    items: list[tuple[str, float]], times: int
) -> None:
    groups, values = np.array([name for name, _ in items]), np.array([value for _, value in items])
    own = [accuracy(values[groups == name])["accuracy"] for name in set(groups.tolist())]
    entry = mean_accuracy(values, groups)
    assert entry["accuracy"] == pytest.approx(np.mean(own))
    assert (entry["n"], entry["groups"]) == (len(items), len(own))
    more = np.concatenate([values, np.tile(values[groups == groups[0]], times - 1)])
    again = mean_accuracy(more, np.concatenate([groups, np.full(len(more) - len(values), groups[0])]))
    assert again["accuracy"] == pytest.approx(entry["accuracy"])


def test_the_set_runs_from_texts_to_a_table(tmp_path: Path) -> None:
    bundle = Bundle.load(BRAID, device="cpu")
    pairs = shipped_pairs("grammar")
    few = [
        pair
        for name in ("en, negation", "en, pronoun case", "fr, elision")
        for pair in [pair for pair in pairs if pair.group == name][:2]
    ]
    results = evaluate_pairs(bundle, few, out=tmp_path / "out")
    assert not results["problems"]
    for voices in results["groups"].values():
        assert {name: entry[HEADLINE]["n"] for name, entry in voices.items()} == {"unseen": 2, "seen": 2}
    assert {name: set(voices) for name, voices in results["means"].items()} == {"en": {"unseen", "seen"}}
    for name in ("unseen", "seen"):
        for rule in RULES:
            own = [results["groups"][group][name][rule]["accuracy"] for group in ("en, negation", "en, pronoun case")]
            mean = results["means"]["en"][name][rule]
            assert mean["accuracy"] == pytest.approx(np.mean(own))
            assert (mean["n"], mean["groups"]) == (4, 2)
    table = markdown_table(results)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        name for name in [*results["groups"], "en, mean of 2 groups"] for _ in range(2)
    ]
    page = (tmp_path / "out" / "pairs.md").read_text(encoding="utf-8")
    assert table in page
    assert controls_table(results["controls"]) in page
    metrics = digest({"parts": {"grammar": results}})
    assert f"Grammar, mean of 2 phenomena, en, unseen | {100 * metrics['grammar']['en, unseen']['accuracy']:.1f}" in (
        figures(metrics)
    )


def test_texts_of_a_file_are_spoken_by_the_voice_that_is_named(tmp_path: Path) -> None:
    rows = [{"language": "fr", "right": {"text": "Le chat dort."}, "wrong": {"text": "La chat dort."}}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--bundle", str(BRAID), "--device", "cpu", "--items", str(path), "--cache", str(tmp_path / "speech")]
    main(["eval", "pairs", *options, "--voice", "fr=zoe", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {name: entry["total"]["n"] for name, entry in results["groups"]["all"].items()} == {"chosen": 1}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": ""}, r"line 1: 'wrong': the text is empty"),
        ({"text": 7}, r"line 1: 'wrong': the text is empty"),
        ({"text": "..."}, r"pair line 1: nothing to speak in '\.\.\.'"),
        ({"words": "no"}, r"pair line 1: an entry that is not a sentence"),
    ],
)
def test_a_text_that_cannot_be_spoken_is_one_line(entry: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"language": "en", "right": {"text": "The dog runs."}, "wrong": entry}) + "\n")
    with pytest.raises(TresseError, match=message) as caught:
        evaluate_pairs(TinyBundle(tmp_path / "bundle"), read_pairs(path)[0], out=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_voice_that_does_not_speak_the_language_is_one_line(tmp_path: Path) -> None:
    natural = Voices.named("voices-natural.yaml")
    pair = Pair("1", "all", "fr", "Le chat dort.", "La chat dort.")
    with pytest.raises(TresseError, match="voice slt does not speak 'fr'") as caught:
        evaluate_pairs(
            TinyBundle(tmp_path / "bundle"), [pair], out=tmp_path / "out", voices={"fr": "slt"}, panel=natural
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(TresseError, match="there is no set sing: choose lexical or grammar"):
        shipped_pairs("sing")
