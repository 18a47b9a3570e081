"""Unseen voices named by language: every item is asked in every language, by a voice that speaks it; and the headline."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from tests.tiny_evaluation import LANGUAGES, TinyBundle, make_item, mirrored
from train.evaluate import all as everything
from train.evaluate.cloze.evaluation import evaluate_cloze
from train.evaluate.cloze.items import Item
from train.evaluate.cloze.voice_groups import fingerprints, panel_of, voice_groups
from train.publish.figures import SETS, cloze_table, digest
from train.speech.voices import Voices

NATURAL = "voices-natural.yaml"
WRITTEN = {"texts": {"written": {}}}
ENTRIES = [{"en": f"en-{n}", "fr": f"fr-{n}"} for n in range(6)]


@pytest.fixture
def natural() -> Voices:
    return Voices.named(NATURAL)


@pytest.fixture
def bundle(tmp_path: Path) -> TinyBundle:
    bundle = TinyBundle(tmp_path / "bundle")
    bundle.info["provenance"] |= {"voices_file": NATURAL, "voices": []}
    return bundle


def languages_of(voices: Voices, name: str) -> set[str]:
    """What a voice's entry in the file says that it speaks, whatever is installed."""
    speaker = voices.speaker(name)
    return set(getattr(speaker, speaker.family, voices.languages))


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Who spoke which language: every voice speaks the languages of its entry, as a tone of its own."""
    said: list[tuple[str, str]] = []

    def check(voices: Voices, names: Any, languages: Any) -> None:
        for name in names:
            if lacking := set(languages) - languages_of(voices, name):
                raise TresseError(f"voice {name} does not speak {lacking}")

    def speak(text: str, language: str, speaker: Any, voices: Voices) -> np.ndarray:
        voices.check([speaker.name], [language])
        said.append((speaker.name, language))
        level = 0.1 + (sum(map(ord, text + speaker.name)) % 40) / 100
        return np.full(9600, level, np.float32)

    monkeypatch.setattr(Voices, "check", check)
    monkeypatch.setattr(Voices, "fingerprint", lambda voices, names: [f"print of {name}" for name in names])
    monkeypatch.setattr("train.evaluate.spoken_items.speak", speak)
    return said


def test_six_entries_of_three_families_speak_all_languages(natural: Voices) -> None:
    assert len(natural.unseen) == 6
    families = {natural.speaker(name).family for names in natural.unseen for name in names.values()}
    assert families == {"kokoro", "pico", "piper", "flite"}
    assert len({natural.speaker(names["en"]).family for names in natural.unseen}) == 3
    for names in natural.unseen:
        assert set(names) == set(natural.languages)
        assert all(language in languages_of(natural, name) for language, name in names.items())
    heard = {name for names in natural.unseen for name in names.values() if name in natural.training}
    assert heard == {"pia"}, "the README says which of them the encoder has heard"


@pytest.mark.parametrize("described", [True, False])
def test_no_item_is_left_out_for_a_voice_that_speaks_one_language(
    described: bool, bundle: TinyBundle, natural: Voices, spoken: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Each held-out voice by itself leaves French items out; entries by language leave none."""
    items = [make_item(n, kind) for n in range(30) for kind in ("story", "topic")]
    panel = natural if described else dataclasses.replace(natural, unseen=[])
    results = evaluate_cloze(bundle, items, out=tmp_path / "out", panel=panel)
    counts = [
        (entry["n"], entry["left_out"])
        for pairing in results["groups"]["unseen"].values()
        for cell in pairing["rules"]["whole_file"]["cells"].values()
        for entry in cell.values()
    ]
    assert len(counts) == 2 * 4 * 2
    if not described:
        assert any(left_out for _, left_out in counts)
        return
    assert set(counts) == {(30, 0)}
    assert not results["problems"]
    assert set(spoken) == {(name, language) for names in natural.unseen for language, name in names.items()}
    assert "the unit encoder has heard pia" in (tmp_path / "out" / "cloze.md").read_text(encoding="utf-8")


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["story", "topic"]), st.integers(0, 9), st.integers(2, 6))
def test_entries_are_drawn_by_mirrored_pair_and_seed(number: int, kind: str, seed: int, count: int) -> None:
    given_item = make_item(number, kind)
    item, mirror = (Item.of(row, 1) for row in (given_item, mirrored(given_item, id="mirror")))
    choices = ENTRIES[:count]
    drawn = item.draw(choices, seed=seed)
    assert drawn in choices
    assert mirror.draw(choices, seed=seed) == drawn
    other = item.draw(choices, shift=1, seed=seed)
    assert other == mirror.draw(choices, shift=1, seed=seed)
    assert not set(other.values()) & set(drawn.values())


