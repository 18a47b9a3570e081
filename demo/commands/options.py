"""Options that several commands share, and what every command does first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slm.errors import TresseError

BundleOption = Annotated[
    str | None,
    typer.Option(
        "--bundle", help="A bundle: a shipped one, a folder, a hub id. [default: natural]", show_default=False
    ),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge", help="An independent recogniser: a faster-whisper model's folder or name.", show_default=False
    ),
]
AsrOption = Annotated[
    str | None,
    typer.Option("--asr", help="A faster-whisper model's folder or name. [default: the bundle's]", show_default=False),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same continuation.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Share of the probability that is drawn from.")]
MaxSecondsOption = Annotated[float, typer.Option("--max-seconds", help="Longest continuation, in s.")]
SpeakerOption = Annotated[
    str | None, typer.Option(help="Voice of the continuation. [default: the bundle's first]", show_default=False)
]
CandidatesOption = Annotated[
    int | None,
    typer.Option(
        help="Sentences that are drawn for each one that is said. [default: as many as the bundle asks for]",
        show_default=False,
    ),
]
RunOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run. [default: runs/NAME]", show_default=False)
]
WorkersOption = Annotated[int, typer.Option(help="Processes that speak and encode.", min=1)]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Over a Ray cluster: auto, or HOST:PORT; without an address over a local one of --workers.",
        show_default=False,
    ),
]
RayGpusOption = Annotated[
    float | None,
    typer.Option(
        "--ray-gpus",
        help="GPUs of each worker of Ray; 0.5: two share one. [default: 1 with --device cuda]",
        min=0.01,
        max=1,
        show_default=False,
    ),
]
CORES = os.cpu_count() or 1


def no_telemetry() -> None:
    """No library reports to anybody what is done with it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pairs(option: str, entries: list[str] | None, form: str = "key=value") -> dict[str, str]:
    """`["a=1", "b=2"]` -> a dictionary. Raises TresseError for an entry without `=`."""
    for entry in entries or []:
        if "=" not in entry:
            raise TresseError(f"{option} {entry}: write {form}")
    return dict(entry.split("=", 1) for entry in entries or [])
