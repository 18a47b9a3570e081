"""The benchmark of a unit encoder alone: any encoder, the same units both ways, figures that agree with each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demo.cli import main
from slm.errors import TresseError
from slm.units import UnitEncoder, Units
from slm.units.mimi import MimiUnitEncoder
from tests.tiny_encoders import save_mimi
from tests.train.corpus.tiny import make_encoder
from train.bench.prepare import bench_encoder, encoder_table


@pytest.fixture(params=["conv", "mimi"])
def units(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "conv":
        return make_encoder(tmp_path / "bundle" / "units", seed=0).parent
    MimiUnitEncoder.from_pretrained(str(save_mimi(tmp_path / "model"))).save(tmp_path / "units")
    return tmp_path / "units"


def test_any_encoder_is_measured_beside_the_plain_way(units: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "prepare", "--units", str(units), "--seconds", "6"])
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert "\n".join(lines) == encoder_table(result)
    fast, plain = result["hours_per_core_hour"].values()
    assert fast > 0
    assert result["ratio"] == pytest.approx(fast / plain, rel=0.02)
    assert result["equal"] == result["clips"] > 1
    assert 6 <= result["speech_seconds"] < 12


def test_units_that_differ_are_counted(tmp_path: Path) -> None:
    encoder = MimiUnitEncoder.from_pretrained(str(save_mimi(tmp_path / "model")))
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, 8000).astype(np.float32) for _ in range(3)]
    right = encoder.encode_exactly

    def wrong(waveform: np.ndarray) -> Units:
        return right(waveform if waveform is not clips[1] else waveform[::-1].copy())

    encoder.encode_exactly = wrong  # type: ignore[method-assign]
    assert bench_encoder(encoder, clips, repeats=1)["equal"] == 2


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "prepare", "--units", str(tmp_path)])

    class Plain:
        sample_rate = 16000

    encoder: UnitEncoder = Plain()  # type: ignore[assignment]
    with pytest.raises(TresseError, match="no plain way"):
        bench_encoder(encoder, [])