def test_every_entry_is_drawn_about_as_often_and_another_seed_draws_anew() -> None:
    items = [Item.of(make_item(n), n) for n in range(60)]
    drawn = [[ENTRIES.index(item.draw(ENTRIES, seed=seed)) for item in items] for seed in range(4)]
    assert all(set(row) == set(range(6)) for row in drawn)
    assert all(first != second for first, second in pairwise(drawn))


def test_a_bundle_is_asked_by_its_recipes_unseen_voices_where_all_of_them_speak(
    bundle: TinyBundle, natural: Voices, spoken: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    panel = panel_of(bundle)
    assert panel.unseen == natural.unseen
    assert list(voice_groups(bundle, panel)) == ["unseen"], "its language model was trained on no voice"
    assert list(voice_groups(bundle, panel)["unseen"]) == natural.unseen
    assert {"print of slt", "print of joe"} <= set(fingerprints(panel, LANGUAGES))
    assert panel_of(bundle, {"en": "zoe"}).reference == Voices.load().reference
    bundle.info["provenance"]["voices"] = ["pia", "bella"]
    groups = voice_groups(bundle, panel)
    assert [dict(names) for names in groups["unseen"]] == natural.unseen[1:], "what it was trained on is not unseen"
    assert [names["en"] for names in groups["seen"]] == ["bella", "pia"]

    whole = Voices.check

    def without_flite(voices: Voices, names: Any, languages: Any) -> None:
        if any(voices.speaker(name).family == "flite" for name in names):
            raise TresseError("install your system's package flite")
        whole(voices, names, languages)

    monkeypatch.setattr(Voices, "check", without_flite)
    assert not panel_of(bundle).unseen
    assert "install your system's package flite" in capsys.readouterr().err
    alone = voice_groups(bundle, natural)["unseen"]
    assert {name for names in alone for name in names.values()} == {"sarah", "kore", "lily", "liam", "onyx", "lewis"}


def test_written_stories_come_first_in_the_report_of_a_bundle_that_learnt_from_such() -> None:
    own, other = everything.parts_of(WRITTEN), everything.parts_of({})
    assert next(iter(own)) == "cloze-written"
    assert [name for name in own if name != "cloze-written"] == [name for name in other if name != "cloze-written"]
    assert set(own) == set(other)
    assert next(iter(other)) == "cloze"


def cloze_results(score: float) -> dict[str, Any]:
    def cells(value: float) -> dict[str, Any]:
        return {"cells": {"en>fr": {"story": {"accuracy": value, "ci95": [value, value], "n": 8, "left_out": 0}}}}

    entry = {
        "rules": {"ending_given_prompt": cells(score)},
        "controls": {"without_context": cells(score - 0.1)},
    }
    return {"groups": {"unseen": {"same": entry}}}


@pytest.mark.parametrize("provenance", [WRITTEN, {}])
def test_written_stories_are_the_first_of_the_published_figures(provenance: dict[str, Any]) -> None:
    parts = {"cloze": cloze_results(0.9), "cloze-unseen": cloze_results(0.8), "cloze-written": cloze_results(0.6)}
    cloze = digest({"parts": parts, "bundle": {"provenance": provenance}})["cloze"]
    names = [name for name in cloze if name in SETS]
    first = ["written"] if provenance else []
    assert names == [*first, "unseen_voices", "unseen_situations", *([] if first else ["written"])]
    control = cloze["without_context"]["cells"]["en>fr"]["story"]["accuracy"]
    assert control == pytest.approx(0.5 if provenance else 0.8)
    assert cloze_table(cloze).splitlines()[0] == "| | " + " | ".join(SETS[name] for name in names) + " |"
    alone = digest({"parts": {"cloze-written": parts["cloze-written"]}})["cloze"]
    assert set(alone) == {"written", "without_context"}
