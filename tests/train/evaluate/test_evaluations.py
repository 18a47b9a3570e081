"""Pairs, alignment, continuation, and all of them in one report: on a bundle of milliseconds."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slm.audio import write_wav
from slm.errors import TresseError
from tests.tiny_evaluation import Parrot, TinyBundle, make_item
from train.evaluate import all as everything
from train.evaluate.alignment import aligned_sentences, evaluate_alignment, hidden_states, linear_cka, measure_layer
from train.evaluate.cloze.report import shown
from train.evaluate.continuation import evaluate_continuation
from train.evaluate.html import html_page, nested
from train.evaluate.lexical import (
    PAIRS,
    ROUGH,
    SHIPPED_SET,
    PhonemeBigrams,
    is_vowel,
    make_lexical,
    neighbours,
    phonemes_of,
)
from train.evaluate.pairs import Pair, evaluate_pairs, read_pairs
from train.evaluate.spoken_items import SpokenUnits, speak_block
from train.publish.figures import figures
from train.publish.results import publish
from train.speech.phones import phone_name
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.stories.grammar import Story, generate_stories
from train.stories.written import written_stories
from train.tools.checkpoints import write_json


@pytest.fixture
def bundle(tmp_path: Path) -> TinyBundle:
    return TinyBundle(tmp_path / "bundle")


def loud(words: int, tmp_path: Path) -> str:
    name = f"{words}.wav"
    write_wav(tmp_path / name, speak("one two three four " * words, "en", Voices.load().speaker("basile")), SAMPLE_RATE)
    return name


def test_pairs_of_recordings_are_scored_by_group_and_what_is_missing_is_named(
    bundle: TinyBundle, tmp_path: Path
) -> None:
    names = [loud(words, tmp_path) for words in (1, 2)]
    (tmp_path / "empty.wav").touch()
    rows = [
        {"right": names[0], "wrong": names[1], "group": "short", "language": "en"},
        {"right": names[1], "wrong": names[0], "group": "long", "language": "en"},
        {"right": names[0], "wrong": names[0], "group": "equal"},
        {"right": names[0], "wrong": "gone.wav", "group": "short"},
        {"right": "empty.wav", "wrong": names[0], "group": "short"},
        {"right": names[0], "wrong": names[1], "group": "short", "language": "de"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, root = read_pairs(path)
    results = evaluate_pairs(bundle, pairs, out=tmp_path / "out", audio_root=root)
    groups = {name: voices["recorded"] for name, voices in results["groups"].items()}
    for rule in ("per_token", "total"):
        assert groups["short"][rule]["accuracy"] + groups["long"][rule]["accuracy"] == 1
        assert groups["equal"][rule]["accuracy"] == 0.5
    assert groups["short"]["total"]["accuracy"] == 1  # fewer tokens
    assert {name: (entry["total"]["n"], entry["left_out"]) for name, entry in groups.items()} == {
        "short": (1, 3),
        "long": (1, 0),
        "equal": (1, 0),
    }
    why = {problem["id"]: problem["problem"] for problem in results["problems"]}
    assert "gone.wav" in why["line 4"]
    assert "is empty" in why["line 5"]
    assert "not de" in why["line 6"]
    assert "gone.wav" in (tmp_path / "out" / "pairs.md").read_text()
    with pytest.raises(TresseError, match="no pair can be scored"):
        evaluate_pairs(bundle, [Pair("x", "all", "de", *[{"audio": names[0]}] * 2)], out=tmp_path, audio_root=root)


def test_a_language_left_open_favours_neither_recording(bundle: TinyBundle, tmp_path: Path) -> None:
    names = [{"audio": loud(words, tmp_path)} for words in (1, 2)]
    there, back = (
        evaluate_pairs(bundle, [Pair("x", "all", None, *both)], out=tmp_path / "out", audio_root=tmp_path)
        for both in (names, names[::-1])
    )
    for rule in ("per_token", "total"):
        values = [one["groups"]["all"]["recorded"][rule]["accuracy"] for one in (there, back)]
        assert sum(values) == 1


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_shipped_lexical_set_is_words_against_neighbours_of_them(language: str) -> None:
    held = [pair for pair in read_pairs()[0] if pair.language == language]
    assert len(held) == PAIRS
    assert len({pair.id for pair in held}) == len(held)
    words = {pair.right["phonemes"] for pair in held}
    for pair in held:
        right, wrong = pair.right["phonemes"].split("|"), pair.wrong["phonemes"].split("|")
        changed = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        assert len(right) >= 5
        assert len(changed) == 1
        assert is_vowel(changed[0][0]) == is_vowel(changed[0][1])
        assert len({ROUGH.get(phone_name(part), phone_name(part)) for part in changed[0]}) == 2  # a listener can tell
        assert pair.wrong["phonemes"] not in words


@pytest.mark.parametrize("language", ["en", "fr"])
def test_phoneme_bigrams_cannot_tell_words_from_nonwords(language: str) -> None:
    """What a model of which sound follows which would score is chance: the pairs ask for words."""
    counts = Counter(
        word for story in written_stories() for text in story.sentences[language] for word in text.lower().split()
    )
    counts = Counter({word: count for word, count in counts.items() if word.isalpha()})
    bigrams = PhonemeBigrams(phonemes_of(counts, Voices.load().languages[language]), counts)
    right, wrong = (
        [
            bigrams.score(getattr(pair, part)["phonemes"].split("|"))
            for pair in read_pairs()[0]
            if pair.language == language
        ]
        for part in ("right", "wrong")
    )
    assert 0.45 < np.mean(np.array(right) > np.array(wrong)) < 0.55


def test_the_lexical_set_is_made_anew_the_same() -> None:
    stories = list(generate_stories(0, 30, "train"))
    one, other = (make_lexical("fr", stories, {"fr": "fr"}, 20) for _ in range(2))
    assert one == other
    assert len(one) == 20
    assert json.loads(SHIPPED_SET.read_text(encoding="utf-8").splitlines()[0])["language"] == "en"


def test_nonwords_are_no_words_of_a_list() -> None:
    stories = [Story("1", {"en": ["The garden is hidden behind the harden kitten and the mitten."]})]
    found = make_lexical("en", stories, {"en": "en-us"}, 9, {"en": ["garden", "hidden", "bidden", "guarded"]})
    assert {pair["word"] for pair in found} <= {"garden", "hidden"}
    sounds = {"".join(said) for said in phonemes_of(["harden", "mitten", "bidden"], "en-us").values()}
    assert not {pair["wrong"]["phonemes"].replace("|", "") for pair in found} & sounds


def test_phonemes_are_spoken_as_they_are_and_exchanged_among_their_kind() -> None:
    voices = Voices.load()
    said = speak_block(
        [({"phonemes": text}, "en", "basile") for text in ("g|'A@|d|@|n", "g|'A@|d|@|n", "k|'A@|d|@|n")],
        voices, SAMPLE_RATE, Path("."),
    )  # fmt: skip
    assert all(isinstance(waveform, np.ndarray) and len(waveform) > 4000 for waveform in said)
    assert np.array_equal(said[0], said[1])
    assert not np.array_equal(said[0], said[2])
    words = {"cat": ("k", "'a", "t"), "dog": ("d", "'0", "g"), "kit": ("k", "'I", "t"), "bat": ("b", "'a", "t")}
    assert neighbours(("k", "'a", "t"), words) == [(0, "b"), (1, "'I")]


def test_states_of_a_batch_are_those_of_each_sentence_alone(bundle: TinyBundle) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 30, size).tolist() for size in (5, 12, 3, 40, 12)]
    states = hidden_states(bundle.language_model, sequences)
    assert states.shape == (2, 5, 32)
    for place, sequence in enumerate(sequences):
        with torch.no_grad():
            held = bundle.language_model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
        for layer in range(2):
            assert states[layer, place] == pytest.approx(held[layer][0, 2:].mean(0).numpy(), abs=1e-5)


def test_alignment_controls() -> None:
    """Equal states retrieve all and have a CKA of one; unrelated ones retrieve nothing, and cosines meet their control."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 80, 16))
    turned = one @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert linear_cka(one, turned) == pytest.approx(1)
    same = measure_layer(one, 2 * one)
    assert same["retrieval"]["mean"] == same["retrieval_back"]["mean"] == 1
    assert same["cosine"]["mean"] == pytest.approx(1)
    strange = measure_layer(one + 5, other + 5)
    assert strange["retrieval"]["mean"] < 0.1
    assert strange["cosine"]["mean"] == pytest.approx(strange["cosine_mismatched"], abs=0.05)
    assert strange["cosine"]["mean"] > 0.8  # high, and it means nothing
    assert strange["cka"] == pytest.approx(strange["cka_mismatched"], abs=0.1)


