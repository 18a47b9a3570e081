"""The vocoder: streamed equals offline, bounded look-ahead and memory, no clipping, ISTFT as in vocos."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.units import Units
from tests.vocoder.sounds import (
    VOCODERS,
    build,
)
from vocoder.config import VocoderConfig
from vocoder.model import Vocoder
from vocoder.streaming import BLOCK, VocoderStream


def pushes(
    vocoder: Vocoder, ids: list, lengths: list | None, languages: list, cuts: list[int], begins: list | None = None
) -> tuple:
    """Push the pieces between the cuts; the audio of each push, then that of the flush."""
    stream = vocoder.stream("ben")
    edges = [0, *sorted(cuts), len(ids)]
    begins = begins or [False] * len(ids)
    parts = [
        stream.push(ids[a:b], None if lengths is None else lengths[a:b], languages[a:b], begins=begins[a:b])
        for a, b in itertools.pairwise(edges)
    ]
    return (*parts, stream.flush())


@pytest.mark.parametrize("name", VOCODERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 30), known=st.booleans())
def test_streamed_equals_offline_for_any_chunking(name: str, data: st.DataObject, count: int, known: bool) -> None:
    """One unit at a time, empty pushes, languages and sentences that change within a chunk, known or predicted lengths."""
    vocoder = VOCODERS[name]
    ids = data.draw(st.lists(st.integers(0, 10), min_size=count, max_size=count))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)) if known else None
    languages = data.draw(st.lists(st.sampled_from(["en", "fr"]), min_size=count, max_size=count))
    begins = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    cuts = data.draw(st.lists(st.integers(0, count), max_size=count + 3))
    whole = vocoder.stream("ben").push(ids, lengths, languages, begins=begins, final=True)
    for some_cuts in (cuts, list(range(count))):
        streamed = np.concatenate(pushes(vocoder, ids, lengths, languages, some_cuts, begins))
        assert streamed.shape == whole.shape
        np.testing.assert_allclose(streamed, whole, atol=1e-4)
    assert whole.dtype == np.float32
    if lengths is not None:
        assert len(whole) == sum(lengths) * vocoder.config.frame_samples
    assert np.isfinite(whole).all()
    assert np.abs(whole).max(initial=0.0) <= 1.0


@pytest.mark.parametrize("name", VOCODERS)
@settings(max_examples=20, deadline=None)
@given(
    ids=st.lists(st.integers(0, 10), max_size=40), speaker=st.sampled_from(["ada", "ben", None]), french=st.booleans()
)
def test_how_long_a_sentence_lasts_is_known_before_it_is_spoken(
    name: str, ids: list[int], speaker: str | None, french: bool
) -> None:
    vocoder, language = VOCODERS[name], "fr" if french else "en"
    sound = vocoder.stream(speaker).push(ids, None, language, final=True)
    seconds = vocoder.seconds(np.array(ids, np.int64), speaker, language)
    assert seconds * vocoder.sample_rate == pytest.approx(len(sound), abs=1e-6)


@pytest.mark.parametrize("name", VOCODERS)
def test_audio_leaves_when_the_lookahead_is_covered(name: str) -> None:
    """Of the units whose following ones are known all samples but the last `lookahead_seconds` are out, and they never
    change; a sentence that begins ends the one before."""
    vocoder = VOCODERS[name]
    ahead, unit = vocoder.config.units_ahead, 3 * vocoder.config.frame_samples
    held_back = round(vocoder.lookahead_seconds * vocoder.sample_rate)
    stream, got = vocoder.stream(), 0
    for number in range(10):
        got += len(stream.push([number], [3]))
        spoken = max(0, number + 1 - ahead)
        assert got == max(0, spoken * unit - held_back)
        assert len(stream.run_lengths) == (spoken > 0)
    got += len(stream.push([0], [3], begins=True))
    assert got == (10 if ahead else 11) * unit - held_back
    assert len(stream.run_lengths) == (ahead or 1)
    assert got + len(stream.flush()) == 11 * unit
    assert len(stream.run_lengths) == (1 if ahead else 0)


def test_the_units_behind_are_heard_at_once() -> None:
    """The same unit sounds otherwise before another, long before the look-ahead in time reaches it; not across sentences."""
    vocoder = VOCODERS["50 Hz, two units ahead"]
    for other, begins, same in (([2, 5], False, False), ([5, 3], False, False), ([5, 5], True, True)):
        one, two = (
            vocoder.stream().push([1, *after], [30, 3, 3], begins=[False, begins, False], final=True)
            for after in ([2, 3], other)
        )
        assert (np.abs(one - two)[: 20 * vocoder.config.frame_samples].max() < 1e-6) == same


def test_the_melody_moves_and_pauses() -> None:
    """Else the tests of streaming would hear noise only."""
    stream = VOCODERS["50 Hz"].stream()
    tones = []
    for unit in np.random.default_rng(0).integers(0, 11, 60):
        stream.push([unit], [2])
        tones.append(float(stream._source[0, -1]))
    assert 0.1 < np.mean(np.array(tones) > 0) < 0.9
    assert np.std(np.log2([tone for tone in tones if tone])) > 0.02


def test_default_size_and_lookahead() -> None:
    """At most 60 ms of look-ahead, two to three and a half million parameters."""
    vocoder = Vocoder(VocoderConfig(100, 50.0, 16000, ["ada"], ["en", "fr"]))
    assert vocoder.lookahead_seconds <= 0.060
    assert 2e6 < sum(weight.numel() for weight in vocoder.parameters()) < 3.6e6


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
    kept += [*(stream._backbone_state or []), *(stream._prosody.durations or []), *(stream._prosody.melody or [])]
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
    for ask, known in (
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
            ask()
        assert "\n" not in str(caught.value)


def test_streams_share_a_predictor_until_the_weights_change() -> None:
    """A stream has the weights of its opening: after a training step others, after going back the same."""
    vocoder = build(4)
    units = SimpleNamespace(ids=[1, 5, 2, 8, 3, 0], run_lengths=None)
    weights = {name: value.clone() for name, value in vocoder.state_dict().items()}
    before, early = vocoder.synthesise(units), vocoder.stream()
    assert vocoder.predictor() is vocoder.predictor()
    optimiser = torch.optim.AdamW(vocoder.prosody.parameters(), lr=0.1, fused=True)
    for weight in vocoder.prosody.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    after = vocoder.synthesise(units)
    assert after.shape != before.shape or np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(vocoder.stream().push(units.ids, final=True), after)
    vocoder.load_state_dict(weights)
    np.testing.assert_array_equal(vocoder.synthesise(units), before)
    np.testing.assert_array_equal(early.push(units.ids, final=True), before)


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
