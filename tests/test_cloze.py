"""Cloze evaluation: controls that must come out right, and nothing dropped in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.evaluate.cloze as cloze
from slm.audio import write_wav
from slm.errors import TresseError
from slm.likelihood import EndingScore, ScoredItem
from slm.model import ModelConfig
from slm.units import Units, UnitVocabulary
from train.evaluate.cloze import evaluate_cloze, markdown_table
from train.evaluate.statistics import accuracy, outcomes
from train.speech import SAMPLE_RATE

LANGUAGES = ["en", "fr"]
NUMBERS = {"en": ["one", "two", "three", "four"], "fr": ["un", "deux", "trois", "quatre"]}
CELLS = ["en>en", "fr>fr", "en>fr", "fr>en"]
UNITS = 32


class FakeEncoder:
    """Units of a clip from its loudness in 40 ms steps: quick, and different for different speech."""

    sample_rate, frame_rate, codebook_size = 16000, 25.0, UNITS

    def __init__(self) -> None:
        self.encoded = 0

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        self.encoded += len(waveforms)
        found = []
        for waveform in waveforms:
            frames = waveform[: len(waveform) // 640 * 640].reshape(-1, 640)
            loudness = np.sqrt(np.square(frames).mean(axis=1))
            found.append(Units.from_frames((loudness * 200).astype(np.int64).clip(0, UNITS - 1), self.frame_rate))
        return found


@dataclass
class FakeBundle:
    path: Path
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    units: FakeEncoder = field(default_factory=FakeEncoder)

    def __post_init__(self) -> None:
        (self.path / "units").mkdir(parents=True, exist_ok=True)
        (self.path / "units" / "config.json").write_text("{}")
        self.vocabulary = UnitVocabulary.train([], codebook_size=UNITS, languages=self.languages, vocab_size=None)
        torch.manual_seed(0)
        self.language_model = (
            ModelConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32, max_position=512)
            .build(self.vocabulary)
            .eval()
        )


def make_item(number: int, kind: str = "story") -> dict[str, Any]:
    def sentence(language: str, shift: int) -> str:
        digits = [(number // 4**k + shift) % 4 for k in range(3)]
        return " ".join(NUMBERS[language][digit] for digit in digits)

    return {
        "id": f"{kind}-{number}",
        "kind": kind,
        "context": {language: [sentence(language, 0), sentence(language, 1)] for language in LANGUAGES},
        "right": {language: sentence(language, 2) + " yes oui" for language in LANGUAGES},
        "wrong": {language: sentence(language, 3) + " no non" for language in LANGUAGES},
    }


@pytest.fixture
def bundle(tmp_path: Path) -> FakeBundle:
    return FakeBundle(tmp_path / "bundle")


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
    bundle: FakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [make_item(n, kind) for n in range(6) for kind in ("story", "topic")]
    spoken: dict[tuple[int, ...], bool] = {}

    def learn(prompt: list[int], ending: list[int], number: int) -> float:
        spoken[tuple(ending)] = number % 2 == 0  # endings come as right, wrong, right, wrong
        return 0.0

    monkeypatch.setattr(cloze, "score_endings", scorer(learn))
    ties = evaluate_cloze(bundle, items, out=tmp_path / "ties")
    assert flat(ties) == [0.5] * 8
    monkeypatch.setattr(cloze, "score_endings", scorer(lambda prompt, ending, _: float(spoken[tuple(ending)])))
    results = evaluate_cloze(bundle, items, out=tmp_path / "oracle")
    assert list(results["cells"]) == CELLS
    assert flat(results) == [1.0] * 8
    assert all(
        results["rules"][rule]["cells"][cell]["story"]["accuracy"] == 1 for rule in cloze.RULES for cell in CELLS
    )
    assert all(entry["n"] == 6 for cell in results["cells"].values() for entry in cell.values())
    swapped = [{**item, "right": item["wrong"], "wrong": item["right"]} for item in items]
    assert flat(evaluate_cloze(bundle, swapped, out=tmp_path / "swapped")) == [0.0] * 8


def test_a_random_model_stands_at_chance_and_swapping_mirrors_it(bundle: FakeBundle, tmp_path: Path) -> None:
    items = [make_item(n) for n in range(60)]
    # which ending is right is drawn, so that no bias of the model can show
    rng = np.random.default_rng(0)
    items = [{**item, "right": item["wrong"], "wrong": item["right"]} if rng.random() < 0.5 else item for item in items]
    results = evaluate_cloze(bundle, items, out=tmp_path / "one")
    swapped = evaluate_cloze(
        bundle, [{**item, "right": item["wrong"], "wrong": item["right"]} for item in items], out=tmp_path / "two"
    )
    for rule in cloze.RULES:
        for cell in CELLS:
            one = results["rules"][rule]["cells"][cell]["story"]
            two = swapped["rules"][rule]["cells"][cell]["story"]
            assert one["accuracy"] + two["accuracy"] == pytest.approx(1)
            assert abs(one["accuracy"] - 0.5) < 4 * 0.5 / np.sqrt(60)
    control = results["controls"]["without_context"]["cells"]
    assert control["en>fr"]["story"]["accuracy"] == control["fr>fr"]["story"]["accuracy"]


def test_scores_are_those_of_the_protocol(bundle: FakeBundle, tmp_path: Path) -> None:
    """One item, by hand: prompt, tags given but not scored, endings without <eos>."""
    item = make_item(9)
    evaluate_cloze(bundle, [item], out=tmp_path / "out")
    spoken = cloze.SpokenUnits(bundle.units, {"en": "basile", "fr": "basile"})
    spoken.add([(text, lang) for lang in LANGUAGES for text in [*item["context"][lang], item["right"][lang]]])
    words = bundle.vocabulary

    def tokens(text: str, language: str) -> list[int]:
        return [words.tag_ids[language], *words.encode(spoken.units(text, language).ids)]

    prompt = [words.bos_id, *(token for text in item["context"]["en"] for token in tokens(text, "en"))]
    ending = tokens(item["right"]["fr"], "fr")
    sequence = torch.tensor([prompt + ending])
    with torch.no_grad():
        values = bundle.language_model(sequence).logits.log_softmax(-1)[0, :-1].gather(1, sequence[0, 1:, None])[:, 0]
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    row = next(row for row in rows if (row["context"], row["ending"]) == ("en", "fr"))
    assert row["right"]["tokens"] == len(ending) - 1
    assert row["right"]["given"] == pytest.approx(float(values[len(prompt) :].sum()), abs=1e-3)


def test_what_cannot_be_used_is_reported_per_item_and_counted(bundle: FakeBundle, tmp_path: Path) -> None:
    items = [make_item(n) for n in range(7)]
    items[1]["right"]["fr"] = {"audio": "gone.wav"}
    del items[2]["context"]["fr"]
    items[3]["wrong"]["en"] = "  "
    (tmp_path / "empty.wav").touch()
    items[4]["context"]["en"][1] = {"audio": "empty.wav"}
    items[5]["context"]["fr"] = ["one two three four " * 150] * 2
    results = evaluate_cloze(bundle, items, out=tmp_path / "out", audio_root=tmp_path)
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


def test_nothing_to_score_is_an_error_that_names_the_first_problem(bundle: FakeBundle, tmp_path: Path) -> None:
    item = make_item(0)
    item["context"] = {language: [{"audio": "gone.wav"}] for language in LANGUAGES}
    with pytest.raises(TresseError, match=r"story-0: no audio file .*gone\.wav"):
        evaluate_cloze(bundle, [item], out=tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
    with pytest.raises(TresseError, match="at least one"):
        evaluate_cloze(bundle, [], out=tmp_path / "out")
    with pytest.raises(TresseError, match="no 'wrong'"):
        evaluate_cloze(bundle, [{"id": 1, "kind": "story", "context": {}, "right": {}}], out=tmp_path / "out")
    with pytest.raises(TresseError, match="unknown voice"):
        evaluate_cloze(bundle, [make_item(0)], out=tmp_path / "out", voices={"en": "nobody"})
    with pytest.raises(TresseError, match="unknown language 'de'"):
        evaluate_cloze(bundle, [make_item(0)], out=tmp_path / "out", voices={"de": "basile"})


def test_audio_files_stand_for_the_sentences_they_hold(bundle: FakeBundle, tmp_path: Path) -> None:
    from train.speech import Voices, speak

    items = [make_item(n) for n in range(3)]
    spoken = evaluate_cloze(bundle, items, out=tmp_path / "text")
    speaker = Voices.load().speaker("basile")
    for item in items:
        for part in ("right", "wrong"):
            name = f"{item['id']}-{part}.wav"
            write_wav(tmp_path / name, speak(item[part]["fr"], "fr", speaker), SAMPLE_RATE)
            item[part]["fr"] = {"audio": name}
    heard = evaluate_cloze(bundle, items, out=tmp_path / "audio", audio_root=tmp_path)
    assert not heard["problems"]
    assert heard["cells"] == spoken["cells"]


def test_a_sentence_is_encoded_once_and_kept_on_disk_for_its_voice_and_encoder(
    bundle: FakeBundle, tmp_path: Path
) -> None:
    items = [make_item(n) for n in range(5)]
    distinct = {
        (language, text)
        for item in items
        for language in LANGUAGES
        for text in [*item["context"][language], item["right"][language], item["wrong"][language]]
    }
    first = evaluate_cloze(bundle, items, out=tmp_path / "out")
    assert bundle.units.encoded == len(distinct)
    again = evaluate_cloze(bundle, items, out=tmp_path / "out")
    assert bundle.units.encoded == len(distinct)
    assert again == first
    evaluate_cloze(bundle, items, out=tmp_path / "out", voices={"fr": "zoe"})
    french = sum(language == "fr" for language, _ in distinct)
    assert bundle.units.encoded == len(distinct) + french
    (bundle.path / "units" / "config.json").write_text('{"other": 1}')
    evaluate_cloze(bundle, items, out=tmp_path / "out")
    assert bundle.units.encoded == 2 * len(distinct) + french
    (tmp_path / "out" / "units.npz").write_bytes(b"PK damaged")
    assert evaluate_cloze(bundle, items, out=tmp_path / "out")["cells"] == first["cells"]


def test_three_languages_make_nine_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    languages = ["en", "fr", "de"]
    monkeypatch.setattr("train.speech.Voices.load", classmethod(_with_german(languages)))
    bundle = FakeBundle(tmp_path / "bundle", languages=languages)
    item = make_item(1)
    for part in ("context", "right", "wrong"):
        item[part]["de"] = item[part]["en"]
    monkeypatch.setattr(
        "train.speech.speak", lambda text, language, speaker: np.full(9600, len(text) / 200, np.float32)
    )
    results = evaluate_cloze(bundle, [item], out=tmp_path / "out")
    assert set(results["cells"]) == {f"{a}>{b}" for a in languages for b in languages}


def _with_german(languages: list[str]) -> Callable[..., Any]:
    from train.speech import Voices

    known = Voices.load()
    return lambda cls, path=None: Voices(
        dict.fromkeys(languages, "en-us"), known.reference, known.vocoder, known.training, known.held_out
    )


def test_the_table_shows_every_cell_and_the_control(bundle: FakeBundle, tmp_path: Path) -> None:
    items = [make_item(n, kind) for n in range(4) for kind in ("topic", "story")]
    table = markdown_table(evaluate_cloze(bundle, items, out=tmp_path / "out"))
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
