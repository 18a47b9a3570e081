"""Bundles that nobody has checked: none runs code, none unpickles."""

from __future__ import annotations

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from slm.bundle import Bundle
from slm.engines import CTranslate2Engine
from slm.errors import TresseError
from slm.model import ModelConfig, load_model
from slm.units import UnitVocabulary
from tests.bundles import BRAID


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped bundle, and a module in its slm/ that leaves a file where it is run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "bundle"
    shutil.copytree(BRAID, copy, ignore=shutil.ignore_patterns("evaluation", "asr"))
    (copy / "slm" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    return copy


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}


@pytest.mark.parametrize("model_type", ["llama", "evil", None])
def test_code_of_a_bundle_is_never_run(bundle: Path, tmp_path: Path, model_type: str | None) -> None:
    change(bundle / "slm" / "config.json", auto_map=AUTO_MAP, model_type=model_type)
    with pytest.raises(TresseError) as loading:
        load_model(bundle / "slm")
    with pytest.raises(TresseError) as decoding:
        CTranslate2Engine(bundle / "slm", UnitVocabulary.load(bundle / "slm"))
    with pytest.raises(TresseError) as starting:
        ModelConfig(warm_start=str(bundle)).build(UnitVocabulary.load(bundle / "slm"))
    for caught in (loading, decoding, starting):
        assert "\n" not in str(caught.value)
        assert "auto_map" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_tokenizer_is_never_run(bundle: Path, tmp_path: Path) -> None:
    change(bundle / "slm" / "tokenizer_config.json", auto_map=AUTO_MAP)
    with suppress(TresseError):
        CTranslate2Engine(bundle / "slm", UnitVocabulary.load(bundle / "slm"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["bert", "t5", "rag", 7, ""])
def test_only_causal_language_models_are_loaded(bundle: Path, model_type: object) -> None:
    change(bundle / "slm" / "config.json", model_type=model_type)
    with pytest.raises(TresseError, match=r"is of the type|cannot read"):
        load_model(bundle / "slm")


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "optimizer.pt"])
def test_nothing_is_unpickled(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / "slm" / "model.safetensors").unlink()
    (bundle / "slm" / name).write_bytes(pickle.dumps(_Bomb(tmp_path / "ran")))
    with pytest.raises(TresseError):
        load_model(bundle / "slm")
    with pytest.raises(TresseError):
        _ = Bundle.load(bundle, "cpu").engine
    assert not (tmp_path / "ran").exists()
