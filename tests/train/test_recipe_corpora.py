"""A recipe with further corpora: English stories, recordings and a corpus that was prepared before, to a language model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from demo.cli import main
from slm.audio import write_wav
from slm.errors import TresseError
from tests.bundles import BRAID
from tests.extras import needs_ray
from train.corpus.cluster import Cluster
from train.corpus.manifest import Manifest
from train.corpus.preparation import prepare_corpus
from train.corpus.work import CorpusPreparation, Counts, Prepared
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
    elsewhere(corpora, out, tmp_path)
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


def elsewhere(corpora: dict, out: Path, folder: Path) -> None:
    """A run that was begun with other devices goes on: where a corpus is encoded is no part of what a stage is."""
    calls: list[tuple] = []

    def watched(*arguments: object) -> Prepared:
        calls.append(arguments[-2:])
        return prepare_corpus(*arguments[:-2])  # type: ignore[arg-type]

    shards = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.parquet")}
    given = ("cuda:1", Cluster("head:6379", 0.5))
    with mock.patch("train.stages.prepare_corpus", watched):
        run_recipe(recipe(corpora=corpora), folder / "again", "corpus", 1, *given)
    assert calls == [given] * 4  # stories, those to validate on, tales, radio
    assert {
        path.relative_to(folder / "again"): path.read_bytes() for path in folder.glob("again/**/*.parquet")
    } == shards
    for stage in ("stories", "units", "corpus"):
        done = [json.loads((run / "done" / f"{stage}.json").read_text()) for run in (out, folder / "again")]
        assert done[0]["fingerprint"] == done[1]["fingerprint"]
    run_recipe(recipe(corpora=corpora), out, "corpus", 1, *given)  # it is made: nothing is asked of the cluster


@needs_ray
def test_a_recipe_over_ray_has_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as logs:  # sockets, whose paths may not be long
        monkeypatch.setenv("RAY_TMPDIR", logs)
        monkeypatch.setenv("RAY_worker_niceness", "0")  # else others on this machine go before its workers
        stages = [{"mode": "interleaved", "share": 1.0}]
        small = recipe(slm={**SMALL["slm"], "stages": stages}, corpus={"stories_per_shard": 3, "speakers": ["basile"]})  # type: ignore[dict-item]
        for name, cluster in (("here", None), ("ray", Cluster())):
            run_recipe(small, tmp_path / name, "corpus", 2, "cpu", cluster)
    here, over_ray = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "corpus").glob("*.parquet")}
        for name in ("here", "ray")
    )
    assert len(here) == 2
    assert here == over_ray


@pytest.mark.parametrize(
    "options", [[], ["--device", "cpu", "--ray"], ["--ray=head:1", "--ray-gpus", "1", "--device", "cuda"]]
)
def test_the_command_line_says_where(options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple] = []

    def called(*arguments: object) -> Prepared:
        calls.append(arguments[-2:])
        return Prepared(tmp_path, Counts(), 0)

    for name in ("train.stages.run_recipe", "train.corpus.preparation.prepare_corpus"):
        monkeypatch.setattr(name, called)
    main(["recipe", "tiny", "--until", "corpus", *options])
    main(["prepare", "--out", str(tmp_path), "--seed", "1", *options])
    assert calls[0] == calls[1]
    assert calls[0][0] == ("cuda" if "cuda" in options else "cpu")


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
