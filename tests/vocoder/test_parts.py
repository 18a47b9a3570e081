"""The vocoder's parts: limiter, overlap-add, source, pitch, causal convolutions, losses; and the shipped vocoder."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocos.spectral_ops import ISTFT

from slm.units import UnitEncoder, load_encoder
from tests.bundles import BRAID
from tests.conftest import BEGINNINGS
from tests.vocoder.sounds import (
    VOCODERS,
    build,
)
from train.evaluate.resynthesis import LOUDNESS_GOAL, active_level
from train.speech.pitch import fundamental_phase, pitch_contours
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.vocoder.losses import Discriminators, SpectralLoss
from vocoder.causal import SHORT, CausalConvNeXtBlock, CausalStack, LookaheadConv, depthwise
from vocoder.istft import KNEE, Source, StreamingISTFTHead, limit
from vocoder.model import Vocoder
from vocoder.prosody import run_lengths
from vocoder.source import LEVEL, advance_phase, pulses


def test_loud_weights_never_clip() -> None:
    """Random units through weights that overflow exp: finite, within 1, and no runs of samples at the limit."""
    vocoder = build(3)
    with torch.no_grad():
        vocoder.head.out.weight.mul_(30)
    audio = vocoder.synthesise(SimpleNamespace(ids=np.random.default_rng(0).integers(0, 11, 60), run_lengths=None))
    assert np.isfinite(audio).all()
    assert KNEE < np.abs(audio).max() <= 1.0


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50))
def test_limiter_is_monotone_bounded_and_transparent(values: list[float]) -> None:
    x = torch.tensor(sorted(values))
    y = limit(x)
    assert (y.diff() >= -1e-6).all()
    assert (y.abs() <= 1.0).all()
    quiet = x.abs() <= KNEE
    assert torch.equal(y[quiet], x[quiet])


@settings(max_examples=20, deadline=None)
@given(
    steps=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    sizes=st.sampled_from([(640, 160), (400, 100), (96, 32), (50, 20)]),
)
def test_overlap_add_equals_vocos(steps: int, cuts: list[int], sizes: tuple[int, int]) -> None:
    """In any pieces, the streaming overlap-add gives what vocos' ISTFT with "same" padding gives at once."""
    n_fft, hop = sizes
    generator = torch.Generator().manual_seed(steps)
    spectrum = torch.randn(2, n_fft // 2 + 1, steps, generator=generator, dtype=torch.complex64)
    head = StreamingISTFTHead(4, n_fft, hop, 16000)
    state, parts = head.fresh(2, torch.device("cpu")), []
    edges = [0, *sorted(min(cut, steps) for cut in cuts), steps]
    for a, b in itertools.pairwise(edges):
        samples, state = head.overlap_add(spectrum[:, :, a:b], state, final=False)
        parts.append(samples)
    parts.append(head.overlap_add(spectrum[:, :, :0], state, final=True)[0])
    expected = ISTFT(n_fft, hop, n_fft, padding="same")(spectrum)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(f0=st.floats(60, 500), phase=st.floats(-4, 4), rate=st.sampled_from([16000, 24000]))
def test_pulses_are_all_harmonics_below_half_the_sample_rate(f0: float, phase: float, rate: int) -> None:
    """At equal strength and in phase at the middle of the frame; none where there is no voice."""
    n_fft = 640
    window = torch.hann_window(n_fft)
    spectrum = pulses(torch.tensor([[f0, 0.0]]), torch.tensor([[phase, 0.0]]), window, rate)
    time = (np.arange(n_fft) - n_fft / 2) / rate
    count = int(np.float32(rate / 2) / np.float32(f0))
    train = sum(np.cos(k * (phase + 2 * np.pi * f0 * time)) for k in range(1, count + 1))
    expected = np.fft.rfft(LEVEL * np.sqrt(2 / count) * train * window.numpy())
    np.testing.assert_allclose(spectrum[0, 0].numpy(), expected, atol=0.02 * np.abs(expected).max())
    assert not spectrum[0, 1].any()


@pytest.mark.parametrize("sizes", [(640, 160), (960, 240)])
def test_without_filters_the_pitch_asked_for_is_heard(sizes: tuple[int, int]) -> None:
    """A glide through frames of one hop each comes out as that glide, at the level of the excitation, without clicks."""
    n_fft, hop = sizes
    head = StreamingISTFTHead(4, n_fft, hop, 16000)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
        head.out.bias[-(n_fft // 2 + 1) :] = -20.0  # no noise
    f0 = torch.exp2(torch.linspace(6.7, 7.7, 120, dtype=torch.float64))
    phase = advance_phase(f0, (0.0, 0.0), hop / 16000)
    source = Source(f0[None].float(), phase[None].float(), torch.arange(120)[None])
    with torch.no_grad():
        waveform = head(torch.zeros(1, 120, 4), source)[0][0].numpy()
    [heard] = pitch_contours([waveform], 16000, hop)
    np.testing.assert_allclose(heard[5:-5], f0[5:-5], rtol=0.02)
    assert np.sqrt(np.mean(np.square(waveform))) == pytest.approx(LEVEL, rel=0.3)


@given(st.lists(st.floats(0, 500), min_size=1, max_size=40), st.integers(0, 40))
def test_phase_goes_on_over_cuts(f0: list[float], cut: int) -> None:
    table = torch.tensor(f0, dtype=torch.float64)
    whole = advance_phase(table, (0.0, 0.0), 0.01)
    first = advance_phase(table[:cut], (0.0, 0.0), 0.01)
    before = (float(table[:cut][-1]), float(first[-1])) if len(first) else (0.0, 0.0)
    rest = advance_phase(table[cut:], before, 0.01)
    apart = torch.remainder(torch.cat([first, rest]) - whole + torch.pi, 2 * torch.pi) - torch.pi
    assert float(apart.abs().max()) < 1e-9


@settings(max_examples=15, deadline=None)
@given(
    low=st.floats(80, 240), rise=st.floats(-0.3, 0.3), level=st.floats(0.02, 0.9), hop=st.sampled_from([80, 160, 240])
)
def test_pitch_of_a_known_voice_is_found(low: float, rise: float, level: float, hop: int) -> None:
    """A buzz that glides, then noise, then silence: its pitch within 2 %, its phase, and no voice in noise or silence."""
    seconds, rate = 0.6, 16000
    time = np.arange(int(seconds * rate)) / rate
    f0 = low * 2 ** (rise * time / seconds)
    phase = 2 * np.pi * np.cumsum(f0) / rate
    buzz = sum(np.cos(k * phase) / k for k in range(1, 8))
    noise = np.random.default_rng(0).standard_normal(rate // 2)
    waveform = level * np.concatenate([buzz / np.abs(buzz).max(), 0.2 * noise, np.zeros(rate // 4)]).astype(np.float32)
    [found, short] = pitch_contours([waveform, waveform[: 3 * hop]], rate, hop)
    assert len(found) == len(waveform) // hop
    assert len(short) == 3
    middle = (np.arange(len(found)) * hop + hop // 2).astype(int)
    inside = (middle > 0.06 * rate) & (middle < (seconds - 0.06) * rate)
    np.testing.assert_allclose(found[inside], f0[middle[inside]], rtol=0.02)
    assert (found[middle > (seconds + 0.06) * rate] > 0).mean() < 0.2
    assert not found[middle > 1.15 * rate].any()
    angle = fundamental_phase(waveform, found, rate, hop)[inside]
    assert np.abs(np.angle(np.exp(1j * (angle - phase[middle[inside]])))).max() < 0.5


def test_a_sentence_knows_nothing_of_the_one_before() -> None:
    """Marked as a sentence's beginning, units get the melody that they have at a stream's beginning; else another."""
    vocoder = VOCODERS["50 Hz"]

    def melody(before: list[int], begins: bool) -> np.ndarray:
        """Of the head frames that wait for the look-ahead, for every last unit of a sentence."""
        tones = []
        for last in range(11):
            stream = vocoder.stream()
            stream.push(before, [3] * len(before))
            stream.push([4, 5, last], [2, 3, 4], begins=begins)
            tones.append(stream._source[0].numpy())
        return np.concatenate(tones)

    fresh = melody([], False)
    np.testing.assert_allclose(melody([1, 9, 2], True), fresh, rtol=1e-9)
    assert np.abs(melody([1, 9, 2], False) - fresh).max() > 1e-6


@pytest.mark.parametrize("dilation", [1, 3])
def test_depthwise_equals_conv1d(dilation: int) -> None:
    torch.manual_seed(0)
    block = CausalConvNeXtBlock(8, 16, 0.5, kernel_size=5, dilation=dilation)
    x = torch.randn(2, 30, 8)
    expected = block.dwconv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(depthwise(x, block.dwconv), expected, atol=1e-5, rtol=1e-4)
    double = depthwise(x.double(), block.double().dwconv)
    torch.testing.assert_close(double.float(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, SHORT + 1])
def test_inference_computes_what_training_computes(steps: int) -> None:
    """Other kernels, the same numbers."""
    torch.manual_seed(0)
    stack, layer = CausalStack(8, 16, 5, [1, 3]), LookaheadConv(8, 6, 5, 2)
    x = torch.randn(2, steps, 8)
    trained = stack(x)[0], layer(x, final=True)[0]
    with torch.inference_mode():
        spoken = stack(x)[0], layer(x, final=True)[0]
    torch.testing.assert_close(spoken, trained, atol=1e-5, rtol=1e-4)


def test_lookahead_conv_equals_a_padded_conv() -> None:
    torch.manual_seed(0)
    layer = LookaheadConv(6, 5, kernel_size=7, lookahead=4)
    x = torch.randn(2, 20, 6)
    expected = layer.conv(torch.nn.functional.pad(x.transpose(1, 2), (2, 4))).transpose(1, 2)
    torch.testing.assert_close(layer(x, final=True)[0], expected, atol=1e-5, rtol=1e-4)


@given(st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), min_size=1, max_size=40), st.integers(0, 40))
def test_predicted_run_lengths_keep_the_tempo(logits: list[list[float]], cut: int) -> None:
    """However short the runs, their sum stays within half a frame of the sum of the means; pieces change nothing."""
    table = torch.tensor(logits, dtype=torch.float64)
    chosen, remainder = run_lengths(table, 0.0)
    mean = float((table.softmax(-1) @ torch.arange(1.0, 6.0, dtype=torch.float64)).sum())
    assert min(chosen) >= 1
    assert abs(sum(chosen) + remainder - mean) < 1e-6
    assert abs(remainder) <= 0.5 + 1e-9
    first, carry = run_lengths(table[:cut], 0.0)
    assert first + run_lengths(table[cut:], carry)[0] == chosen


def test_saved_and_loaded_speaks_alike(tmp_path) -> None:
    vocoder = build(5)
    units = SimpleNamespace(ids=[1, 5, 2, 8, 10], run_lengths=[3, 2, 1, 4, 2])
    expected = vocoder.synthesise(units, "ben", "fr")
    vocoder.save(tmp_path / "full", half=False)
    vocoder.save(tmp_path / "half")
    exact, rounded = (Vocoder.load(tmp_path / name) for name in ("full", "half"))
    assert exact.config == vocoder.config
    np.testing.assert_array_equal(exact.synthesise(units, "ben", "fr"), expected)
    assert {weight.dtype for weight in rounded.parameters()} == {torch.float32}
    spoken = rounded.synthesise(units, "ben", "fr")  # rounding shifts the pitch a little, and so every later pulse
    assert np.sqrt(np.mean(spoken**2)) == pytest.approx(np.sqrt(np.mean(expected**2)), rel=0.05)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.7 * sizes[1]


def test_damaged_files_are_named_in_one_line(tmp_path) -> None:
    build().save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good = config.read_text()
    for path, content in (
        (weights, b"none"),
        (config, b"{"),
        (config, b"[]"),
        (config, json.dumps({**json.loads(good), "colour": 1}).encode()),
        (config, json.dumps({**json.loads(good), "dim": 32}).encode()),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot read the vocoder's") as caught:
            Vocoder.load(tmp_path)
        assert "\n" not in str(caught.value)
        path.write_bytes(before)
    Vocoder.load(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot read the vocoder's"):
        Vocoder.load(tmp_path)


def test_spectral_loss_is_zero_only_for_the_same_sound() -> None:
    loss = SpectralLoss(16000)
    real = 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    assert all(float(part) == 0.0 for part in loss(real, real))
    quieter = [float(part) for part in loss(0.5 * real, real)]
    assert quieter[0] == pytest.approx(np.log(2), rel=0.02)
    assert quieter[1] == pytest.approx(0.5, rel=0.02)
    silence = torch.zeros(2, 4000, requires_grad=True)
    sum(loss(silence, real)).backward()
    assert torch.isfinite(silence.grad).all()


@pytest.mark.parametrize("kind", ["thin", "stock"])
def test_discriminators_learn_to_tell_noise_from_tones(kind: str) -> None:
    """A few steps of their loss on one batch lower it, and the generator's losses reach the waveform."""
    torch.manual_seed(0)
    judges = Discriminators(kind)
    time = torch.arange(2400) / 16000
    real = 0.3 * torch.sin(2 * torch.pi * torch.tensor([[220.0], [330.0]]) * time)
    fake = (0.1 * torch.randn(2, 2400)).requires_grad_()
    optimiser = torch.optim.AdamW(judges.parameters(), lr=1e-3)
    losses = []
    for _ in range(12 if kind == "thin" else 3):
        loss = judges(real, fake.detach())[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    _, fooled, matching = judges(real, fake)
    (gradient,) = torch.autograd.grad(fooled + matching, fake)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    with pytest.raises(ValueError, match="thin, stock"):
        Discriminators("none")


@pytest.fixture(scope="module")
def shipped() -> tuple[UnitEncoder, Vocoder]:
    """The unit encoder and the vocoder of the shipped bundle."""
    return load_encoder(BRAID / "units"), Vocoder.load(BRAID / "vocoder")


def is_sound(waveform: np.ndarray) -> bool:
    """Finite, and never held at full scale."""
    return bool(np.isfinite(waveform).all() and np.abs(waveform).max(initial=0.0) < 0.999)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), count=st.integers(1, 40), known=st.booleans())
def test_the_shipped_vocoder_speaks_any_units(
    shipped: tuple[UnitEncoder, Vocoder], data: st.DataObject, count: int, known: bool
) -> None:
    """Units in any order, for as long as you like: speech that never clips; streamed as at once."""
    vocoder = shipped[1]
    config = vocoder.config
    unit = st.integers(0, config.codebook_size - 1)
    ids = data.draw(st.lists(unit, min_size=count, max_size=count))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=count, max_size=count)) if known else None
    languages = data.draw(st.lists(st.sampled_from(config.languages), min_size=count, max_size=count))
    speaker = data.draw(st.sampled_from(config.speakers))
    whole = vocoder.stream(speaker).push(ids, lengths, languages, final=True)
    assert is_sound(whole)
    stream, parts, step = vocoder.stream(speaker), [], data.draw(st.integers(1, 5))
    for first in range(0, count, step):
        part = slice(first, first + step)
        parts.append(stream.push(ids[part], None if lengths is None else lengths[part], languages[part]))
    parts.append(stream.flush())
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_shipped_vocoder_is_loud_enough_whatever_the_units(
    shipped: tuple[UnitEncoder, Vocoder], seed: int, data: st.DataObject
) -> None:
    """Two seconds and more of random units, which no speech has: neither silence nor noise at full scale."""
    vocoder = shipped[1]
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocoder.config.codebook_size, 40)
    lengths = data.draw(st.sampled_from([None, rng.integers(1, 8, len(ids))]))
    speaker, language = (
        data.draw(st.sampled_from(names)) for names in (vocoder.config.speakers, vocoder.config.languages)
    )
    waveform = vocoder.synthesise(SimpleNamespace(ids=ids, run_lengths=lengths), speaker, language)
    assert is_sound(waveform)
    assert -30 < active_level(waveform, vocoder.sample_rate) < -16


def test_replies_of_the_shipped_vocoder_are_equally_loud(shipped: tuple[UnitEncoder, Vocoder], voices: Voices) -> None:
    """Sentences no training heard, by its speakers and by strangers, heard or predicted timing, in every voice."""
    encoder, vocoder = shipped
    levels: dict[tuple, float] = {}
    for language in vocoder.config.languages:
        for voice in (vocoder.config.speakers[0], *list(voices.held_out)[:2]):
            said = [speak(text, language, voices.speaker(voice), voices) for text in BEGINNINGS[language]]
            heard = [encoder.encode(waveform, SAMPLE_RATE) for waveform in said]
            for speaker in vocoder.config.speakers:
                for timing in ("heard", "predicted"):
                    stream = vocoder.stream(speaker)
                    parts = [
                        stream.push(one.ids, one.run_lengths if timing == "heard" else None, language, begins=begins)
                        for one in heard
                        for begins in [[True] + [False] * (len(one) - 1)]
                    ]
                    reply = np.concatenate([*parts, stream.flush()])
                    assert is_sound(reply)
                    levels[language, voice, speaker, timing] = active_level(reply, vocoder.sample_rate)
    assert max(levels.values()) - min(levels.values()) <= LOUDNESS_GOAL, levels
