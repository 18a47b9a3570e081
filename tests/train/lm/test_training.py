"""Packing and the training loop: no padding, no leak between documents, and a killed run that ends bit for bit alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slm.errors import TresseError
from slm.interleave import braid, draw_languages
from slm.model import ModelConfig
from slm.units import UnitVocabulary
from train.lm.attention import document_mask, use_document_attention
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE, PackedBatch, PackedStream, evaluation_batches, pack
from train.lm.schedule import SLMTraining, Stage, StagedStream
from train.lm.step import token_losses
from train.lm.training import train_slm

UNITS = 40
SMALL = ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=48, key_value_heads=2)
TRAINING = SLMTraining(
    stages=(Stage("monolingual:en", share=0.4), Stage("interleaved", share=0.6)),
    steps=12,
    batch_rows=4,
    row_length=96,
    micro_rows=2,
    warmup=3,
    held_out=6,
    log_every=3,
    validate_every=6,
    checkpoint_every=5,
)


def vocabulary(languages: tuple[str, ...] = ("en", "fr")) -> UnitVocabulary:
    return UnitVocabulary.train([], codebook_size=UNITS, languages=languages, vocab_size=None)


def write_corpus(
    folder: Path, stories: int = 40, languages: tuple[str, ...] = ("en", "fr"), shards: int = 2, longest: int = 6
) -> dict[str, dict[str, list[list[int]]]]:
    """A corpus of 1 to 4 sentences a story; every sentence is told by its own units. Returns them by story."""
    rng = np.random.default_rng(7)
    held: dict[str, dict[str, list[list[int]]]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        rows: dict[str, list[Any]] = {"id": [f"story-{n}" for n in range(shard, stories, shards)]}
        counts = rng.integers(1, 5, len(rows["id"]))
        for language in languages:
            spoken = [[rng.integers(0, UNITS, rng.integers(1, longest)).tolist() for _ in range(n)] for n in counts]
            rows[f"units_{language}"] = spoken
            rows[f"run_lengths_{language}"] = [[[1] * len(sentence) for sentence in story] for story in spoken]
        for place, name in enumerate(rows["id"]):
            held[name] = {language: rows[f"units_{language}"][place] for language in languages}
        numbers = pa.list_(pa.list_(pa.uint16()))
        table = pa.table({name: pa.array(v, pa.string() if name == "id" else numbers) for name, v in rows.items()})
        pq.write_table(table, folder / f"shard-{shard:05d}.parquet")
    info = {"languages": list(languages), "frame_rate": 50.0, "codebook_size": UNITS, "stories": stories}
    (folder / "corpus.json").write_text(json.dumps(info))
    return held


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


@pytest.fixture(scope="module")
def corpus(folder: Path) -> TokenCorpus:
    return TokenCorpus.load(folder, vocabulary())


def documents_of(batch: PackedBatch) -> list[list[int]]:
    """The documents of a batch, as token lists with their last target."""
    found: list[list[int]] = []
    for row in range(len(batch.tokens)):
        for place in range(batch.tokens.shape[1]):
            if batch.targets[row, place] == IGNORE:
                break
            if batch.positions[row, place] == 0:
                found.append([int(batch.tokens[row, place])])
            assert int(batch.tokens[row, place]) == found[-1][-1]
            found[-1].append(int(batch.targets[row, place]))
    return found


# --- packing ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), row_length=st.integers(1, 200))
def test_every_piece_is_packed_once_and_no_row_overflows(data: st.DataObject, row_length: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, row_length), max_size=150))
    rows = pack(np.asarray(sizes, dtype=np.int64), row_length)
    assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
    assert all(0 < sum(sizes[piece] for piece in row) <= row_length for row in rows)


@pytest.mark.parametrize(
    ("mean", "deviation", "row_length"), [(45, 4, 512), (85, 20, 512), (90, 15, 1024), (20, 9, 128)]
)
def test_rows_are_full_to_ninety_nine_percent(mean: float, deviation: float, row_length: int) -> None:
    sizes = np.random.default_rng(0).normal(mean, deviation, 5000).round().clip(4, row_length).astype(np.int64)
    assert sizes.sum() / (len(pack(sizes, row_length)) * row_length) >= 0.99


def test_pieces_longer_than_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        pack(np.array([3, 9]), 8)


# --- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("mode", ["interleaved", "translated_retelling"])
def test_an_epoch_tells_every_story_once_as_the_braid_of_its_sentences(tmp_path: Path, mode: str, tags: bool) -> None:
    languages = ("en", "fr", "de")
    words = vocabulary(languages)
    stories = write_corpus(tmp_path, stories=30, languages=languages)
    corpus = TokenCorpus.load(tmp_path, words, tags=tags)
    stream = PackedStream(corpus, mode, row_length=512, seed=5, first_epoch=3)
    rows = round(stream.rows_per_epoch() * stream.epochs_per_plan)
    found = documents_of(stream.batch(0, rows))
    expected = []
    for epoch in range(3, 3 + stream.epochs_per_plan):
        drawn = draw_languages(mode, languages, seed=5, epoch=epoch, stories=30, sentences=4)
        for place, name in enumerate(corpus.ids):
            sentences = {k: [words.encode(np.asarray(s)) for s in spoken] for k, spoken in stories[name].items()}
            document = []
            for telling in drawn[place].reshape(-1, 4):
                told = [languages[k] for k in telling[: len(stories[name]["en"])]]
                document += braid(sentences, told, words, tags=tags, end=True).tolist()
            expected.append(document)
    assert sorted(found) == sorted(expected)


def test_a_long_document_is_cut_into_rows_and_loses_nothing(tmp_path: Path) -> None:
    stories = write_corpus(tmp_path, stories=6, longest=60)
    words = vocabulary()
    corpus = TokenCorpus.load(tmp_path, words)
    stream = PackedStream(corpus, "monolingual:fr", row_length=16, seed=0)
    rows = round(stream.rows_per_epoch() * stream.epochs_per_plan)
    found = documents_of(stream.batch(0, rows))
    sizes = [
        len(braid({"fr": [words.encode(np.asarray(s)) for s in story["fr"]]}, ["fr"] * len(story["fr"]), words))
        for story in stories.values()
    ]
    assert max(sizes) > 16
    assert sum(len(document) - 1 for document in found) == stream.epochs_per_plan * sum(sizes)
    whole = sum(size <= 16 for size in sizes)  # one that fits is never cut
    complete = sum(doc[0] == words.bos_id and doc[-1] == words.eos_id for doc in found)
    assert complete == whole * stream.epochs_per_plan


def test_batches_do_not_depend_on_who_asked_before(corpus: TokenCorpus) -> None:
    training = replace(TRAINING, steps=400, row_length=64)
    onward, other = StagedStream(corpus, training), StagedStream(corpus, training)
    assert onward.ends == [160, 400]
    for step in (399, 0, 159, 160, 399):
        a, b = onward.batch(step), other.batch(step)
        halves = [other.batch(step, 0, 2), other.batch(step, 2, 2)]
        for name in ("tokens", "targets", "positions", "languages"):
            assert torch.equal(getattr(a, name), getattr(b, name))
            assert torch.equal(getattr(a, name), torch.cat([getattr(half, name) for half in halves]))
    english = [step for step in range(0, 400, 40) if not onward.batch(step).languages.any()]
    assert english == [0, 40, 80, 120]


@pytest.mark.parametrize(("mode", "row_length"), [("interleaved", 96), ("translated_retelling", 192)])
def test_units_tokens_and_targets_are_counted_by_language(corpus: TokenCorpus, mode: str, row_length: int) -> None:
    words = vocabulary()
    stream = PackedStream(corpus, mode, row_length=row_length, seed=1)
    rows = round(stream.rows_per_epoch() * stream.epochs_per_plan)
    for count in (rows, rows + 3):  # one plan, and into the next
        batch = stream.batch(0, count)
        (units, tokens), targets = stream.totals(count)
        real = batch.targets != IGNORE
        assert targets == int(real.sum())
        for k in range(2):
            here = batch.targets[real & (batch.languages == k)]
            spoken = int((here < UNITS).sum())
            assert units[k] == spoken
            assert tokens[k] == spoken + int((here == words.tag_ids[corpus.languages[k]]).sum())
    assert stream.totals(0)[1] == 0


def test_held_out_stories_are_never_trained_on(corpus: TokenCorpus) -> None:
    train, held = corpus.split(6, seed=0)
    assert len(set(held.ids)) == 6
    assert not set(held.ids) & set(train.ids)
    assert len(train) + len(held) == len(corpus)
    again = PackedStream(train, "interleaved", row_length=96, seed=0)
    assert set(again.corpus.ids) == set(train.ids)
    with pytest.raises(TresseError, match="hold out fewer"):
        corpus.split(40, seed=0)


def test_corpora_that_cannot_be_used_name_the_mend(tmp_path: Path) -> None:
    words = vocabulary()
    with pytest.raises(TresseError, match="tresse prepare"):
        TokenCorpus.load(tmp_path, words)
    write_corpus(tmp_path / "a")
    with pytest.raises(TresseError, match="no tag for fr"):
        TokenCorpus.load(tmp_path / "a", vocabulary(("en",)))
    with pytest.raises(TresseError, match="40 units"):
        TokenCorpus.load(
            tmp_path / "a",
            UnitVocabulary.train([], codebook_size=9, languages=["en"], vocab_size=None).add_languages(["fr"]),
        )
    (tmp_path / "a" / "shard-00001.parquet").unlink()
    with pytest.raises(TresseError, match="not finished"):
        TokenCorpus.load(tmp_path / "a", words)
    write_corpus(tmp_path / "b")
    (tmp_path / "b" / "shard-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(TresseError, match="delete it"):
        TokenCorpus.load(tmp_path / "b", words)


@pytest.mark.parametrize("what", ["missing sentence", "empty sentence"])
def test_stories_that_do_not_align_are_refused_and_empty_ones_counted(tmp_path: Path, what: str) -> None:
    write_corpus(tmp_path, stories=8, shards=1)
    path = tmp_path / "shard-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    if what == "missing sentence":
        rows[2]["units_fr"].append([1, 2])
    else:
        rows[2]["units_fr"][0] = []
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    if what == "missing sentence":
        with pytest.raises(TresseError, match=r"story-2 .* do not align"):
            TokenCorpus.load(tmp_path, vocabulary())
    else:
        corpus = TokenCorpus.load(tmp_path, vocabulary())
        assert corpus.left_out == 1
        assert "story-2" not in set(corpus.ids)


# --- no document sees its neighbour ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "qwen2", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    words = vocabulary()
    if request.param == "llama":
        made = SMALL.build(words)
    else:
        shape = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        if request.param == "qwen2":
            made = Qwen2ForCausalLM(Qwen2Config(**shape, intermediate_size=48, num_key_value_heads=2))
        else:
            made = OPTForCausalLM(OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128))
    made = made.eval()
    use_document_attention(made)
    return made


@pytest.mark.parametrize("how", ["documents", "mask"])
def test_packed_losses_and_gradients_equal_those_of_each_document_alone(
    model: Any, corpus: TokenCorpus, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "mask":
        monkeypatch.setattr(
            "train.lm.step.attention_inputs",
            lambda positions, *_, **__: {"position_ids": positions, "attention_mask": document_mask(positions)},
        )
    batch = PackedStream(corpus, "interleaved", row_length=96, seed=2).batch(0, 3)
    model.zero_grad()
    losses = token_losses(model, batch)
    losses.sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone = []
    for document in documents_of(batch):
        logits = model(input_ids=torch.tensor([document[:-1]]), use_cache=False).logits
        alone.append(torch.nn.functional.cross_entropy(logits[0], torch.tensor(document[1:]), reduction="none"))
    torch.cat(alone).sum().backward()
    assert torch.allclose(losses[batch.targets != IGNORE], torch.cat(alone), atol=1e-5)
    for gradient, parameter in zip(packed, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_mask_joins_exactly_the_earlier_tokens_of_the_same_document(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    document = np.repeat(np.arange(len(sizes)), sizes)
    mask = document_mask(positions)[0, 0]
    for i in range(len(document)):
        for j in range(len(document)):
            assert bool(mask[i, j]) == (j <= i and document[i] == document[j])


# --- the loop --------------------------------------------------------------------------------------------------------


def test_stories_of_their_own_to_validate_on(folder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "others", stories=9)
    lines: list[str] = []
    training = replace(TRAINING, steps=2, validate_every=2)
    both = {"validation": tmp_path / "others", "progress": lines.append}
    trained = train_slm(SMALL, training, vocabulary(), folder, tmp_path / "run", **both)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["held_out"], summary["stories"]) == ([], 40)  # all others are trained on
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (found,) = [entry["validation"] for entry in log if "validation" in entry]
    words = vocabulary()
    others = TokenCorpus.load(tmp_path / "others", words)
    use_document_attention(trained)
    for mode in ("interleaved", "mixed"):
        settings = {"row_length": training.row_length, "seed": training.seed, "rows": 2}
        batches = evaluation_batches(others, mode, **settings)
        total = sum(float(token_losses(trained, batch).detach().sum()) for batch in batches)
        count = sum(int((batch.targets != IGNORE).sum()) for batch in batches)
        assert found[mode]["all"] == pytest.approx(total / count, rel=2e-2)  # bfloat16 there, where it pays


def losses_entry(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line about training."""
    return [entry for entry in log if "loss" in entry][-1]


