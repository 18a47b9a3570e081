"""A recipe whose stories are mixed from sources, from the files to a trained language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm.errors import TresseError
from train.publish.card import write_card
from train.recipe import Recipe
from train.stages import run_recipe
from train.stories.mixture import texts_of

SMALL = {
    "parts": {"units": "braid"},
    "corpus": {"stories_per_shard": 8, "speakers": ["basile"]},
    "vocabulary.size": 140,
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "max_position": 512},
    "slm": {
        "stages": [{"mode": ["interleaved", "mixed"], "share": 1.0}],
        "steps": 4,
        "batch_rows": 2,
        "micro_rows": 2,
        "row_length": 512,
        "checkpoint_every": 2,
        "validate_every": 2,
    },
    "stories": {
        "words": 1200,
        "validation": 3,
        "sources": [
            {"file": "written", "share": 2},
            {"file": "grammar", "share": 1},
            {"file": "pairs.jsonl", "share": 1, "kind": "pairs"},
            {"file": "prose.jsonl", "share": 1, "kind": "text", "licence": "public domain"},
        ],
    },
}


def test_it_trains_on_what_the_sources_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"en": f"Tom has {number} red balls.", "fr": f"Tom a {number} balles rouges."} for number in range(2, 40)]
    prose = [
        {"lang": "fr", "text": f"La vache n° {k} a bu. Elle mange. Il pleut. Elle dort. Il neige."} for k in range(40)
    ]
    for name, rows in (("pairs.jsonl", pairs), ("prose.jsonl", prose)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.load("tiny", {key: json.dumps(value) for key, value in SMALL.items()})
    out = tmp_path / "run"
    monkeypatch.delenv("TRESSE_TEXTS", raising=False)
    with pytest.raises(TresseError, match=r"lacks pairs\.jsonl, prose\.jsonl"):
        run_recipe(recipe, out, until="slm", workers=1)
    assert not (out / "stories").exists(), "nothing half-written"
    monkeypatch.setenv("TRESSE_TEXTS", str(tmp_path))
    run_recipe(recipe, out, until="slm", workers=1)
    report = json.loads((out / "stories" / "sources.json").read_text(encoding="utf-8"))
    assert {name: source["share"] for name, source in report["sources"].items()} == pytest.approx(
        {"written": 0.4, "grammar": 0.2, "pairs": 0.2, "prose": 0.2}, abs=0.1
    )
    rows = sum(source["rows"] for source in report["sources"].values())
    assert json.loads((out / "corpus" / "corpus.json").read_text(encoding="utf-8"))["stories"] == rows
    assert not (out / "corpus" / "rejected.jsonl").exists(), "what would be rejected was never written"
    log = [json.loads(line) for line in (out / "slm" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(line["step"] for line in log) == 4
    made = {
        "recipe": "tiny",
        "seed": 0,
        "commit": "c",
        "made": "today",
        "stories": rows,
        "data": "d",
        "training_seconds": {},
    }
    info = {"format": 1, "name": "tiny", "languages": ["en", "fr"], "max_prompt_seconds": 30, "metrics": {}}
    info |= {"frame_rate": 50, "sample_rate": 16000}
    texts = texts_of(out / "stories" / "sources.json")
    (tmp_path / "bundle.json").write_text(json.dumps({**info, "provenance": {**made, **texts}}), encoding="utf-8")
    write_card(tmp_path)
    assert "| prose | public domain | " in (tmp_path / "README.md").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert "  prose: " in shown
    assert "told by no stage" not in shown


def test_what_is_told_in_some_languages_needs_a_stage_that_tells_it() -> None:
    sources = {"stories.sources": "[{file: written, share: 1, partial: true}]"}
    Recipe.load("spanish", sources).check_sources()
    interleaved = {**sources, "slm.stages": "[{mode: interleaved, share: 1.0}]"}
    with pytest.raises(TresseError, match="in some languages only: add the mode mixed"):
        Recipe.load("spanish", interleaved).check_sources()
