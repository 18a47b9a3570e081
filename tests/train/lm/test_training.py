"""The training loop: no leak between documents, and a killed run that ends bit for bit alike."""

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
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slm.errors import TresseError
from tests.train.lm.tiny import (
    SMALL,
    TRAINING,
    vocabulary,
    write_corpus,
)
from train.lm.attention import document_mask, use_document_attention
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE, PackedBatch
from train.lm.schedule import Stage
from train.lm.step import token_losses
from train.lm.stream import evaluation_batches
from train.lm.training import train_slm


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
from dataclasses import replace
from pathlib import Path
from tests.train.lm.tiny import SMALL, TRAINING, vocabulary
from train.lm.training import train_slm
from train.lm.stream import evaluation_batches
from train.tools.launch import on_processes

def run(folder, out, precision, micro_rows):
    torch.set_num_threads(1)
    training = replace(TRAINING, precision=precision, micro_rows=micro_rows)
    train_slm(SMALL, training, vocabulary(), Path(folder), Path(out), progress=lambda line: print(line, flush=True))

if __name__ == "__main__":
    processes, arguments = int(sys.argv[5]), (*sys.argv[1:4], int(sys.argv[4]))
    on_processes(processes, run, *arguments) if processes > 1 else run(*arguments)
"""


def start(
    folder: Path, out: Path, precision: str = "auto", *, processes: int = 1, micro_rows: int = 2, torchrun: bool = False
) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if torchrun else []
    own = 1 if torchrun else processes
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, (script, folder, out, precision, micro_rows, own))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_past_step_9(run: subprocess.Popen[str]) -> None:
    """Kill -9 past the checkpoint of step 5, before that of step 10."""
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("step 9/12"):
            os.kill(run.pid, signal.SIGKILL)
            break
    assert run.wait() == -signal.SIGKILL
    run.stdout.close()


def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    whole = start(folder, tmp_path / "whole")
    killed = start(folder, tmp_path / "killed")
    kill_past_step_9(killed)
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


def assert_trained_alike(one: Path, other: Path, went_on_at: int | None = None) -> None:
    """The same losses in the logs but for the line after `went_on_at`, which then begins there; the same weights."""
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (one, other)]
    for a, b in zip(*logs, strict=True):
        assert a["step"] == b["step"]
        if "loss" in a and went_on_at is not None and 0 < a["step"] - went_on_at <= TRAINING.log_every:
            assert (b["units"], b["tokens"]) == (a["units"], a["tokens"])
        elif "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
            assert (b["units"], b["tokens"]) == (a["units"], a["tokens"])
        else:
            assert b["validation"]["mixed"] == pytest.approx(a["validation"]["mixed"], abs=1e-5)
    states = [torch.load(path / "checkpoint.pt", weights_only=True)["model"] for path in (one, other)]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name


def test_two_processes_of_a_launcher_train_like_one(folder: Path, tmp_path: Path) -> None:
    runs = [start(folder, tmp_path / str(n), "no", processes=n, torchrun=n > 1) for n in (1, 2)]
    outputs = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert "float32 on 2 x cpu" in outputs[1]
    assert_trained_alike(tmp_path / "1", tmp_path / "2")


def test_three_processes_train_like_one_and_two_go_on_where_they_were_killed(folder: Path, tmp_path: Path) -> None:
    """Four rows on three processes: two, one, one; with a row a pass, two of them have a pass without any."""
    one = start(folder, tmp_path / "1", "no")
    killed = start(folder, tmp_path / "3", "no", processes=3, micro_rows=1)
    kill_past_step_9(killed)
    again = start(folder, tmp_path / "3", "no", processes=2)
    output = again.communicate(timeout=200)[0]
    one.communicate(timeout=200)
    assert (one.returncode, again.returncode) == (0, 0)
    assert "going on from step 5" in output
    assert_trained_alike(tmp_path / "1", tmp_path / "3", went_on_at=5)


@given(rows=st.integers(1, 700), processes=st.integers(1, 900), micro=st.none() | st.integers(1, 40))
def test_any_number_of_processes_divides_the_rows_of_a_step(rows: int, processes: int, micro: int | None) -> None:
    training = replace(TRAINING, batch_rows=rows, micro_rows=micro)
    shares = [training.rows_of(process, processes) for process in range(processes)]
    assert [row for first, count in shares for row in range(first, first + count)] == list(range(rows))
    counts = [count for _, count in shares]
    assert max(counts) - min(counts) <= 1
    passes = training.passes(processes)
    for count in {*counts}:
        zeros = torch.zeros(count, 3, dtype=torch.int64)
        portions = PackedBatch(zeros, zeros, zeros, zeros).portions(passes)
        assert len(portions) == passes
        assert max(len(part.tokens) for part in portions) <= training.rows_a_pass(processes) <= (micro or rows)
        assert sum(int((part.targets != IGNORE).sum()) for part in portions) == 3 * count


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


def test_a_checkpoint_of_an_earlier_order_of_stories_goes_on(folder: Path, tmp_path: Path) -> None:
    training = replace(TRAINING, steps=4, held_out=0, checkpoint_every=2)
    train_slm(SMALL, training, vocabulary(), folder, tmp_path, progress=None)
    for name in ("checkpoint.previous.pt", "checkpoint.pt"):
        state = torch.load(tmp_path / "checkpoint.previous.pt", weights_only=True)
        state.pop("stream", None)
        torch.save(state, tmp_path / name)
    consumed = json.loads((tmp_path / "summary.json").read_text())["units"]
    lines: list[str] = []
    train_slm(SMALL, training, vocabulary(), folder, tmp_path, progress=lines.append)
    assert any("another order" in line for line in lines)
    assert "going on from step 2" in lines
    assert json.loads((tmp_path / "summary.json").read_text())["units"] == consumed


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
        ({"micro_rows": 0}, "micro_rows must be 1 or more"),
        ({"batch_rows": 0}, "batch_rows must be 1 or more"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TresseError, match=message):
        replace(TRAINING, **change).check(("en", "fr"))
