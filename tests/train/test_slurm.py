"""The SLURM scripts start what they should on every machine of a job: SLURM's programs are played by small scripts."""

from __future__ import annotations

import os
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

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


def parsed(arguments: list[str]) -> Namespace:
    """As Accelerate's launcher reads them."""
    return launch_command_parser().parse_args(arguments)


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (3, 8)])
def test_every_machine_launches_its_processes(nodes: int, gpus: int, tmp_path: Path) -> None:
    job = {"SLURM_NNODES": str(nodes), "SLURM_GPUS_ON_NODE": str(gpus), "SLURM_JOB_NODELIST": "gpu-[a-c]"}
    launches = started("train.sh", tmp_path, **job)
    assert len(launches) == nodes
    for rank, (what, *arguments) in enumerate(launches):
        given = parsed(arguments)
        assert what == "launch"
        assert (given.num_machines, given.num_processes, given.machine_rank) == (nodes, nodes * gpus, rank)
        assert (given.main_process_ip, given.main_process_port) == ("gpu-a", 29500)
        assert given.module
        assert [given.training_script, *given.training_script_args] == [
            *("demo.cli", "train", "slm", "--recipe", "paper-1b")
        ]


@pytest.mark.parametrize(
    ("recipe", "chosen", "kind"),
    [
        ("paper-360m", None, "MULTI_GPU"),
        ("small", None, "MULTI_GPU"),
        ("paper-1b", None, "FSDP"),
        ("mine/7b.yaml", None, "FSDP"),
        ("paper-360m", "train/fsdp.yaml", "FSDP"),
        ("paper-1b", "train/ddp.yaml", "MULTI_GPU"),
    ],
)
def test_a_model_is_shared_out_from_a_billion_parameters_on(
    recipe: str, chosen: str | None, kind: str, tmp_path: Path
) -> None:
    """By the recipe's name, or by what the job says."""
    job = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "gpu-a", "RECIPE": recipe}
    ((_, *arguments),) = started("train.sh", tmp_path, **job, **({"CONFIG": chosen} if chosen else {}))
    config = load_config_from_file(str(SCRIPTS.parents[1] / parsed(arguments).config_file))
    assert config.distributed_type == kind
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("name", ["paper-360m", "paper-1b"])
def test_the_papers_recipes_name_the_way_that_the_script_takes(name: str, tmp_path: Path) -> None:
    job = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "gpu-a", "RECIPE": name}
    ((_, *arguments),) = started("train.sh", tmp_path, **job)
    text = (SCRIPTS.parent / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"--config_file {parsed(arguments).config_file} " in text


def test_a_machine_prepares_with_the_cores_that_it_was_given(tmp_path: Path) -> None:
    assert started("prepare.sh", tmp_path, SLURM_CPUS_PER_TASK="7") == [
        ["recipe", "paper-1b", "--until", "corpus", "--workers", "7"]
    ]