def test_alignment_of_two_bundles_in_one_report(bundle: TinyBundle, tmp_path: Path) -> None:
    other = TinyBundle(tmp_path / "other", seed=1)
    results = evaluate_alignment(
        bundle, out=tmp_path / "out", count=8, compare=other, names=("one", "two"), cache=tmp_path / "speech"
    )
    for name in ("one", "two"):
        layers = results["bundles"][name]["pairs"]["en-fr"]["layers"]
        assert len(layers) == 2
        assert all(0 <= layer["retrieval"]["mean"] <= 1 for layer in layers)
    assert {"alignment.md", "layers.png", "map.png", "results.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    with pytest.raises(TresseError, match="two languages"):
        evaluate_alignment(TinyBundle(tmp_path / "mono", languages=["en"]), out=tmp_path / "mono", count=2)


def test_aligned_sentences_are_translations_and_all_different() -> None:
    stories = list(generate_stories(1, 20, "test"))
    rows = aligned_sentences(stories, ["en", "fr"], 30)
    assert len(rows) == 30
    told = {
        (story.sentences["en"][i], story.sentences["fr"][i])
        for story in stories
        for i in range(len(story.sentences["en"]))
    }
    assert {(row["en"], row["fr"]) for row in rows} <= told
    for language in ("en", "fr"):
        assert len({row[language] for row in rows}) == 30


def test_continuations_are_measured_kept_and_not_made_twice(bundle: TinyBundle, tmp_path: Path) -> None:
    story = next(iter(generate_stories(1, 1, "test")))
    settings: dict[str, Any] = {"out": tmp_path / "out", "prompts": 2, "temperatures": (0.0, 0.7)}
    results = evaluate_continuation(bundle, Parrot(" ".join(story.sentences["en"][3:])), **settings)
    assert bundle.continued == results["continuations"] == 2 * 4 * 2
    into_english, into_french = results["cells"]["fr>en"]["0.7"], results["cells"]["en>fr"]["0.7"]
    assert (into_english["language"]["mean"], into_french["language"]["mean"]) == (1, 0)
    assert (into_english["in_domain"]["mean"], into_french["in_domain"]["mean"]) == (1, 0)
    assert into_english["lexicon"]["mean"] > 0.95 > into_french["lexicon"]["mean"]
    assert into_english["self_bleu_2"] == pytest.approx(1)
    assert into_english["confidence"]["mean"] == pytest.approx(0.9)
    assert into_english["seconds"]["mean"] == pytest.approx(0.5)
    rows = [json.loads(line) for line in (tmp_path / "out" / "continuations.jsonl").read_text().splitlines()]
    assert all((tmp_path / "out" / row["audio"]).exists() for row in rows)
    assert "listen" in (tmp_path / "out" / "continuation.md").read_text()
    (tmp_path / "out" / rows[3]["audio"]).unlink()
    again = evaluate_continuation(bundle, Parrot("Nothing."), **settings)
    assert bundle.continued == 17
    assert again["continuations"] == 16
    evaluate_continuation(bundle, None, **settings)  # other settings: nothing of the old table is used
    assert bundle.continued == 17 + 16


def test_the_true_sentences_cohere_with_their_prompt_and_not_with_another(bundle: TinyBundle, tmp_path: Path) -> None:
    results = evaluate_continuation(bundle, None, out=tmp_path / "out", prompts=1, temperatures=(0.0,), max_seconds=1.0)
    assert "coherence" not in results["cells"]["en>en"]["0"]
    assert results["ceiling"]["en>fr"]["mean"] > 0.5


def test_all_is_one_report_that_goes_on_where_it_stopped(
    bundle: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    runs: list[str] = []

    def cloze(setting: everything.Setting, folder: Path) -> Any:
        from train.evaluate.cloze.evaluation import evaluate_cloze

        runs.append("cloze")
        items = [make_item(n) for n in range(4)]
        return evaluate_cloze(setting.bundle, items, out=folder, voices={"en": "basile"}, cache=setting.cache)

    def unable(setting: everything.Setting, folder: Path) -> Any:
        runs.append("unable")
        raise TresseError("no recogniser: give --asr")

    parts = {
        "cloze": everything.Part("Cloze", cloze, "cloze.md"),
        "unable": everything.Part("Unable", unable, "unable.md"),
        "alignment": everything.PARTS["alignment"],
        "continuation": everything.PARTS["continuation"],
    }
    sizes = everything.Sizes(items=4, sentences=4, prompts=1, spoken=2)
    settings: dict[str, Any] = {"out": out, "sizes": sizes, "parts": parts, "transcriber": Parrot("The red hat.")}
    results = everything.evaluate_all(bundle, command="tresse eval all --out out", **settings)
    assert set(results["parts"]) == {"cloze", "alignment", "continuation"}
    assert results["not_measured"] == {"unable": "no recogniser: give --asr"}
    assert json.loads((out / "results.json").read_text()) == results
    page = (out / "report.html").read_text()
    for needle in (
        "tresse eval all --out out",
        "recipe",
        "data:image/png;base64,",
        "data:audio/flac;base64,",
        "<table>",
    ):
        assert needle in page
    assert 'src="http' not in page
    assert 'src="alignment' not in page
    markdown = (out / "report.md").read_text()
    assert "](alignment/layers.png)" in markdown
    assert "## Alignment" in markdown
    made = bundle.continued
    again = everything.evaluate_all(bundle, **settings)
    assert again["parts"] == results["parts"]
    assert runs == ["cloze", "unable", "unable"]
    assert bundle.continued == made
    (bundle.path / "units" / "config.json").write_text('{"other": 1}')
    everything.evaluate_all(bundle, only=["cloze"], **settings)
    assert runs[-1] == "cloze"
    with pytest.raises(TresseError, match="no part sing"):
        everything.evaluate_all(bundle, only=["sing"], **settings)


def test_what_was_measured_is_published(bundle: TinyBundle, tmp_path: Path) -> None:
    """The bundle carries the figures of its evaluation, and pages show those figures between their marks."""
    from train.evaluate.cloze.evaluation import evaluate_cloze

    def cloze(setting: everything.Setting, folder: Path) -> Any:
        items = [make_item(n) for n in range(2)]
        return evaluate_cloze(setting.bundle, items, out=folder, cache=setting.cache)

    parts = {name: everything.PARTS[name] for name in ("alignment", "continuation")}
    parts["cloze"] = everything.Part("Cloze", cloze, "cloze.md")
    sizes = everything.Sizes(items=2, sentences=4, prompts=1, spoken=2)
    out, page = tmp_path / "out", tmp_path / "README.md"
    results = everything.evaluate_all(bundle, out=out, sizes=sizes, parts=parts, transcriber=Parrot("The red hat."))
    made = {
        "training_seconds": {},
        "recipe": "none",
        "seed": 0,
        "commit": "c",
        "made": "today",
        "stories": 1,
        "data": "d",
    }
    info = {"format": 1, "name": "tiny", "languages": ["en", "fr"], "max_prompt_seconds": 30, "provenance": made}
    info |= {"frame_rate": 25.0, "sample_rate": 16000}
    write_json(bundle.path / "bundle.json", info | {"metrics": {"unit_edit_rate": {"held_out_en": 0.25}}})
    page.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    publish(out, bundle.path, [page])
    metrics = json.loads((bundle.path / "bundle.json").read_text())["metrics"]
    told = results["parts"]["cloze"]["groups"]["seen"]["same"]["rules"]["ending_given_prompt"]["cells"]["en>fr"]
    assert metrics["cloze"]["training_voices"]["cells"]["en>fr"] == told
    text = page.read_text()
    assert text == f"before\n<!-- figures -->\n\n{figures(metrics)}\n\n<!-- /figures -->\nafter\n"
    for needle in (
        shown(next(iter(told.values()))),
        "held out en 25.0%",
        "Continuation en>fr, temperature 0.7",
        "Alignment",
    ):
        assert needle in text
    assert figures(metrics) in (bundle.path / "README.md").read_text()
    report = (bundle.path / "evaluation" / "report.md").read_text()
    shown_files = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", report)
    assert len(shown_files) >= 3
    assert all((bundle.path / "evaluation" / name).exists() for name in shown_files)
    scores = (out / "cloze" / "scores.jsonl").read_text()
    assert (bundle.path / "evaluation" / "scores.jsonl").read_text() == scores  # of two items only
    publish(out, bundle.path, [page])
    assert page.read_text() == text
    page.write_text("no place")
    with pytest.raises(TresseError, match="has no place for figures"):
        publish(out, bundle.path, [page])
    write_json(out / "results.json", results | {"bundle": {"name": "another"}})
    with pytest.raises(TresseError, match="measured the bundle another"):
        publish(out, bundle.path, [])


def test_a_page_holds_its_pictures_and_nests_as_a_chapter(tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"png")
    page = html_page("# A < B\n\n![x](plot.png)\n\n![gone](gone.png)\n\n| a |\n|---|\n| 1 |\n", tmp_path, "t")
    assert "data:image/png;base64,cG5n" in page
    assert 'src="gone.png"' in page
    assert "<td>1</td>" in page
    assert "A &lt; B" in page
    chapter = nested("# T\n\n![x](plot.png) [w](https://a.b)\n\n## Long\n\nmany\n\n## Short\n", "part", ["Long"])
    assert chapter == "## T\n\n![x](part/plot.png) [w](https://a.b)\n\n### Short\n"


def test_units_are_those_of_one_process_with_several(bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.evaluate.spoken_items.POOL_FROM", 1)
    requests = [(f"number {text}", "en", voice) for text in ("one", "two") for voice in ("basile", "zoe")]
    one, many = SpokenUnits(bundle.units), SpokenUnits(bundle.units, workers=2)
    for spoken in (one, many):
        assert spoken.add([*requests, ("  ", "en", "basile")]) == {
            4: "the sentence is empty: write one, or give an audio file"
        }
    for request in requests:
        assert np.array_equal(one.units(*request).frames(), many.units(*request).frames())