def test_muon_learns_and_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    stages = (Stage("interleaved", share=1.0),)
    training = replace(TRAINING, stages=stages, steps=30, learning_rate=5e-3, optimiser="muon", held_out=0)
    trained = train_slm(SMALL, training, vocabulary(), folder, tmp_path, progress=None)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"]["all"] < log[0]["loss"]["all"] - 0.2
    again = train_slm(SMALL, training, vocabulary(), folder, tmp_path, progress=None)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimiser"]
    in_muon = sum(len(group["params"]) for group in states[1]["param_groups"])
    assert in_muon == 2 * 7  # the matrices of two layers, neither embedding nor head


def test_a_model_learns(folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    training = replace(TRAINING, stages=(Stage("interleaved", share=1.0),), steps=60, learning_rate=5e-3, log_every=10)
    train_slm(SMALL, training, vocabulary(), folder, tmp_path, progress=lines.append)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0]["all"] > losses[-1]["all"] + 0.3
    assert losses[-1]["all"] > 0.5
    assert {"all", "en", "fr"} == set(losses[0])
    validations = [entry["validation"] for entry in log if "validation" in entry]
    assert set(validations[0]) == {"interleaved", "mixed"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["held_out"]) == 6
    assert summary["units"]["en"] > 0
    assert any("ETA" in line and "units/s" in line and "MFU" in line for line in lines)
    assert 0 < losses_entry(log)["mfu"] < 1
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in board.Scalars("loss/fr")]
    logged = [(entry["step"], entry["loss"]["fr"]) for entry in log if "loss" in entry]
    assert [step for step, _ in drawn] == [step for step, _ in logged]
    assert [value for _, value in drawn] == pytest.approx([value for _, value in logged], rel=1e-5)
    assert (tmp_path / "slm" / "model.safetensors").exists()


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from tests.train.lm.test_training import SMALL, TRAINING, vocabulary
from train.lm.training import train_slm
training = replace(TRAINING, precision=sys.argv[3])
train_slm(SMALL, training, vocabulary(), Path(sys.argv[1]), Path(sys.argv[2]), progress=lambda line: print(line, flush=True))
"""


def start(folder: Path, out: Path, precision: str = "auto", processes: int = 1) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(folder), str(out), precision],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    whole = start(folder, tmp_path / "whole")
    killed = start(folder, tmp_path / "killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("step 9/12"):  # past the checkpoint of step 5, before that of step 10
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 5
    again = start(folder, tmp_path / "killed")
    output = again.communicate()[0]
    assert again.returncode == 0
    assert "going on from step 5" in output
    whole.communicate()
    assert whole.returncode == 0
    one, other = (load_file(tmp_path / name / "slm" / "model.safetensors") for name in ("whole", "killed"))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name])
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert steps[0] == [3, 6, 6, 9, 12, 12]
    assert steps[1] == [3, 6, 6, 9, 12, 12]


def test_two_processes_train_like_one(folder: Path, tmp_path: Path) -> None:
    runs = [start(folder, tmp_path / str(count), "no", processes=count) for count in (1, 2)]
    outputs = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert "float32 on 2 x cpu" in outputs[1]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("1", "2")
    ]
    for one, other in zip(*logs, strict=True):
        assert one["step"] == other["step"]
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
            assert (other["units"], other["tokens"]) == (one["units"], one["tokens"])
        else:
            assert other["validation"]["mixed"] == pytest.approx(one["validation"]["mixed"], abs=1e-5)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"] for name in ("1", "2")]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name


def test_micro_batches_change_nothing_but_rounding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    monkeypatch.setattr("train.lm.training.bf16_pays", lambda: False)  # bfloat16 rounds too coarsely to compare
    AcceleratorState._reset_state(True)
    for micro in (1, 4, None):
        training = replace(TRAINING, micro_rows=micro, steps=4, held_out=0)
        models.append(
            train_slm(SMALL, training, vocabulary(), folder, tmp_path / str(micro), progress=None).state_dict()
        )
    AcceleratorState._reset_state(True)
    for name, value in models[0].items():
        assert torch.allclose(value, models[1][name], atol=2e-4), name
        assert torch.equal(models[1][name], models[2][name])


def test_a_finished_run_only_loads_and_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    training = replace(TRAINING, steps=3, held_out=0)
    first = train_slm(SMALL, training, vocabulary(), folder, tmp_path, progress=None)
    lines: list[str] = []
    again = train_slm(SMALL, replace(training, log_every=1), vocabulary(), folder, tmp_path, progress=lines.append)
    assert not any(line.startswith("step") for line in lines)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    for mode in ("retold", "translated_retelling"):  # the mode's old name and its new one: the same run
        renamed = replace(training, stages=(Stage(mode, share=1.0),))
        train_slm(SMALL, renamed, vocabulary(), folder, tmp_path / "renamed", progress=None)
    with pytest.raises(TresseError, match=r"learning_rate=0\.0015, not 0\.002"):
        train_slm(SMALL, replace(training, learning_rate=2e-3), vocabulary(), folder, tmp_path, progress=None)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(folder: Path, tmp_path: Path) -> None:
    broken = replace(TRAINING, learning_rate=1e30, warmup=0, checkpoint_every=3, log_every=100)
    with pytest.raises(TresseError, match="lower the learning rate"):
        train_slm(SMALL, broken, vocabulary(), folder, tmp_path, progress=None)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "slm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": (Stage("braided", share=1.0),)}, "unknown mode"),
        ({"stages": ()}, "one stage at least"),
        ({"stages": (Stage("mixed"),)}, "one of share, steps and units"),
        ({"stages": (Stage("mixed", share=1.0, steps=3),)}, "one of share, steps and units"),
        ({"stages": (Stage("mixed", steps=0),)}, "above 0"),
        ({"stages": (Stage("mixed", units={"en": 9, "fr": 0}),)}, "above 0"),
        ({"stages": (Stage("mixed", units={"de": 9}),)}, "known are en, fr"),
        ({"stages": (Stage(("mixed", "monolingual:en"), units={"en": 9}),)}, "in turns"),
        ({"optimiser": "sgd"}, "adamw, muon"),
        ({"micro_rows": 3}, "multiple"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TresseError, match=message):
        replace(TRAINING, **change).check(("en", "fr"))
