"""Measuring speed: benchmarks (`tresse bench`). Each prints a table for people, and one JSON object as the last line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from demo.commands.options import BundleOption, DeviceOption, no_telemetry
from slm.errors import TresseError, say


def cloze_command(
    count: Annotated[int, typer.Option(help="Items of each kind.", min=1)] = 50,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Cloze items scored a second: shared beginnings in batches against one item at a time."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.bench.cloze import bench_cloze, table
    from train.evaluate.spoken_items import default_cache

    _show(bench_cloze(Bundle.load(bundle, device), count, cache=default_cache()), table)


def vocoder_command(bundle: BundleOption = None, device: DeviceOption = "cpu") -> None:
    """Real-time factor and delay of the vocoder against a HiFi-GAN generator of the usual size."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.bench.vocoder import bench_vocoder, table

    _show(bench_vocoder(Bundle.load(bundle, device).vocoder), table)


def continue_command(
    prompts: Annotated[int, typer.Option(help="Spoken prompts.", min=1)] = 50,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Delay of the first audio, and decoding speed, against generating everything with transformers first."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.bench.latency import bench_continue, table

    _show(bench_continue(Bundle.load(bundle, device), prompts), table)


def turns_command(
    recordings: Annotated[
        Path | None,
        typer.Argument(help="Folder of recordings, a turn each. [default: stories alone]", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(help="Recordings of each sub-folder.", min=1)] = 100,
    stories: Annotated[int, typer.Option(help="Beginnings of stories, by the project's voices.", min=1)] = 60,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit the judgement's weights to one half of the speakers.")
    ] = False,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """How soon a hands-free turn is answered, and how many are cut off: the judgement against plain silence."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.bench.turns import bench_turns, table

    if recordings is not None and not recordings.is_dir():
        raise TresseError(f"{recordings} is not a folder: give a folder of recordings")
    _show(bench_turns(Bundle.load(bundle, device), recordings, count, stories, fit), table)


def serve_command(
    most: Annotated[int, typer.Option(help="Talkers, at most.", min=1, max=120)] = 64,
    seconds: Annotated[float, typer.Option(help="Seconds of each trial.", min=1)] = 20.0,
    url: Annotated[
        str | None,
        typer.Option(help="A server that runs already. [default: one is started]", show_default=False),
    ] = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """How many people can talk to a server at once without a gap in the replies; memory of a session, and fairness."""
    no_telemetry()
    from demo.apart import health, served_apart
    from demo.service import NEW_A_MINUTE
    from train.bench.serve import bench_serve, table

    if url is not None:
        _show(bench_serve(url, health(url)["languages"], lambda: None, most, seconds, NEW_A_MINUTE), table)
        return
    with served_apart(None if bundle is None else str(bundle), device) as server:
        languages = health(server.url)["languages"]
        _show(bench_serve(server.url, languages, server.memory, most, seconds, NEW_A_MINUTE), table)


def train_command(
    stories: Annotated[int, typer.Option(help="Stories trained on.", min=2)] = 64,
    turns: Annotated[int, typer.Option(help="Timed turns of each way; the best counts.", min=1)] = 3,
    bundle: BundleOption = None,
) -> None:
    """Units a second and useful share of the training loop against the plain transformers way."""
    from train.bench.train import run_bench, table

    _show(run_bench(stories, turns, Path(bundle) if bundle else None), table)


def loader_command(
    units: Annotated[
        int, typer.Option(help="Units of the invented corpus; 1,000 million take 1.3 GB.", min=1)
    ] = 50_000_000,
    processes: Annotated[int, typer.Option(help="Processes that share the batches.", min=1)] = 64,
) -> None:
    """Reading a large corpus in many processes: memory, start, going on, tokens a second."""
    from train.bench.loader import run_bench, table
    from train.estimate import estimate
    from train.recipe import Recipe

    gpu = estimate(Recipe.load("paper-360m"), Path("runs"), measure=False, processes=processes)["gpu"]
    _show(run_bench(units, processes, gpu), table)


def prepare_command(
    units: Annotated[
        str | None,
        typer.Option(help="Measure the encoder of this bundle, or folder of units, alone.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="With --units: speech that is encoded, in s.", min=1)] = 60.0,
) -> None:
    """Hours of speech an hour for synthesis, encoding and writing of a corpus; or for one unit encoder."""
    no_telemetry()
    from train.bench.prepare import encoder_table, run_bench, run_encoder_bench, table
    from train.recipe import find_part

    if units is None:
        _show(run_bench(), table)
    else:
        _show(run_encoder_bench(find_part(units, "units", "--units"), seconds), encoder_table)


def _show(result: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
    """A table for people, then one JSON object as the last line."""
    say(table(result))
    say(json.dumps(result))
