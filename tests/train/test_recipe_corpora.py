"""A recipe with further corpora: English stories, recordings and a corpus that was prepared before, to a language model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slm.audio import write_wav
from slm.errors import TresseError
from tests.bundles import BRAID
from train.corpus.manifest import Manifest
from train.corpus.preparation import prepare_corpus
from train.corpus.work import CorpusPreparation
from train.estimate import estimate
from train.recipe import Recipe
from train.speech.voices import Voices
from train.stages import run_recipe

STAGES = [
    {"mode": "monolingual:en", "share": 0.5, "corpora": {"tales": 1, "radio": 1, "spoken": 1}},
    {"mode": "interleaved", "share": 0.5},
]
SMALL = {
    "parts": {"units": "braid"},
    "stories": {"train": 6, "validation": 2},
    "corpus": {"stories_per_shard": 8, "speakers": ["basile"]},
    "vocabulary.size": 140,
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "max_position": 512},
    "slm": {"stages": STAGES, "steps": 4, "batch_rows": 3, "micro_rows": 3, "row_length": 128, "log_every": 1},
}


def recipe(**changes: object) -> Recipe:
    return Recipe.load("tiny", {key: json.dumps(value) for key, value in {**SMALL, **changes}.items()})


def test_it_reads_them_where_its_stages_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_wav(tmp_path / "radio.wav", (0.2 * rng.standard_normal(16000 * 6)).astype(np.float32), 16000)
    lines = [{"audio": "radio.wav", "start": k, "end": k + 1, "speaker": "anna"} for k in range(6)]
    (tmp_path / "radio.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tales = [{"id": str(k), "sentences": {"en": [f"The cat has {k} toys.", "It slept."]}} for k in range(4)]
    (tmp_path / "tales.jsonl").write_text("".join(json.dumps(story) + "\n" for story in tales))
    manifest = Manifest(tmp_path / "radio.jsonl", "en")
    prepare_corpus(manifest, ["en", "fr"], BRAID / "units", tmp_path / "spoken", CorpusPreparation(), Voices.load(), 1)
    corpora = {
        "tales": {"stories": str(tmp_path / "tales.jsonl")},
        "radio": {"audio": str(tmp_path / "radio.jsonl"), "language": "en"},
        "spoken": {"folder": str(tmp_path / "spoken")},
    }
    out = tmp_path / "run"
    run_recipe(recipe(corpora=corpora), out, until="slm", workers=1)
    radio, spoken = ((out / "corpora" / name / "shard-00000.parquet").read_bytes() for name in ("radio", "spoken"))
    assert radio == spoken
    log = [json.loads(line) for line in (out / "slm" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {line["step"]: line["units"] for line in log if "units" in line}
    assert told[2]["en"] > told[2]["fr"] == 0 < told[4]["fr"]
    with pytest.raises(TresseError, match="another recipe"):
        run_recipe(recipe(corpora={**corpora, "tales": corpora["radio"]}), out, until="slm", workers=1)
    (tmp_path / "spoken" / "corpus.json").write_text(
        json.dumps({**json.loads((out / "corpora" / "spoken" / "corpus.json").read_text()), "encoder": "another"})
    )
    with pytest.raises(TresseError, match=r"corpora\.spoken: .* has units of another encoder"):
        run_recipe(recipe(corpora=corpora), tmp_path / "other", until="corpus", workers=1)


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ({"tales": {}}, r"corpora\.tales needs one of stories, audio and folder"),
        ({"tales": {"stories": "a", "folder": "b"}}, r"corpora\.tales needs one of"),
        ({"tales": {"stories": "a", "language": "en"}}, r"corpora\.tales: language is for audio"),
        ({"../tales": {"stories": "a"}}, "choose a name of letters"),
        ({"stories": {"stories": "a"}}, "and not stories"),
        ({"more": {"stories": "a"}}, r"corpora\.more: no stage of slm\.stages reads it"),
        (
            {"tales": {"stories": "a"}, "radio": {"audio": "b"}},
            "reads the corpus spoken: known are stories, tales, radio",
        ),
    ],
)
def test_corpora_that_cannot_be_are_refused_before_anything_is_made(
    corpora: dict, message: str, tmp_path: Path
) -> None:
    wrong = recipe(corpora=corpora)
    with pytest.raises(TresseError, match=message):
        run_recipe(wrong, tmp_path / "run", workers=1)
    with pytest.raises(TresseError, match=message):
        estimate(wrong, tmp_path / "run", measure=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["paper-360m", "paper-1b"])
def test_the_papers_english_stage_reads_recordings_beside_its_stories(name: str) -> None:
    paper = Recipe.load(name)
    paper.check_corpora()
    assert [stage.rows(300) for stage in paper.slm.stages] == [
        {"libriheavy": 218, "stories": 82},
        {"stories": 300},
        {"stories": 300},
    ]
