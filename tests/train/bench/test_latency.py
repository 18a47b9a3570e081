"""The benchmark of continuations: it runs, its figures are of the same replies, and it prints what is promised."""

from __future__ import annotations

import json

import pytest

from slm.bundle import Bundle
from train.bench.latency import bench_continue, spoken_prompts, table


def test_the_benchmark_compares_like_with_like(bundle: Bundle) -> None:
    result = bench_continue(bundle, prompts=4, plain_prompts=1, decoded=24)
    assert result["speedup"]["first audio against the plain way, prompt streamed"] > 1
    assert result["real_time_factor"] > 0
    assert set(result["tokens_per_second"]) == {"ctranslate2", "torch", "generate"}
    assert result["at_once"]["people"] == 4
    for quantiles in result["first_audio_ms"].values():
        assert 0 < quantiles["median"] <= quantiles["p95"]
    assert json.loads(json.dumps(result)) == result
    assert all(name in table(result) for name in ("prompt streamed", "plain way", *result["speedup"]))


def test_prompts_cover_every_pair_and_many_voices(bundle: Bundle) -> None:
    prompts = list(spoken_prompts(bundle.languages, 8))
    assert {to for _, _, to, _ in prompts} == set(bundle.languages)
    heard = [bundle.prompt(waveform, rate).language for waveform, rate, _, _ in prompts]
    assert len(set(zip(heard, (to for _, _, to, _ in prompts), strict=True))) == pytest.approx(4, abs=1)
