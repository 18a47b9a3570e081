"""Languages are data: a recipe of others than the built-in ones is made to its end, or refused before anything is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.benchmark import Benchmark
from slm.bundle import Bundle
from slm.errors import TresseError
from slm.settings import ReplySettings
from tests.conftest import spoken_beginning
from tests.tiny_evaluation import TinyBundle, make_item
from train.evaluate.alignment import evaluate_alignment
from train.evaluate.cloze.evaluation import evaluate_cloze
from train.publish.examples import write_examples
from train.publish.figures import cloze_figures, figures
from train.recipe import Recipe
from train.speech.voices import Voices
from train.stages import make_stories, run_recipe
from train.stories.grammar import Story, distinct_sentences, write_stories

FIRST = {"en": "The dog was in the garden.", "es": "El perro estaba en la casa."}
SECOND = {"en": "It was very happy.", "es": "Estaba muy contento."}


@pytest.fixture
def spanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Voices that speak Spanish too, and stories of our own in English and Spanish."""
    import train.speech.voices as module

    voices = yaml.safe_load((Path(module.__file__).parents[1] / "voices.yaml").read_text(encoding="utf-8"))
    voices["languages"]["es"] = "es"
    mine = Voices.load(_written(tmp_path / "voices.yaml", yaml.safe_dump(voices)))
    monkeypatch.setattr(Voices, "load", classmethod(lambda cls, path=None: mine))
    stories = [
        Story(f"s{n}", {la: [f"{FIRST[la]} {n}.", SECOND[la], f"{n}."] for la in ("en", "es")}, {}) for n in range(6)
    ]
    write_stories(tmp_path / "stories.jsonl", stories)
    return tmp_path / "stories.jsonl"


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def recipe(stories: Path | None, **more: str) -> Recipe:
    file = {} if stories is None else {"stories.file": json.dumps(str(stories))}
    return Recipe.load(
        "tiny", {"languages": "[en, es]", "stories.train": "3", "stories.validation": "3", **file, **more}
    )


@pytest.mark.parametrize(("asked", "count"), [(1, 2), (4, 3)])
def test_examples_are_of_stories_of_ones_own(spanish: Path, tmp_path: Path, asked: int, count: int) -> None:
    """As many as were asked for, or as there are stories to validate on."""
    own = recipe(spanish, **{"bundle.examples_per_language": str(asked)})
    own.check_languages()
    make_stories(own, tmp_path, workers=1)
    each, told = own.bundle.examples_per_language, tmp_path / "stories"
    write_examples(own.languages, each, told, tmp_path / "examples", Voices.load())
    listing = json.loads((tmp_path / "examples" / "examples.json").read_text(encoding="utf-8"))
    assert len(listing) == len({entry["text"] for entry in listing}) == count
    assert {entry["language"] for entry in listing} == {"en", "es"}
    assert all(any(f" {n}." in entry["text"] for n in (3, 4, 5)) for entry in listing)  # none of training
    assert all((tmp_path / "examples" / entry["file"]).stat().st_size > 1000 for entry in listing)


def test_no_stories_to_validate_on_means_no_examples(spanish: Path, tmp_path: Path) -> None:
    own = recipe(spanish, **{"stories.validation": "0"})
    make_stories(own, tmp_path, workers=1)
    each, told = own.bundle.examples_per_language, tmp_path / "stories"
    write_examples(own.languages, each, told, tmp_path / "examples", Voices.load())
    assert json.loads((tmp_path / "examples" / "examples.json").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("languages", "message"),
    [("[en, es]", "no built-in stories in es"), ("[]", "no languages"), ("[en, en]", "once each"), ("[e n]", "'e n'")],
)
def test_languages_that_cannot_be_are_refused_at_once(tmp_path: Path, languages: str, message: str) -> None:
    with pytest.raises(TresseError, match=message):
        run_recipe(recipe(None, languages=languages), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_voices_that_do_not_speak_a_language_are_named_at_once(tmp_path: Path) -> None:
    stories = _written(tmp_path / "stories.jsonl", "")
    with pytest.raises(TresseError, match="es"):
        run_recipe(recipe(stories), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_other_languages_is_measured_in_those_that_it_shares(tmp_path: Path) -> None:
    bundle = TinyBundle(tmp_path / "bundle", languages=["en", "es"])
    results = evaluate_cloze(bundle, [make_item(n) for n in range(4)], out=tmp_path / "cloze")
    assert [name for name, kinds in results["cells"].items() if kinds["story"]["n"]] == ["en>en"]
    assert "story en>en" in figures({"cloze": cloze_figures(results)})


def test_what_is_not_told_in_a_language_says_so(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story("s", {"en": ["One."], "fr": ["Un."]}, {})
    tiny: Any = TinyBundle(tmp_path / "bundle", languages=["es", "en"])
    monkeypatch.setattr(bundle, "languages", ["es"])
    for ask in (
        lambda: story.told_in("es"),
        lambda: distinct_sentences([story], ["en", "es"], 3),
        lambda: evaluate_alignment(tiny, out=tmp_path, count=3),
        lambda: Benchmark(bundle).items(),
    ):
        with pytest.raises(TresseError, match="es"):
            ask()


@pytest.mark.parametrize("to", [[], (), ReplySettings(())])
def test_no_language_at_all_is_refused(bundle: Bundle, to: Any) -> None:
    with pytest.raises(TresseError, match="no language is asked for"):
        list(bundle.continue_speech(spoken_beginning("en"), 16000, to=to))


def test_parts_of_lists_are_set_by_number() -> None:
    assert Recipe.load("braid", {"slm.stages.1.share": "0.5"}).slm.stages[1].share == 0.5
    assert Recipe.load("tiny", {"corpus.speakers": "[zoe, basile]", "corpus.speakers.1": "anouk"}).corpus.speakers == (
        "zoe",
        "anouk",
    )
    assert Recipe.load("tiny", {"asr": "null", "asr.sentences_per_language": "7"}).asr is not None
    for key, message in (
        ("slm.stages.share", r"slm\.stages is a list of 2: name its parts from 0"),
        ("slm.stages.2.share", r"slm\.stages is a list of 2"),
        ("slm.stages.-1.share", r"slm\.stages is a list of 2"),
        ("slm.tokens.0", r"slm\.tokens is a single value"),
        ("name.x.y", "name is a single value"),
        ("slm.stages.0.shore", r"did you mean slm\.stages\.0\.share"),
    ):
        with pytest.raises(TresseError, match=message) as caught:
            Recipe.load("braid", {key: "0.5"})
        assert "setdefault" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_examples_of_a_mixture_quote_no_text_of_others(voices: Voices, tmp_path: Path) -> None:
    rows = [Story(f"s{n}", {"en": [f"The dog had {n} bones.", "It was happy."]}, {}) for n in range(4)]
    rows = [
        replace(row, source=source) for row, source in zip(rows, ("tales", "written", "tales", "grammar"), strict=True)
    ]
    (tmp_path / "stories").mkdir()
    write_stories(tmp_path / "stories" / "train.jsonl", [])
    write_stories(tmp_path / "stories" / "validation.jsonl", rows)
    write_examples(["en"], 4, tmp_path / "stories", tmp_path / "examples", voices)
    listing = json.loads((tmp_path / "examples" / "examples.json").read_text(encoding="utf-8"))
    assert sorted(entry["text"] for entry in listing) == [
        "The dog had 1 bones. It was happy.",
        "The dog had 3 bones. It was happy.",
    ]
