"""The vocoder: streamed equals offline, bounded look-ahead and memory, no clipping, ISTFT as in vocos."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocos.heads import ISTFTHead
from vocos.spectral_ops import ISTFT

from slm.units import Units
from vocoder.causal import CausalConvNeXtBlock, LookaheadConv, depthwise
from vocoder.config import VocoderConfig
from vocoder.durations import run_lengths
from vocoder.istft import KNEE, StreamingISTFTHead, limit
from vocoder.losses import Discriminators, SpectralLoss
from vocoder.model import Vocoder
from vocoder.streaming import BLOCK, VocoderStream

SMALL = {
    "speakers": ["ada", "ben"],
    "languages": ["en", "fr"],
    "dim": 24,
    "intermediate_dim": 32,
    "dilations": [1, 2],
    "duration_dim": 16,
    "duration_dilations": [1, 3],
    "max_run_length": 6,
}


def build(seed: int = 0, **changes: object) -> Vocoder:
    """A small vocoder with weights large enough to be heard."""
    settings = {"codebook_size": 11, "frame_rate": 50.0, "sample_rate": 16000, **SMALL, **changes}
    torch.manual_seed(seed)
    vocoder = Vocoder(VocoderConfig(**settings)).eval()
    with torch.no_grad():
        vocoder.head.out.weight.mul_(20)
    return vocoder


VOCODERS = {
    "50 Hz": build(),
    "12.5 Hz": build(frame_rate=12.5),
    "25 Hz at 24 kHz": build(frame_rate=25.0, sample_rate=24000, hop_length=240, n_fft=960, lookahead=2),
}


def pushes(vocoder: Vocoder, ids: list, lengths: list | None, languages: list, cuts: list[int]) -> tuple:
    """Push the pieces between the cuts; the audio of each push, then that of the flush."""
    stream = vocoder.stream("ben")
    edges = [0, *sorted(cuts), len(ids)]
    parts = [
        stream.push(ids[a:b], None if lengths is None else lengths[a:b], languages[a:b])
        for a, b in itertools.pairwise(edges)
    ]
    return (*parts, stream.flush())


@pytest.mark.parametrize("name", VOCODERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 30), known=st.booleans())
def test_streamed_equals_offline_for_any_chunking(name: str, data: st.DataObject, count: int, known: bool) -> None:
    """One unit at a time, empty pushes, languages that change within a chunk, given or predicted run lengths."""
    vocoder = VOCODERS[name]
    ids = data.draw(st.lists(st.integers(0, 10), min_size=count, max_size=count))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)) if known else None
    languages = data.draw(st.lists(st.sampled_from(["en", "fr"]), min_size=count, max_size=count))
    cuts = data.draw(st.lists(st.integers(0, count), max_size=count + 3))
    whole = vocoder.stream("ben").push(ids, lengths, languages, final=True)
    for some_cuts in (cuts, list(range(count))):
        streamed = np.concatenate(pushes(vocoder, ids, lengths, languages, some_cuts))
        assert streamed.shape == whole.shape
        np.testing.assert_allclose(streamed, whole, atol=1e-5)
    assert whole.dtype == np.float32
    if lengths is not None:
        assert len(whole) == sum(lengths) * vocoder.config.frame_samples
    assert np.isfinite(whole).all()
    assert np.abs(whole).max(initial=0.0) <= 1.0


@pytest.mark.parametrize("name", VOCODERS)
def test_audio_leaves_when_the_lookahead_is_covered(name: str) -> None:
    """After units of s seconds, all samples but the last `lookahead_seconds` are out, and they never change."""
    vocoder = VOCODERS[name]
    stream, sent, got = vocoder.stream(), 0, 0
    for unit in range(10):
        got += len(stream.push([unit], [3]))
        sent += 3 * vocoder.config.frame_samples
        assert got == sent - round(vocoder.lookahead_seconds * vocoder.sample_rate)
    assert got + len(stream.flush()) == sent


def test_default_size_and_lookahead() -> None:
    """At most 60 ms of look-ahead, two to three million parameters."""
    vocoder = Vocoder(VocoderConfig(100, 50.0, 16000, ["ada"], ["en", "fr"]))
    assert vocoder.lookahead_seconds <= 0.060
    assert 2e6 < sum(weight.numel() for weight in vocoder.parameters()) < 3.2e6


def test_what_comes_later_changes_nothing_before_the_lookahead() -> None:
    vocoder = VOCODERS["50 Hz"]
    head, lengths = [1, 2, 3, 4, 5], [2] * 8
    one = vocoder.synthesise(SimpleNamespace(ids=[*head, 6, 7, 8], run_lengths=lengths))
    two = vocoder.synthesise(SimpleNamespace(ids=[*head, 9, 0, 1], run_lengths=lengths))
    certain = 10 * vocoder.config.frame_samples - round(vocoder.lookahead_seconds * 16000)
    np.testing.assert_allclose(one[:certain], two[:certain], atol=1e-6)
    assert np.abs(one[certain:] - two[certain:]).max() > 1e-3


def state_bytes(stream: VocoderStream) -> int:
    """Bytes of what a stream carries from push to push."""
    kept = [stream._first_state, stream._overlap.sums, stream._overlap.envelope]
    kept += [*(stream._backbone_state or []), *(stream._duration_state or [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor is not None)


def test_memory_does_not_grow() -> None:
    """Also where one push is longer than the blocks it is computed in."""
    vocoder = VOCODERS["50 Hz"]
    stream = vocoder.stream()
    rng = np.random.default_rng(0)
    stream.push(rng.integers(0, 11, 40))
    before = state_bytes(stream)
    for count in (1, 7, 2 * BLOCK + 3):
        stream.push(rng.integers(0, 11, count))
        assert state_bytes(stream) == before


def test_blocks_leave_no_seam() -> None:
    """A push of several blocks equals the same units one by one."""
    vocoder = VOCODERS["12.5 Hz"]
    ids = np.random.default_rng(1).integers(0, 11, BLOCK + 9).tolist()
    lengths = [1] * 20 + [3 * BLOCK // vocoder.config.repeats] + [2] * (len(ids) - 21)
    languages = ["fr"] * len(ids)
    whole = vocoder.stream("ben").push(ids, lengths, languages, final=True)
    streamed = np.concatenate(pushes(vocoder, ids, lengths, languages, list(range(len(ids)))))
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


def test_speaker_and_language_are_heard() -> None:
    vocoder = VOCODERS["50 Hz"]
    units = SimpleNamespace(ids=[1, 5, 2, 8], run_lengths=[3, 2, 1, 4])
    voices = [vocoder.synthesise(units, s, lang) for s in ("ada", "ben") for lang in ("en", "fr")]
    for index, voice in enumerate(voices):
        for other in voices[index + 1 :]:
            assert np.abs(voice - other).max() > 1e-3


def test_language_stays_until_another_is_given() -> None:
    vocoder = VOCODERS["50 Hz"]
    stream = vocoder.stream()
    parts = [stream.push([1, 2], [2, 2], "fr"), stream.push([3], [2]), stream.push([4], [5], "en"), stream.flush()]
    whole = vocoder.stream().push([1, 2, 3, 4], [2, 2, 2, 5], ["fr", "fr", "fr", "en"], final=True)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_nothing_gives_nothing() -> None:
    vocoder = VOCODERS["50 Hz"]
    assert vocoder.synthesise(Units.empty(50.0)).shape == (0,)
    stream = vocoder.stream()
    assert stream.push([]).shape == (0,)
    assert stream.flush().shape == (0,)
    assert stream.flush().shape == (0,)


def test_what_cannot_be_is_refused_in_one_line() -> None:
    vocoder = VOCODERS["50 Hz"]
    for speak, known in (
        (lambda: vocoder.stream("zoe"), "ada, ben"),
        (lambda: vocoder.stream().push([1], [1], "de"), "en, fr"),
        (lambda: vocoder.stream().push([], language="de"), "en, fr"),
        (lambda: vocoder.stream().push([11]), r"0\.\.10"),
        (lambda: vocoder.stream().push([-1]), r"0\.\.10"),
        (lambda: vocoder.stream().push([0.5]), "integers"),
        (lambda: vocoder.stream().push([1, 2], [1]), "as many"),
        (lambda: vocoder.stream().push([1], [0]), "at least 1"),
        (lambda: vocoder.stream().push([1, 2], [1, 1], ["en"]), "one for each"),
        (lambda: vocoder.synthesise(Units.empty(25.0)), "50 Hz"),
        (lambda: VocoderConfig(10, 50.0, 16000, ["a"], ["en"], hop_length=150), "divisor"),
        (lambda: VocoderConfig(10, 50.0, 16000, [], ["en"]), "speakers"),
    ):
        with pytest.raises(ValueError, match=known) as caught:
            speak()
        assert "\n" not in str(caught.value)


def test_a_refused_push_leaves_the_stream_as_it_was() -> None:
    vocoder = VOCODERS["50 Hz"]
    stream = vocoder.stream("ben")
    first = stream.push([1, 2, 3], [2, 2, 2], "fr")
    with pytest.raises(ValueError):
        stream.push([4, 99], [2, 2], "en")
    parts = [first, stream.push([4], [2]), stream.flush()]
    with pytest.raises(ValueError, match="finished"):
        stream.push([1])
    whole = vocoder.stream("ben").push([1, 2, 3, 4], [2] * 4, "fr", final=True)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


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
    head = StreamingISTFTHead(4, n_fft, hop)
    state, parts = head.fresh(2, torch.device("cpu")), []
    edges = [0, *sorted(min(cut, steps) for cut in cuts), steps]
    for a, b in itertools.pairwise(edges):
        samples, state = head.overlap_add(spectrum[:, :, a:b], state, final=False)
        parts.append(samples)
    parts.append(head.overlap_add(spectrum[:, :, :0], state, final=True)[0])
    expected = ISTFT(n_fft, hop, n_fft, padding="same")(spectrum)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-4)


def test_head_equals_vocos_where_nothing_is_loud() -> None:
    torch.manual_seed(0)
    ours, theirs = StreamingISTFTHead(16, 640, 160), ISTFTHead(16, 640, 160)
    theirs.out.load_state_dict(ours.out.state_dict())
    x = 0.1 * torch.randn(2, 25, 16)
    waveform = theirs(x)
    assert waveform.abs().max() < KNEE
    torch.testing.assert_close(ours(x)[0], waveform, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dilation", [1, 3])
def test_depthwise_equals_conv1d(dilation: int) -> None:
    torch.manual_seed(0)
    block = CausalConvNeXtBlock(8, 16, 0.5, kernel_size=5, dilation=dilation)
    x = torch.randn(2, 30, 8)
    expected = block.dwconv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(depthwise(x, block.dwconv), expected, atol=1e-5, rtol=1e-4)
    double = depthwise(x.double(), block.double().dwconv)
    torch.testing.assert_close(double.float(), expected, atol=1e-5, rtol=1e-4)


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
    np.testing.assert_allclose(rounded.synthesise(units, "ben", "fr"), expected, atol=0.02)
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
