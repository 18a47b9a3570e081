"""The unit evaluation: its distances against plain definitions, and its figures on encoders whose worth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.bundle import Bundle
from slm.errors import TresseError
from slm.units import Units
from train.evaluate import units_report
from train.evaluate.abx import abx_error, dtw_mean_cost, find_tokens, token_distances
from train.evaluate.mfcc import MfccEncoder
from train.evaluate.units import (
    Speech,
    edit_distances,
    edit_rates,
    entropy,
    evaluate_units,
    first_unit_seconds,
    measure,
    pnmi,
    purity,
    speak_panel,
)
from train.evaluate.units_report import markdown_page, report_units, summary_table
from train.speech.phones import SILENCE, Phone, frame_labels, phone_name, phones
from train.speech.voices import Phoneme, Voices
from train.stories.grammar import Story, distinct_sentences
from train.stories.held_out import held_out_sentences

SENTENCES = [
    ("en", "The cat sat on the mat and the bat sat on the hat."),
    ("en", "A fat cat had a hat, and the bat met a man in a van."),
    ("fr", "Le chat a vu le rat, et le rat a bu du lait."),
    ("fr", "La belle balle roule dans la salle, et le chat la voit."),
]


def slow_distance(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        slow_distance(a[:-1], b) + 1, slow_distance(a, b[:-1]) + 1, slow_distance(a[:-1], b[:-1]) + (a[-1] != b[-1])
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5)), max_size=6)
)
def test_edit_distances_are_levenshteins(pairs: list[tuple[list[int], list[int]]]) -> None:
    arrays = [(np.array(a, np.int64), np.array(b, np.int64)) for a, b in pairs]
    assert edit_distances(arrays).tolist() == [slow_distance(a, b) for a, b in pairs]
    for rate, (a, b) in zip(edit_rates(arrays), pairs, strict=True):
        assert rate == pytest.approx(slow_distance(a, b) / max(1, len(a), len(b)))


def slow_dtw(cost: np.ndarray) -> float:
    """Cheapest path, the shortest of equals, by trying all of them."""
    found = []

    def walk(i: int, j: int, total: float, steps: int) -> None:
        total, steps = total + cost[i, j], steps + 1
        if (i, j) == (cost.shape[0] - 1, cost.shape[1] - 1):
            found.append((total, steps))
        for di, dj in ((1, 1), (1, 0), (0, 1)):
            if i + di < cost.shape[0] and j + dj < cost.shape[1]:
                walk(i + di, j + dj, total, steps)

    walk(0, 0, 0.0, 0)
    total, steps = min(found)
    return total / steps


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_dtw_takes_the_cheapest_and_shortest_path(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4))
    size = max(max(shape) for shape in shapes)
    costs = [np.array(data.draw(st.lists(st.integers(0, 2), min_size=n * m, max_size=n * m))) for n, m in shapes]
    batch = torch.full((len(shapes), size, size), 7.0)
    for row, ((n, m), cost) in enumerate(zip(shapes, costs, strict=True)):
        batch[row, :n, :m] = torch.from_numpy(cost.reshape(n, m)).float()
    n, m = torch.tensor(shapes).T
    expected = [slow_dtw(cost.reshape(shape)) for shape, cost in zip(shapes, costs, strict=True)]
    assert dtw_mean_cost(batch, n, m).tolist() == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=2, max_size=6))
def test_units_and_one_hot_vectors_are_as_far_apart(tokens: list[list[int]]) -> None:
    distances = token_distances([np.array(token, np.int64) for token in tokens])
    one_hot = token_distances([np.eye(4)[token] for token in tokens])
    assert np.allclose(distances, distances.T)
    assert (np.diag(distances) == 0).all()
    assert np.allclose(distances, 2 * one_hot, atol=1e-6)  # orthogonal vectors: an angle of half of pi


def spoken(words: str, voice: str, sentence: int) -> tuple[str, int, list[Phone]]:
    """A letter a phone, 0.1 s each."""
    return voice, sentence, [Phone(letter, k / 10, (k + 1) / 10) for k, letter in enumerate(words)]


CORPUS = [
    spoken(words, voice, sentence)
    for voice in ("ada", "ben")
    for sentence, words in enumerate(["_bat_", "_bit_", "_bat_", "_bit_"])
]


def coded(code: dict[str, int], per_phone: int = 5) -> list[np.ndarray]:
    return [np.repeat([code[phone.name] for phone in phones_], per_phone) for _, _, phones_ in CORPUS]


def test_abx_of_perfect_deaf_and_voice_bound_units() -> None:
    contexts = find_tokens(CORPUS)
    assert [sorted({token.phone for token in tokens}) for tokens in contexts] == [["a", "i"]]
    letters = {"_": 0, "b": 1, "a": 2, "i": 3, "t": 4}
    perfect = abx_error(contexts, coded(letters), 50.0)
    assert (perfect.within, perfect.across) == (0.0, 0.0)
    assert perfect.phone_pairs == 2
    # within: per voice and order of the pair, X and A are two ordered choices of two, B one of two; across: for every pair
    # of voices too, with A from the other sentence than X's
    assert perfect.triples == 2 * 2 * (2 * 2) + 2 * 2 * (2 * 2)
    deaf = abx_error(contexts, coded(dict.fromkeys(letters, 0)), 50.0)
    assert (deaf.within, deaf.across) == (0.5, 0.5)
    # ada's "a" sounds like ben's "i" and the other way round: no error within a voice, only errors across
    swapped = coded(letters)
    for index, (voice, _, _) in enumerate(CORPUS):
        if voice == "ben":
            swapped[index] = np.array([0, 1, 3, 2, 4])[swapped[index]]
    bound = abx_error(contexts, swapped, 50.0)
    assert (bound.within, bound.across) == (0.0, 1.0)


def test_abx_on_features_follows_the_angle() -> None:
    contexts = find_tokens(CORPUS)
    directions = {"_": [1, 0, 0], "b": [0, 1, 0], "a": [0, 0.1, 1], "i": [0, 1, 0.1], "t": [1, 1, 0]}
    features = [
        np.repeat([np.array(directions[phone.name]) * (1 + index) for phone in phones_], 5, axis=0)
        for index, (_, _, phones_) in enumerate(CORPUS)
    ]
    found = abx_error(contexts, features, 50.0)  # louder is not farther
    assert (found.within, found.across) == (0.0, 0.0)


def test_speech_without_minimal_pairs_has_no_abx() -> None:
    assert find_tokens([spoken("bat", "ada", 0), spoken("bat", "ada", 1)]) == []
    assert abx_error([], [], 50.0).across is None


def test_phones_are_named_and_placed() -> None:
    names = {
        "'eI": "eI",
        ",O2": "O",
        "@-": "@",
        "t2": "t",
        "t#": "t#",
        "3": "3",
        "_:": SILENCE,
        ";": None,
        "(en)": None,
    }
    assert {mnemonic: phone_name(mnemonic) for mnemonic in names} == names
    heard = phones(
        [Phoneme("'a", 0.1), Phoneme(";", 0.15), Phoneme("t", 0.2), Phoneme("_:", 0.3), Phoneme("_", 0.35)], 0.5
    )
    assert heard == [Phone("_", 0.0, 0.1), Phone("a", 0.1, 0.2), Phone("t", 0.2, 0.3), Phone("_", 0.3, 0.5)]
    assert frame_labels(heard, 6, 10.0).tolist() == ["_", "a", "t", "_", "_", "_"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=2, max_size=5))
def test_pnmi_lies_between_nothing_and_everything(counts: list[list[int]]) -> None:
    joint = np.array(counts) + np.eye(len(counts), 3)
    assert -1e-9 <= pnmi(joint) <= 1 + 1e-9
    assert joint.sum(1).max() / joint.sum() - 1e-9 <= purity(joint) <= 1
    independent = np.outer(joint.sum(1), joint.sum(0))
    assert pnmi(independent) == pytest.approx(0, abs=1e-9)
    assert pnmi(np.diag(joint.sum(1))) == pytest.approx(1)
    assert entropy(np.full(8, 3)) == pytest.approx(math.log(8))


class Oracle:
    """Knows what is said, and when: a unit a phone; with `voices`, units of their own for every voice."""

    sample_rate, frame_rate, codebook_size = 16000, 50.0, 4000

    def __init__(self, speech: Speech, voices: bool = False) -> None:
        self.known: dict[bytes, tuple[np.ndarray, int]] = {}
        names: dict[tuple[str, str], int] = {}
        for utterances in speech.panel.values():
            for utterance in utterances:
                frames = -(-len(utterance.waveform) // 320)
                labels = frame_labels(utterance.phones, frames, 50.0)
                owner = utterance.voice if voices else ""
                ids = np.array([names.setdefault((owner, str(label)), len(names)) for label in labels])
                self.known[utterance.waveform.tobytes()] = (ids, frames)

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        nothing = (np.zeros(1, np.int64), 1)
        return [Units.from_frames(self.known.get(waveform.tobytes(), nothing)[0], 50.0) for waveform in waveforms]


@pytest.fixture(scope="module")
def speech() -> Speech:
    return speak_panel(
        SENTENCES, Voices.load(), voices_per_group=2, changes={"half": lambda wave: wave * np.float32(0.5)}
    )


def test_an_oracle_is_perfect_and_a_voice_bound_one_is_not(speech: Speech) -> None:
    perfect, bound = measure(Oracle(speech), speech), measure(Oracle(speech, voices=True), speech)
    assert set(perfect) == {(language, group) for language in ("en", "fr") for group in ("training", "held_out")}
    for key, metrics in perfect.items():
        assert metrics["pnmi"] == pytest.approx(1)
        assert metrics["phone_purity"] == metrics["phone_purity_without_silence"] == 1
        assert metrics["edit_rate"]["mean"] < 0.05  # two variants may word a phone differently
        assert metrics["edit_rate"]["pairs"] == 2
        assert bound[key]["edit_rate"]["mean"] == 1
        assert bound[key]["pnmi"] == pytest.approx(1)
        assert 3 < metrics["units_per_second"] < 25
        assert metrics["bits_per_second"] < metrics["units_per_second"] * math.log2(metrics["perplexity"]) + 1e-6
    assert perfect["en", "training"]["abx"]["units"]["across"] == 0
    assert bound["en", "training"]["abx"]["units"]["across"] == 0.5  # all of another voice is equally far


def test_the_shipped_encoder_is_better_than_mfccs(bundle: Bundle, speech: Speech) -> None:
    baseline = MfccEncoder.fit(SENTENCES * 5, Voices.load(), bundle.units.codebook_size, bundle.units.frame_rate)
    results = evaluate_units(bundle.units, baseline, SENTENCES, Voices.load(), speech=speech)
    assert results["sentences"] == {"en": 2, "fr": 2}
    assert 0.02 < results["encoder"]["first_unit_seconds"] <= 0.14
    for groups in results["rows"].values():
        for measured in groups.values():
            ours, plain = measured["encoder"], measured["baseline"]
            assert ours["edit_rate"]["mean"] < plain["edit_rate"]["mean"]
            assert ours["edit_rate_changed"]["half"]["mean"] < 0.2
            assert plain["abx"]["features"]["within"] is not None
    assert json.loads(json.dumps(results)) == results


def test_mfcc_units_are_aligned_with_their_frames() -> None:
    encoder = MfccEncoder(torch.zeros(1, 39), 25.0)
    waveform = np.zeros(16000, np.float32)
    waveform[6400:7040] = np.random.default_rng(0).normal(0, 0.5, 640)  # the eleventh frame of 40 ms
    assert encoder.features(waveform).shape == (25, 39)
    assert encoder.features(waveform)[:, 0].argmax() == 10
    assert encoder.encode_batch([waveform[:15999]])[0].run_lengths.sum() == 25


def test_an_encoder_that_waits_for_the_end_has_no_first_unit() -> None:
    class Waiting:
        sample_rate = 16000

        def stream(self) -> Waiting:
            return self

        def push(self, samples: np.ndarray) -> np.ndarray:
            return np.zeros(0, np.int64)

    assert first_unit_seconds(Waiting(), np.zeros(16000, np.float32)) is None


def test_held_out_sentences_are_distinct_and_unseen() -> None:
    stories = [Story(str(k), {"en": [f"a{k}", "same", "seen"], "fr": [f"b{k}", "pareil", "vu"]}, {}) for k in range(5)]
    seen = [Story("t", {"en": ["seen"], "fr": ["vu"]}, {})]
    picked = distinct_sentences(stories, ["en", "fr"], 4, without=seen)
    assert len(set(picked)) == len(picked) == 8
    assert not {("en", "seen"), ("fr", "vu")} & set(picked)


def test_sentences_of_the_stories_that_a_bundle_was_trained_on_are_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many as it was trained on, with its seed: a recipe's own numbers may have been changed; and of those before."""
    asked: list[tuple[int, int, str]] = []

    def stories(seed: int, count: int, split: str = "train", **_: object) -> list[Story]:
        asked.append((seed, count, split))
        texts = [f"{seed} {k}" for k in range(count)] if split == "train" else ["7 4", "2 9", "fresh", "new"]
        return [Story(split, {"en": texts}, {})]

    monkeypatch.setattr("train.stories.held_out.generate_stories", stories)
    before = {"recipe": "tiny", "seed": 2, "stories": 10}
    made = {"recipe": "tiny", "seed": 7, "stories": 5, "warm_start": before}
    picked = held_out_sentences({"provenance": made}, ["en"], 2)
    assert {text for _, text in picked} == {"fresh", "new"}
    assert {(7, 5, "train"), (2, 10, "train")} <= set(asked)


def test_the_report_holds_every_row(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {language: [text for code, text in SENTENCES if code == language] for language in ("en", "fr")}
    stories = {
        "validation": [Story("v", texts, {})],
        "train": [Story("t", {"en": ["A dog ran home and slept all day long."] * 2, "fr": ["Le chien dort."] * 2}, {})],
    }
    monkeypatch.setattr(units_report, "generate_stories", lambda seed, count, split: stories[split])
    results = report_units(bundle.units, ["en", "fr"], tmp_path, count=2, voices_per_group=2)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    page = (tmp_path / "units.md").read_text(encoding="utf-8")
    assert page == markdown_page(results)
    assert page.count("| MFCC + k-means |") == page.count("| this encoder |") == 16  # 4 tables of 4 rows
    assert "pitch +4 semitones" in page
    assert summary_table(results).count("\n") == 9
    for name in units_report.PLOTS:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in page


def test_voices_without_phoneme_times_are_refused() -> None:
    voices = Voices.load()
    alone = Voices(voices.languages, voices.reference, [], {voices.reference: voices.training[voices.reference]}, {})
    with pytest.raises(TresseError, match="espeak-ng voices"):
        speak_panel(SENTENCES, alone, changes={})
