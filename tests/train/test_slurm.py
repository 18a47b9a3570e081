"""The SLURM scripts start what they should on every machine of a job: SLURM's programs are played by small scripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "train" / "slurm"
PROGRAMS = {
    "srun": 'for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@"; done',
    "scontrol": "echo gpu-a; echo gpu-b; echo gpu-c",
    "accelerate": 'printf "%s\\t" "$@"; echo',
    "tresse": 'printf "%s\\t" "$@"; echo',
}


def started(script: str, folder: Path, **job: str) -> list[list[str]]:
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RECIPE": "paper-1b", **job}
    done = subprocess.run(["bash", str(SCRIPTS / script)], env=environment, capture_output=True, text=True, check=True)
    return [line.strip().split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (3, 8)])
def test_every_machine_launches_its_processes(nodes: int, gpus: int, tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    job = {"SLURM_NNODES": str(nodes), "SLURM_GPUS_ON_NODE": str(gpus), "SLURM_JOB_NODELIST": "gpu-[a-c]"}
    launches = started("train.sh", tmp_path, **job)
    assert len(launches) == nodes
    for rank, (what, *arguments) in enumerate(launches):
        given = launch_command_parser().parse_args(arguments)
        assert what == "launch"
        assert (given.num_machines, given.num_processes, given.machine_rank) == (nodes, nodes * gpus, rank)
        assert (given.main_process_ip, given.main_process_port) == ("gpu-a", 29500)
        assert (SCRIPTS.parents[1] / given.config_file).exists()
        assert given.module
        assert [given.training_script, *given.training_script_args] == [
            *("demo.cli", "train", "slm", "--recipe", "paper-1b")
        ]


def test_a_machine_prepares_with_the_cores_that_it_was_given(tmp_path: Path) -> None:
    assert started("prepare.sh", tmp_path, SLURM_CPUS_PER_TASK="7") == [
        ["recipe", "paper-1b", "--until", "corpus", "--workers", "7"]
    ]
