"""Cloze evaluation: controls that must come out right, and nothing dropped in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slm.audio import write_wav
from slm.errors import TresseError
from slm.likelihood import EndingScore, ScoredItem
from tests.tiny_evaluation import LANGUAGES, TinyBundle, make_item, mirrored
from train.evaluate.cloze.comparison import compare_cloze, compare_scores
from train.evaluate.cloze.evaluation import evaluate_cloze
from train.evaluate.cloze.protocol import HEADLINE, RULES
from train.evaluate.cloze.report import markdown_table
from train.evaluate.cloze.results import read_scores
from train.evaluate.spoken_items import SpokenUnits
from train.speech.voices import SAMPLE_RATE
from train.tools.statistics import accuracy, mcnemar, outcomes

CELLS = ["en>en", "fr>fr", "en>fr", "fr>en"]
ONE_VOICE = {"en": "basile", "fr": "basile"}


@pytest.fixture
def bundle(tmp_path: Path) -> TinyBundle:
    return TinyBundle(tmp_path / "bundle")


def evaluate(bundle: TinyBundle, items: list[dict[str, Any]], out: Path, **settings: Any) -> dict[str, Any]:
    """In one voice, unless the settings say otherwise."""
    return evaluate_cloze(bundle, items, out=out, **{"voices": ONE_VOICE, **settings})


Judge = Callable[[list[int], list[int], int], float]


def scorer(judge: Judge) -> Callable[..., list[list[EndingScore]]]:
    """A stand-in for `score_endings` that values an ending by (prompt, ending, its number)."""

    def score(model: Any, items: list[ScoredItem], **_: Any) -> list[list[EndingScore]]:
        return [
            [
                EndingScore(
                    value * len(ending),
                    value * (len(item.prompt) + len(ending)),
                    0.0,
                    len(ending),
                    len(item.prompt) + len(ending),
                )
                for number, ending in enumerate(item.endings)
                for value in [judge(list(item.prompt), list(ending), number)]
            ]
            for item in items
        ]

    return score


def flat(results: dict[str, Any]) -> list[float]:
    return [entry["accuracy"] for cell in results["cells"].values() for entry in cell.values()]


def test_an_oracle_scores_all_and_its_opposite_none(
    bundle: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [make_item(n, kind) for n in range(6) for kind in ("story", "topic")]
    spoken: dict[tuple[int, ...], bool] = {}

    def learn(prompt: list[int], ending: list[int], number: int) -> float:
        spoken[tuple(ending)] = number % 2 == 0  # endings come as right, wrong, right, wrong
        return 0.0

    monkeypatch.setattr("train.evaluate.cloze.evaluation.score_endings", scorer(learn))
    ties = evaluate(bundle, items, tmp_path / "ties")
    assert flat(ties) == [0.5] * 8
    monkeypatch.setattr(
        "train.evaluate.cloze.evaluation.score_endings", scorer(lambda prompt, ending, _: float(spoken[tuple(ending)]))
    )
    results = evaluate(bundle, items, tmp_path / "oracle")
    assert list(results["cells"]) == CELLS
    assert flat(results) == [1.0] * 8
    assert all(results["rules"][rule]["cells"][cell]["story"]["accuracy"] == 1 for rule in RULES for cell in CELLS)
    assert all(entry["n"] == 6 for cell in results["cells"].values() for entry in cell.values())
    swapped = [mirrored(item) for item in items]
    assert flat(evaluate(bundle, swapped, tmp_path / "swapped")) == [0.0] * 8


def test_a_random_model_stands_at_chance_and_swapping_mirrors_it(bundle: TinyBundle, tmp_path: Path) -> None:
    items = [make_item(n) for n in range(60)]
    # which ending is right is drawn, so that no bias of the model can show
    rng = np.random.default_rng(0)
    items = [mirrored(item) if rng.random() < 0.5 else item for item in items]
    results = evaluate(bundle, items, tmp_path / "one")
    swapped = evaluate(bundle, [mirrored(item) for item in items], tmp_path / "two")
    for rule in RULES:
        for cell in CELLS:
            one = results["rules"][rule]["cells"][cell]["story"]
            two = swapped["rules"][rule]["cells"][cell]["story"]
            assert one["accuracy"] + two["accuracy"] == pytest.approx(1)
            assert abs(one["accuracy"] - 0.5) < 4 * 0.5 / np.sqrt(60)
    control = results["controls"]["without_context"]["cells"]
    assert control["en>fr"]["story"]["accuracy"] == control["fr>fr"]["story"]["accuracy"]


def test_scores_are_those_of_the_protocol(bundle: TinyBundle, tmp_path: Path) -> None:
    """One item, by hand: prompt, tags given but not scored, endings without <eos>."""
    item = make_item(9)
    evaluate(bundle, [item], tmp_path / "out")
    spoken = SpokenUnits(bundle.units)
    spoken.add([(text, lang, "basile") for lang in LANGUAGES for text in [*item["context"][lang], item["right"][lang]]])
    words = bundle.vocabulary

    def tokens(text: str, language: str) -> list[int]:
        return [words.tag_ids[language], *words.encode(spoken.units(text, language, "basile").ids)]

    prompt = [words.bos_id, *(token for text in item["context"]["en"] for token in tokens(text, "en"))]
    ending = tokens(item["right"]["fr"], "fr")
    sequence = torch.tensor([prompt + ending])
    with torch.no_grad():
        values = bundle.language_model(sequence).logits.log_softmax(-1)[0, :-1].gather(1, sequence[0, 1:, None])[:, 0]
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    row = next(row for row in rows if (row["context"], row["ending"]) == ("en", "fr"))
    assert row["right"]["tokens"] == len(ending) - 1
    assert row["right"]["given"] == pytest.approx(float(values[len(prompt) :].sum()), abs=1e-3)


def test_what_cannot_be_used_is_reported_per_item_and_counted(bundle: TinyBundle, tmp_path: Path) -> None:
    items = [make_item(n) for n in range(7)]
    items[1]["right"]["fr"] = {"audio": "gone.wav"}
    del items[2]["context"]["fr"]
    items[3]["wrong"]["en"] = "  "
    (tmp_path / "empty.wav").touch()
    items[4]["context"]["en"][1] = {"audio": "empty.wav"}
    items[5]["context"]["fr"] = ["one two three four " * 150] * 2
    results = evaluate(bundle, items, tmp_path / "out", audio_root=tmp_path)
    why = {
        (problem["id"], problem["language"], problem["entry"]): problem["problem"] for problem in results["problems"]
    }
    assert "gone.wav" in why.pop(("story-1", "fr", "right"))
    assert "no context in fr" in why.pop(("story-2", "fr", "context"))
    assert "sentence is empty" in why.pop(("story-3", "en", "wrong"))
    assert "is empty" in why.pop(("story-4", "en", "context[1]"))
    assert "context 512" in why.pop(("story-5", "fr", "context"))
    assert not why
    counts = {name: (cell["story"]["n"], cell["story"]["left_out"]) for name, cell in results["cells"].items()}
    assert counts == {"en>en": (5, 2), "fr>fr": (4, 3), "en>fr": (5, 2), "fr>en": (4, 3)}
    page = (tmp_path / "out" / "cloze.md").read_text()
    assert "Left out (6)" in page
    assert "gone.wav" in page
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_nothing_to_score_is_an_error_that_names_the_first_problem(bundle: TinyBundle, tmp_path: Path) -> None:
    item = make_item(0)
    item["context"] = {language: [{"audio": "gone.wav"}] for language in LANGUAGES}
    with pytest.raises(TresseError, match=r"story-0: no audio file .*gone\.wav"):
        evaluate(bundle, [item], tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
    with pytest.raises(TresseError, match="at least one"):
        evaluate(bundle, [], tmp_path / "out")
    with pytest.raises(TresseError, match="no 'wrong'"):
        evaluate(bundle, [{"id": 1, "kind": "story", "context": {}, "right": {}}], tmp_path / "out")
    with pytest.raises(TresseError, match="unknown voice"):
        evaluate(bundle, [make_item(0)], tmp_path / "out", voices={"en": "nobody"})
    with pytest.raises(TresseError, match="unknown language 'de'"):
        evaluate(bundle, [make_item(0)], tmp_path / "out", voices={"de": "basile"})


def test_audio_files_stand_for_the_sentences_they_hold(bundle: TinyBundle, tmp_path: Path) -> None:
    from train.speech.voices import Voices, speak

    items = [make_item(n) for n in range(3)]
    spoken = evaluate(bundle, items, tmp_path / "text")
    speaker = Voices.load().speaker("basile")
    for item in items:
        for part in ("right", "wrong"):
            name = f"{item['id']}-{part}.wav"
            write_wav(tmp_path / name, speak(item[part]["fr"], "fr", speaker), SAMPLE_RATE)
            item[part]["fr"] = {"audio": name}
    heard = evaluate(bundle, items, tmp_path / "audio", audio_root=tmp_path)
    assert not heard["problems"]
    assert heard["cells"] == spoken["cells"]


def test_a_sentence_is_encoded_once_and_kept_on_disk_for_its_voice_and_encoder(
    bundle: TinyBundle, tmp_path: Path
) -> None:
    items = [make_item(n) for n in range(5)]
    distinct = {
        (language, text)
        for item in items
        for language in LANGUAGES
        for text in [*item["context"][language], item["right"][language], item["wrong"][language]]
    }
    first = evaluate(bundle, items, tmp_path / "out")
    assert bundle.units.encoded == len(distinct)
    again = evaluate(bundle, items, tmp_path / "out")
    assert bundle.units.encoded == len(distinct)
    assert again == first
    evaluate(bundle, items, tmp_path / "out", voices={"en": "basile", "fr": "zoe"})
    french = sum(language == "fr" for language, _ in distinct)
    assert bundle.units.encoded == len(distinct) + french
    (bundle.path / "units" / "config.json").write_text('{"other": 1}')
    evaluate(bundle, items, tmp_path / "out")
    assert bundle.units.encoded == 2 * len(distinct) + french
    for path in (tmp_path / "out" / "speech").rglob("*.npz"):
        path.write_bytes(b"PK damaged")
    assert evaluate(bundle, items, tmp_path / "out")["cells"] == first["cells"]


def test_three_languages_make_nine_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    languages = ["en", "fr", "de"]
    monkeypatch.setattr("train.speech.voices.Voices.load", classmethod(_with_german(languages)))
    bundle = TinyBundle(tmp_path / "bundle", languages=languages)
    item = make_item(1)
    for part in ("context", "right", "wrong"):
        item[part]["de"] = item[part]["en"]
    monkeypatch.setattr(
        "train.evaluate.spoken_items.speak",
        lambda text, language, speaker, voices: np.full(9600, len(text) / 200, np.float32),
    )
    results = evaluate(bundle, [item], tmp_path / "out", voices={"de": "anouk"})
    assert set(results["cells"]) == {f"{a}>{b}" for a in languages for b in languages}


def _with_german(languages: list[str]) -> Callable[..., Any]:
    from train.speech.voices import Voices

    known = Voices.load()
    return lambda cls, path=None: Voices(
        dict.fromkeys(languages, "en-us"), known.reference, known.vocoder, known.training, known.held_out
    )


def test_the_table_shows_every_cell_and_the_control(bundle: TinyBundle, tmp_path: Path) -> None:
    items = [make_item(n, kind) for n in range(4) for kind in ("topic", "story")]
    table = markdown_table(evaluate(bundle, items, tmp_path / "out"))
    lines = table.splitlines()
    assert lines[0] == "| Context > ending | story | topic |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*CELLS, "no context > en", "no context > fr"]
    assert all(re.search(r"\d+\.\d \[\d+\.\d, \d+\.\d\] \(n=4\)", line) for line in lines[2:])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        entry = accuracy((rng.random(150) < 0.7).astype(float))
        covered += entry["ci95"][0] <= 0.7 <= entry["ci95"][1]
    assert 0.89 <= covered / 200 <= 0.99
    assert accuracy(np.array([]))["accuracy"] is None


def test_ties_count_one_half() -> None:
    assert outcomes(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])).tolist() == [0.0, 0.5, 1.0]


def test_unseen_and_seen_voices_stand_apart_with_endings_in_the_same_and_in_another_voice(
    bundle: TinyBundle, tmp_path: Path
) -> None:
    items = [make_item(n) for n in range(6)]
    items += [mirrored(item, id=f"mirror-{item['id']}") for item in items]
    results = evaluate(bundle, items, tmp_path / "out", voices=None)
    counts = {
        (group, pairing): entry["rules"][HEADLINE]["cells"]["en>fr"]["story"]["n"]
        for group, pairings in results["groups"].items()
        for pairing, entry in pairings.items()
    }
    assert counts == {("unseen", "same"): 12, ("unseen", "different"): 12, ("seen", "same"): 12}
    assert results["cells"] == results["groups"]["unseen"]["same"]["rules"][HEADLINE]["cells"]
    assert not set(results["voices"]["seen"]) & set(results["voices"]["unseen"])
    scores = {
        (one.item, one.pairing, one.context, one.ending): one
        for one in read_scores(tmp_path / "out" / "scores.jsonl")
        if one.group == "unseen"
    }
    same, other = (scores["story-0", pairing, "en", "en"] for pairing in ("same", "different"))
    assert same.right.given != other.right.given
    assert same.right.whole - same.right.given == pytest.approx(other.right.whole - other.right.given, abs=1e-4)
    # whatever the model, mirrored items without context are right once in two
    for pairings in results["groups"].values():
        for entry in pairings.values():
            for cell in entry["controls"]["without_context"]["cells"].values():
                assert cell["story"]["accuracy"] == 0.5
                assert cell["story"]["ci95"] == [0.5, 0.5]


def test_recordings_are_a_group_of_their_own(bundle: TinyBundle, tmp_path: Path) -> None:
    from train.speech.voices import Voices, speak

    speaker = Voices.load().speaker("basile")

    def recorded(text: str, language: str) -> dict[str, str]:
        name = f"{language}-{text.replace(' ', '-')}.wav"
        write_wav(tmp_path / name, speak(text, language, speaker), SAMPLE_RATE)
        return {"audio": name}

    items = [make_item(n) for n in range(3)]
    for item in items[:2]:
        for language in LANGUAGES:
            item["context"][language] = [recorded(text, language) for text in item["context"][language]]
            for part in ("right", "wrong"):
                item[part][language] = recorded(item[part][language], language)
    results = evaluate(bundle, items, tmp_path / "out", voices=None, groups=["seen"], audio_root=tmp_path)
    assert {group: list(pairings) for group, pairings in results["groups"].items()} == {
        "seen": ["same", "different"],
        "recorded": ["same"],
    }
    assert results["groups"]["recorded"]["same"]["rules"][HEADLINE]["cells"]["en>en"]["story"]["n"] == 2
    assert results["cells"]["en>en"]["story"]["n"] == 1
    assert not results["problems"]


def test_the_contradicted_fact_is_broken_down(bundle: TinyBundle, tmp_path: Path) -> None:
    facts = ["colour"] * 10 + ["place"] * 9 + ["who"] * 2 + ["friend"]
    items = [{**make_item(n), "id": f"story-test-1-{n}-{fact}"} for n, fact in enumerate(facts)]
    results = evaluate(bundle, items, tmp_path / "out")
    counts = {fact: cells["en>fr"]["n"] for fact, cells in results["facts"].items()}
    assert counts == {"colour": 10, "place": 9, "other facts": 3}
    total = sum(cells["en>fr"]["accuracy"] * cells["en>fr"]["n"] for cells in results["facts"].values())
    assert total == pytest.approx(22 * results["cells"]["en>fr"]["story"]["accuracy"])
    assert "| colour |" in (tmp_path / "out" / "cloze.md").read_text()


def test_two_systems_are_compared_item_by_item(bundle: TinyBundle, tmp_path: Path) -> None:
    items = [make_item(n) for n in range(40)]
    first = evaluate(bundle, items, tmp_path / "one")
    other = TinyBundle(tmp_path / "other", seed=1)
    second = evaluate(other, items[:30], tmp_path / "two")
    comparison = compare_cloze(tmp_path / "two", tmp_path / "one", lambda *_: None)
    cell = comparison["cells"]["en>fr"]["story"]
    assert cell["n"] == 30
    assert comparison["unmatched"] == 4 * 10
    assert cell["second"] == pytest.approx(second["cells"]["en>fr"]["story"]["accuracy"])
    assert cell["difference"] == pytest.approx(cell["second"] - cell["first"])
    assert cell["p"] == mcnemar(cell["first_only"], cell["second_only"])
    assert (tmp_path / "two" / "compare.md").exists()
    scores = read_scores(tmp_path / "one" / "scores.jsonl")
    itself = compare_scores(scores, scores)["cells"]["fr>fr"]["story"]
    assert (itself["difference"], itself["p"], itself["n"]) == (0, 1, 40)
    assert itself["first"] == pytest.approx(first["cells"]["fr>fr"]["story"]["accuracy"])
    with pytest.raises(TresseError, match="no item in common"):
        compare_scores(scores, [])
