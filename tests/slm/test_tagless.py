"""A model that was trained without language tags is never given one, whoever asks it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.benchmark import Benchmark
from demo.cli import main
from demo.conversation import BOTH, BRAIDED, SAME, Settings
from slm.bundle import Bundle
from slm.continuation import Prompt
from slm.engines import Sampling
from slm.errors import TresseError
from slm.model import load_model
from slm.settings import ReplySettings
from slm.units import UnitVocabulary
from tests.bundles import BRAID
from tests.conftest import spoken_beginning
from tests.tiny_evaluation import TinyBundle, make_item
from tests.train.lm.tiny import SMALL, TRAINING, vocabulary, write_corpus
from train.evaluate.alignment import evaluate_alignment
from train.evaluate.cloze.evaluation import evaluate_cloze
from train.evaluate.pairs import Pair, evaluate_pairs
from train.lm.corpus import TokenCorpus
from train.lm.training import train_slm
from train.recipe import Recipe


class Listening:
    """An engine that keeps all tokens that go to another one or come from it."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.tokens: list[int] = []

    def generate(self, tokens: Sequence[int], sampling: Sampling) -> Iterator[int]:
        self.tokens += tokens
        for token in self.engine.generate(tokens, sampling):
            self.tokens.append(token)
            yield token

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.tokens += [token for tokens in sequences for token in tokens]
        return self.engine.score(sequences)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, as if its model had been trained without tags."""
    copy = tmp_path_factory.mktemp("tagless") / "bundle"
    shutil.copytree(BRAID, copy, ignore=shutil.ignore_patterns("evaluation", "asr"))
    words = UnitVocabulary.load(copy / "slm")
    assert words.tags  # bundles from before this was written down have them
    words.with_tags(False).save(copy / "slm")
    return copy


def tags_among(tokens: Sequence[int], words: UnitVocabulary) -> set[int]:
    return set(tokens) & set(words.tag_ids.values())


@pytest.mark.parametrize("tags", [True, False])
def test_prompts_and_replies(folder: Path, tags: bool) -> None:
    bundle = Bundle.load(folder if not tags else BRAID, device="cpu")
    assert bundle.tags == tags
    bundle.__dict__["_engine"] = engine = Listening(bundle.engine)
    bundle.warm_up()
    prompt = bundle.prompt(spoken_beginning("fr"), 16000)
    assert prompt.language == ("fr" if tags else "")
    further = bundle.prompt(spoken_beginning("en"), 16000, before=prompt.said)
    chunks = list(bundle.reply(replace(further, in_domain=True), ReplySettings(("fr",), 1, max_seconds=6.0)))
    assert len(chunks) > 3
    assert set(chunks[-1].languages) == {"fr"}
    assert bool(tags_among(engine.tokens, bundle.vocabulary)) == tags
    used, _, _ = bundle.context_use(prompt.story, 12.0)
    units = sum(len(bundle.vocabulary.encode(sentence.units.ids)) for sentence in prompt.story)
    assert used == units + tags * len(prompt.story)


def test_languages_cannot_take_turns(folder: Path) -> None:
    bundle = Bundle.load(folder, device="cpu")
    for reply in (
        lambda: bundle.continue_speech(spoken_beginning("en"), 16000, to=["fr", "en"]),
        lambda: bundle.reply(Prompt([], "", 1.0), ReplySettings(("en", "fr"))),
    ):
        with pytest.raises(TresseError, match=r"no language tags.*ask for one language"):
            list(reply())
    with pytest.raises(TresseError, match="no language tags"):
        Settings(BRAIDED).check(bundle)
    for target in (SAME, BOTH, "fr"):
        settings = Settings(target).check(bundle)
        for asked in settings.replies(bundle.languages, ""):
            asked.check(bundle.languages, bundle.speakers, tags=False)


def test_the_command_says_that_it_cannot_be_asked(
    folder: Path, beginnings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.wav"
    common = [str(beginnings["en"]), "--to", "fr", "--out", str(out), "--max-seconds", "2", "--device", "cpu"]
    main(["continue", *common, "--json", "--bundle", str(folder)])
    printed = capsys.readouterr()
    assert "no language tags" in printed.err
    report = json.loads(printed.out)
    assert report["language"] is None
    assert report["prompt_language"] is None


def test_benchmark_items_of_the_page(folder: Path) -> None:
    bundle = Bundle.load(folder, device="cpu")
    bundle.__dict__["_engine"] = engine = Listening(bundle.engine)
    ids = np.arange(20) % 9
    score = Benchmark(bundle)._score([("en", ids)], "fr", ids[::-1])
    assert not tags_among(engine.tokens, bundle.vocabulary)
    words = bundle.vocabulary
    tokens = [words.bos_id, *words.encode(ids), *words.encode(ids[::-1])]
    (logs,) = bundle.engine.score([tokens])
    assert score == pytest.approx(logs[len(words.encode(ids)) :].mean())


@pytest.mark.parametrize("tags", [True, False])
def test_evaluations(tags: bool, tmp_path: Path) -> None:
    bundle = TinyBundle(tmp_path / "bundle")
    bundle.vocabulary = bundle.vocabulary.with_tags(tags)
    fed: list[int] = []

    def listen(model: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        fed.extend(keywords["input_ids"].flatten().tolist())

    bundle.language_model.register_forward_pre_hook(listen, with_kwargs=True)
    evaluated = {
        "cloze": lambda out: evaluate_cloze(bundle, [make_item(n) for n in range(4)], out=out),
        "pairs": lambda out: evaluate_pairs(
            bundle,
            [Pair("1", "all", None, "one two", "two one"), Pair("2", "all", "fr", "un deux", "deux un")],
            out=out,
        ),
        "alignment": lambda out: evaluate_alignment(bundle, out=out, count=4),
    }
    for name, evaluate in evaluated.items():
        fed.clear()
        results = evaluate(tmp_path / name)
        assert fed
        assert bool(tags_among(fed, bundle.vocabulary)) == tags, name
        if name == "cloze":
            assert results["protocol"]["tags"] == tags
            assert ("was not trained with" in (tmp_path / name / "cloze.md").read_text()) != tags


@pytest.mark.parametrize("tags", [True, False])
def test_what_was_trained_is_written_down(tags: bool, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    training = replace(TRAINING, tags=tags, steps=4)
    words = vocabulary()
    train_slm(SMALL, training, words, tmp_path / "corpus", tmp_path / "run", progress=None)
    assert json.loads((tmp_path / "run" / "slm" / "tokenizer_config.json").read_text())["tags"] == tags
    _, loaded = load_model(tmp_path / "run" / "slm")
    assert loaded.tags == tags
    assert loaded.add_languages(["de"]).tags == tags
    other = TokenCorpus.load(tmp_path / "corpus", words.with_tags(not tags))
    with pytest.raises(TresseError, match="language tags: load it anew"):
        train_slm(SMALL, training, words, tmp_path / "corpus", tmp_path / "again", corpus=other, progress=None)


@pytest.mark.parametrize("name", ["paper-360m", "paper-1b"])
def test_the_recipes_of_the_paper_have_no_tags(name: str) -> None:
    assert not Recipe.load(name).slm.tags
