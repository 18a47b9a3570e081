"""float32 first: the units of Mimi and HuBERT are those of float64, on random networks and sounds, whatever the margin."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slm.units import precision
from slm.units.hubert import HubertFeatures, HubertUnitEncoder
from slm.units.mimi import MimiUnitEncoder
from slm.units.precision import decided, nearest
from tests.tiny_encoders import save_hubert, save_mimi

KINDS = ["mimi", "hubert", "hubert-stable", "hubert-plain"]
SOUNDS = ["silence", "constant", "faint", "tone", "noise", "clipped"]
SEEDS = st.integers(0, 7)


@cache
def network(kind: str, seed: int) -> MimiUnitEncoder | HubertUnitEncoder:
    with tempfile.TemporaryDirectory() as folder:
        if kind == "mimi":
            return MimiUnitEncoder.from_pretrained(str(save_mimi(Path(folder), seed=seed)), collapse=False)
        options = {"stable": kind == "hubert-stable", "normalise": kind == "hubert"}
        hidden = HubertFeatures(str(save_hubert(Path(folder), seed=seed, **options)), 3)
    heard = hidden(np.random.default_rng(seed).normal(0, 0.1, (1, 16000)))[0]
    return HubertUnitEncoder(hidden, heard[::2].clone(), collapse=False)


def sound(kind: str, seed: int, samples: int) -> np.ndarray:
    rng, time = np.random.default_rng(seed), np.arange(samples)
    tone = np.sin(time * rng.uniform(0.02, 1.5))
    waveform = {
        "silence": np.zeros(samples),
        "constant": np.full(samples, rng.uniform(-1, 1)),
        "faint": rng.normal(0, 1e-5, samples),
        "tone": rng.uniform(0.01, 1) * tone,
        "noise": rng.normal(0, 0.3, samples) * (1 + tone),
        "clipped": np.sign(tone),
    }[kind]
    return waveform.astype(np.float32)


clips = st.lists(
    st.tuples(st.sampled_from(SOUNDS), st.integers(0, 2**20), st.integers(0, 24000)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=SEEDS, drawn=clips, doubt=st.sampled_from([precision.DOUBT, 0.1, np.inf]))
def test_units_are_those_of_float64(kind: str, seed: int, drawn: list[tuple[str, int, int]], doubt: float) -> None:
    encoder, waveforms = network(kind, seed), [sound(*clip) for clip in drawn]
    with mock.patch.object(precision, "DOUBT", doubt):
        batched = encoder.encode_batch(waveforms)
    for waveform, units in zip(waveforms, batched, strict=True):
        assert np.array_equal(units.frames(), encoder.encode_exactly(waveform).frames())


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=SEEDS, drawn=clips)
def test_the_margin_is_far_above_the_error_of_float32(kind: str, seed: int, drawn: list[tuple[str, int, int]]) -> None:
    """Four times the error of the vectors at least."""
    encoder = network(kind, seed)
    for clip in drawn:
        waveform = sound(*clip)
        if not len(waveform):
            continue
        if isinstance(encoder, MimiUnitEncoder):
            whole = np.pad(waveform, (0, -len(waveform) % encoder.frame_samples))[None]
            fast, exact = (encoder._latents(whole, {}, kind)[0].double() for kind in (torch.float32, torch.float64))
        else:
            fast, exact = (encoder.hidden(waveform[None], kind).double() for kind in (torch.float32, torch.float64))
        error = (fast - exact).norm(dim=-1).max()
        assert 4 * error <= precision.DOUBT * exact.norm(dim=-1).max()


def vectors(rows: int, frames: int, seed: int) -> Tensor:
    return torch.randn(rows, frames, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_float64_computes_what_is_open_and_no_more(data: st.DataObject) -> None:
    """With errors of up to a size, and a margin of twice it, units are exact; clear rows are not computed again."""
    rows, frames = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
    exact, entries = vectors(rows, frames, data.draw(st.integers(0, 999))), vectors(1, 20, 5)[0]
    counts = data.draw(st.lists(st.integers(0, frames), min_size=rows, max_size=rows))
    size = data.draw(st.sampled_from([0.0, 1e-3, 0.1]))
    wrong = vectors(rows, frames, 1000)
    wrong *= size / wrong.norm(dim=-1, keepdim=True)
    asked: list[int] = []

    def compute(kind: torch.dtype, chosen: Sequence[int]) -> Tensor:
        if kind == torch.float32:
            return exact + wrong
        asked.extend(chosen)
        return exact[list(chosen)]

    scale = (exact + wrong).norm(dim=-1).amax(-1)
    with mock.patch.object(precision, "DOUBT", 2 * size / float(scale.min())):
        units = decided(compute, entries, counts)
    expected, leads = nearest(exact, entries)
    for row, count in enumerate(counts):
        assert np.array_equal(units[row, :count], expected[row, :count])
        surely = (leads[row, :count] > size + 2 * size * float(scale[row] / scale.min())).all()
        assert not (surely and row in asked)


@pytest.mark.parametrize("kind", KINDS)
def test_a_margin_of_infinity_is_float64_and_one_of_nothing_float32(kind: str) -> None:
    encoder, waveform = network(kind, 1), sound("noise", 0, 16000)
    computed: list[torch.dtype] = []
    model = encoder if isinstance(encoder, MimiUnitEncoder) else encoder.hidden
    given_model = model._model

    def watched(kind: torch.dtype) -> object:
        computed.append(kind)
        return given_model(kind)

    with mock.patch.object(model, "_model", watched):
        for doubt, expected in ((0.0, [torch.float32]), (np.inf, [torch.float32, torch.float64])):
            computed.clear()
            with mock.patch.object(precision, "DOUBT", doubt):
                units = encoder.encode_batch([waveform])[0]
            assert computed == expected
        assert np.array_equal(units.frames(), encoder.encode_exactly(waveform).frames())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 999), entries=st.integers(2, 40), share=st.floats(0, 0.999))
def test_a_vector_can_move_as_far_as_its_lead_and_keeps_its_unit(seed: int, entries: int, share: float) -> None:
    """In any direction; with few entries, all borders of which are computed, no further towards the nearest one."""
    exact, book = vectors(5, 20, seed), vectors(1, entries, seed + 1)[0]
    units, leads = nearest(exact, book)
    towards = torch.cat([vectors(5, 20, seed + 2)[None], book[:, None, None] - book[units]])  # all other entries, too
    towards /= towards.norm(dim=-1, keepdim=True)
    towards = towards.nan_to_num()  # the entry itself

    def after(step: float) -> np.ndarray:
        moved = exact + step * torch.from_numpy(leads)[..., None] * towards
        return np.stack([nearest(part, book)[0] for part in moved])

    assert (leads >= 0).all()
    assert (after(share) == units).all()
    if entries <= precision.NEXT:
        assert (after(1.001) != units).any(0).all()


def test_one_entry_is_always_the_nearest() -> None:
    assert nearest(vectors(1, 4, 0), vectors(1, 1, 1)[0])[0].tolist() == [[0, 0, 0, 0]]
