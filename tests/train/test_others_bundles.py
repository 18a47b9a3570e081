"""Bundles of others that a training starts from, or that figures are written into: broken ones are one line, and nothing of
them is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slm.errors import TresseError
from slm.model import unit_model
from tests.bundles import BRAID
from train.bench.train import run_bench
from train.estimate import _encoder_settings
from train.publish.card import write_card
from train.publish.provenance import began_as
from train.publish.results import publish, publish_ablation
from train.recipe import Recipe
from train.stages import take

DEEP = "[" * 200_000


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BRAID, tmp_path / "theirs"))


def broken(info: dict[str, Any], where: str, value: Any) -> str:
    *outer, last = where.split(".")
    place = info
    for key in outer:
        place = place[key]
    place[last] = value
    return json.dumps(info)


BROKEN: list[tuple[str, Any]] = [
    ("metrics", []),
    ("metrics.unit_edit_rate", {"en": "0.1"}),
    ("metrics.unit_edit_rate", {"en": float("nan")}),
    ("metrics.unit_edit_rate", [1]),
    ("metrics.cloze", float("inf")),
    ("provenance", None),
    ("provenance.recipe", "../../x"),
    ("provenance.commit", "a\nb"),
    ("provenance.made", 7),
    ("provenance.data", {}),
    ("provenance.voices", "basile"),
    ("provenance.training_seconds", {"slm": "long"}),
    ("provenance.training_seconds", [1]),
    ("provenance.texts", {"a": {}}),
    ("provenance.texts", {"a": {"origins": [{"source": 1, "licence": "x"}], "words": {}}}),
    ("provenance.warm_start", {"bundle": "a/b"}),
    ("name", "two\nlines"),
    ("format", 0),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value"), BROKEN, ids=lambda value: str(value)[:30])
def test_nothing_is_read_past_the_schema(bundle: Path, tmp_path: Path, where: str, value: Any) -> None:
    text = broken(json.loads((bundle / "bundle.json").read_text(encoding="utf-8")), where, value)
    nothing_reads(bundle, tmp_path, text)


@pytest.mark.parametrize("text", ["", "[]", "null", DEEP, '{"format": 1}', "\x00"])
def test_what_is_no_description_is_one_line(bundle: Path, tmp_path: Path, text: str) -> None:
    nothing_reads(bundle, tmp_path, text)


def nothing_reads(bundle: Path, tmp_path: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text, encoding="utf-8")
    card = (bundle / "README.md").read_bytes()
    results = tmp_path / "results"
    results.mkdir()
    (results / "results.json").write_text(json.dumps({"bundle": {"name": "braid"}, "parts": {}}))
    (results / "ablation.md").write_text("# Ablation\n")
    taken = SimpleNamespace(taken=lambda part: bundle / part)
    readers: list[Callable[[], object]] = [
        lambda: take(taken, "units", tmp_path / "units"),  # type: ignore[arg-type]
        lambda: began_as(str(bundle)),
        lambda: write_card(bundle),
        lambda: publish(results, bundle, []),
        lambda: publish_ablation(results, bundle, []),
    ]
    for read in readers:
        with pytest.raises(TresseError) as caught:
            read()
        assert str(caught.value).isprintable()
        assert str(bundle) in str(caught.value)
    assert (bundle / "bundle.json").read_text(encoding="utf-8") == text
    assert (bundle / "README.md").read_bytes() == card
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize("metrics", [{"cloze": 7}, {"cloze": {"training_voices": []}}, {"pairs": {"a": "b"}}])
def test_metrics_of_another_form_are_one_line(bundle: Path, metrics: dict[str, Any]) -> None:
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    (bundle / "bundle.json").write_text(json.dumps({**info, "metrics": metrics}))
    with pytest.raises(TresseError, match="metrics in"):
        write_card(bundle)


def test_a_bundle_that_says_little_has_a_card(bundle: Path) -> None:
    info = {"format": 1, "languages": ["en", "fr"], "max_prompt_seconds": 60}
    (bundle / "bundle.json").write_text(json.dumps(info))
    write_card(bundle)
    assert "en, fr" in (bundle / "README.md").read_text(encoding="utf-8")


def test_a_recogniser_is_checked_before_it_is_taken(bundle: Path, tmp_path: Path) -> None:
    recipe = SimpleNamespace(taken=lambda part: bundle / part)
    assert take(recipe, "asr", tmp_path / "sound")  # type: ignore[arg-type]
    (bundle / "asr" / "evil.py").write_text("import os")
    with pytest.raises(TresseError, match=r"evil\.py"):
        take(recipe, "asr", tmp_path / "asr")  # type: ignore[arg-type]
    (bundle / "asr" / "evil.py").unlink()
    (bundle / "asr" / "config.json").write_text(json.dumps({"suppress_ids": [10**6]}))
    with pytest.raises(TresseError, match="do not fit together"):
        take(recipe, "asr", tmp_path / "asr")  # type: ignore[arg-type]
    assert not (tmp_path / "asr").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", DEEP, '{"codebook_size": "many"}', '{"codebook_size": 1e12}', '{"type": 7}']
)
def test_an_estimate_believes_no_encoder(bundle: Path, text: str) -> None:
    (bundle / "units" / "config.json").write_text(text)
    recipe = Recipe.load("tiny", {"parts.units": json.dumps(str(bundle))})
    assert _encoder_settings(recipe) == {}


@pytest.mark.parametrize("text", ["", "[]", "null", DEEP, '{"codebook_size": NaN}'])
def test_a_damaged_tokenizer_is_no_model_of_units(bundle: Path, text: str) -> None:
    (bundle / "slm" / "tokenizer_config.json").write_text(text)
    assert unit_model(bundle) is None


@pytest.mark.parametrize("text", ["", "[]", DEEP, "{}", '{"model_type": "llama", "hidden_size": 1000000000}'])
def test_a_benchmark_believes_no_model(bundle: Path, text: str) -> None:
    (bundle / "slm" / "config.json").write_text(text)
    with pytest.raises(TresseError) as caught:
        run_bench(bundle=bundle)
    assert str(caught.value).isprintable()
