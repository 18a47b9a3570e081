"""Trainings whose processes have a part of the model each (FSDP 2), on the CPU, and that can be killed where a test says.

accelerate shares models out on GPUs alone: `share_out` lets it do so here. Processes come from a server that has imported
what they need.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from tests.train.lm.tiny import SMALL, TRAINING, vocabulary
from train.lm.training import train_slm
from train.tools import sharded
from train.tools.launch import free_port, leave_group

MARKED = "checkpoint/step-00000005/complete.json"
BETWEEN, DURING = "between two saves", "during the save of step 10"
"""When the first process is killed: past step 9, when the checkpoint of step 5 is complete; or when all shards of step 10
are on the disk, and are not marked as complete yet."""


def share_out() -> None:
    """From here on, models of this process are shared out."""
    plain = accelerate.Accelerator

    def made(**settings: Any) -> Any:
        accelerator = plain(**settings)
        state = AcceleratorState._shared_state
        state["distributed_type"] = DistributedType.FSDP
        state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        return accelerator

    accelerate.Accelerator = made  # type: ignore[misc]


def train(corpus: Path, out: Path, processes: int = 1, *, shared: bool = False, killed: str = "") -> list[str]:
    """Train TRAINING in float32 to its end, or until the first process is killed; the lines that it said."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    said = out.parent / f"{out.name}.txt"
    arguments = (processes, free_port(), corpus, out, said, shared, killed)
    members = [context.Process(target=_member, args=(rank, *arguments)) for rank in range(processes)]
    for member in members:
        member.start()
    members[0].join(240)
    for member in members[1:]:
        if killed:  # unless it has noticed
            member.kill()
        member.join(240)
    codes = [member.exitcode for member in members]
    assert codes[0] == (-signal.SIGKILL if killed else 0), codes
    assert killed or not any(codes), codes
    return said.read_text().splitlines()


def _member(rank: int, count: int, port: int, corpus: Path, out: Path, said: Path, shared: bool, killed: str) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if count > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    if shared:
        share_out()
    if killed == DURING:
        _die_in_the_save_of(10)
    with said.open("w" if rank == 0 else "a") as file:

        def say(line: str) -> None:
            print(line, file=file, flush=True)
            if killed == BETWEEN and line.startswith("step 9/12"):
                while shared and not (out / MARKED).exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)

        train_slm(SMALL, replace(TRAINING, precision="no"), vocabulary(), corpus, out, progress=say)
    leave_group()


def _die_in_the_save_of(step: int) -> None:
    finish = sharded._Writer.finish

    def deadly(writer: Any, **arguments: Any) -> None:
        if writer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(writer, **arguments)

    sharded._Writer.finish = deadly  # type: ignore[method-assign]
