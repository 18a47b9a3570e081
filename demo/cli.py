"""The command line. Importing this module imports neither torch nor gradio: `tresse --help` answers at once.

Errors that the user can mend are one line on standard error and exit status 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from slm.errors import TresseError

app = typer.Typer(
    help="Tell the beginning of a story; a speech language model goes on with it, aloud, in the language you ask for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
evaluate = typer.Typer(help="Measure a bundle.", no_args_is_help=True)
app.add_typer(evaluate, name="eval")

BundleOption = Annotated[
    str | None,
    typer.Option("--bundle", help="Folder or hub id of a bundle. [default: the shipped one]", show_default=False),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same continuation.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Share of the probability that is drawn from.")]
MaxSecondsOption = Annotated[float, typer.Option("--max-seconds", help="Longest continuation, in s.")]
SpeakerOption = Annotated[
    str | None, typer.Option(help="Voice of the continuation. [default: the bundle's first]", show_default=False)
]
RunOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run. [default: runs/NAME]", show_default=False)
]
WorkersOption = Annotated[int, typer.Option(help="Processes that speak and encode.", min=1)]
CORES = os.cpu_count() or 1


@app.command("demo")
def demo_command(
    bundle: BundleOption = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 7860,
    device: DeviceOption = "auto",
    recordings: Annotated[
        Path | None, typer.Option(help="Keep every turn in this folder. [default: nothing is kept]", show_default=False)
    ] = None,
) -> None:
    """Serve the page on which one talks with the model."""
    _no_telemetry()
    from demo.app import serve
    from slm.bundle import Bundle

    serve(Bundle.load(bundle, device), host, port, recordings=recordings)


@app.command("continue")
def continue_command(
    prompt: Annotated[Path, typer.Argument(help="Audio file with the beginning of a story.", show_default=False)],
    to: Annotated[str, typer.Option(help="Language of the continuation, for example en or fr.", show_default=False)],
    out: Annotated[Path, typer.Option(help="WAV file to write.", show_default=False)],
    seed: SeedOption = 0,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    max_seconds: MaxSecondsOption = 12.0,
    speaker: SpeakerOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")] = False,
) -> None:
    """Go on with a spoken story in the language asked for."""
    _no_telemetry()
    _check_output(out)
    if not prompt.exists():
        raise TresseError(f"no such file: {prompt}")
    from demo.record import continue_file
    from slm.bundle import Bundle

    settings = {
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "max_seconds": max_seconds,
        "speaker": speaker,
    }
    report = continue_file(Bundle.load(bundle, device), prompt, to, out, **settings)
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{out}: {report['seconds']:.1f} s in {to}; first audio after {report['time_to_first_audio_ms']:.0f} ms, "
            f"real-time factor {report['real_time_factor']:.3f}"
        )


@app.command("record")
def record_command(
    prompts: Annotated[Path, typer.Argument(help="Folder of audio files.", show_default=False)],
    to: Annotated[list[str], typer.Option(help="Languages of the continuations: --to en fr.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for WAVs and manifest.jsonl.", show_default=False)],
    seed: SeedOption = 0,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    max_seconds: MaxSecondsOption = 12.0,
    speaker: SpeakerOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Continue every audio file of a folder in every language asked for. Run again, it goes on where it stopped."""
    _no_telemetry()
    if not prompts.is_dir():
        raise TresseError(f"{prompts} is not a folder: give a folder of audio files")
    from demo.record import record_folder
    from slm.bundle import Bundle

    settings = {
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "max_seconds": max_seconds,
        "speaker": speaker,
    }
    done, failed = record_folder(Bundle.load(bundle, device), prompts, to, out, **settings)
    print(
        f"{out}: {done} continuations"
        + (f", {failed} prompts could not be used (see manifest.jsonl)" if failed else "")
    )


@app.command("recipe")
def recipe_command(
    name: Annotated[str, typer.Argument(help="A recipe of the project (tiny) or a .yaml file.", show_default=False)],
    out: RunOption = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.", show_default=False)] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set slm.tokens=100000.", show_default=False)
    ] = None,
    workers: WorkersOption = CORES,
) -> None:
    """Make a whole bundle from nothing: stories, speech, units, language model, vocoder. Run again, it goes on."""
    from train.recipe import Recipe, run_recipe

    for entry in change or []:
        if "=" not in entry:
            raise TresseError(f"--set {entry}: write key=value")
    recipe = Recipe.load(name, dict(entry.split("=", 1) for entry in change or []))
    run_recipe(recipe, out or Path("runs") / recipe.name, until, workers)


@app.command("prepare")
def prepare_command(
    recipe: Annotated[str, typer.Option(help="Recipe that says which stories, voices and units.")] = "tiny",
    out: RunOption = None,
    workers: WorkersOption = CORES,
) -> None:
    """Make the unit corpus of a recipe (and what it needs: stories and unit encoder)."""
    recipe_command(recipe, out, "corpus", None, workers)


@app.command("train")
def train_command(
    part: Annotated[str, typer.Argument(help="units, slm or vocoder.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="Recipe to follow.")] = "tiny",
    out: RunOption = None,
    workers: WorkersOption = CORES,
) -> None:
    """Train one part of a recipe (and what it needs). Run again, it goes on."""
    if part not in ("units", "slm", "vocoder"):
        raise TresseError(f"there is no part {part}: choose units, slm or vocoder")
    recipe_command(recipe, out, part, None, workers)


@evaluate.command("cloze")
def cloze_command(
    out: Annotated[Path, typer.Option(help="Folder for results.json and cloze.md.", show_default=False)],
    items: Annotated[
        Path | None, typer.Option(help="Cloze items (.jsonl). [default: test stories]", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="Items of each kind, of the default benchmark.", min=1)] = 300,
    voice: Annotated[
        list[str] | None, typer.Option(help="Who speaks a language: --voice fr=zoe.", show_default=False)
    ] = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """How often the model finds the right ending of a story likelier than a wrong one, in and across languages."""
    _no_telemetry()
    from slm.bundle import Bundle
    from train.evaluate.cloze import evaluate_cloze, markdown_table
    from train.stories.cloze import make_items, read_items

    for entry in voice or []:
        if "=" not in entry:
            raise TresseError(f"--voice {entry}: write LANG=VOICE")
    chosen = list(read_items(items)) if items else make_items(1, count, "test")
    speakers = dict(entry.split("=", 1) for entry in voice or [])
    results = evaluate_cloze(Bundle.load(bundle, device), chosen, out=out, voices=speakers)
    print(markdown_table(results))


def _no_telemetry() -> None:
    """No library reports to anybody what is done with it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _check_output(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.is_dir():
        raise TresseError(f"{path} is a folder: name a .wav file")
    if path.suffix.lower() != ".wav":
        raise TresseError(f"{path} must end in .wav")
    if not path.parent.is_dir():
        raise TresseError(f"there is no folder {path.parent}: make it first")
    if not os.access(path.parent, os.W_OK):
        raise TresseError(f"cannot write in {path.parent}: choose another place for the output")


def _spread(arguments: list[str]) -> list[str]:
    """`--to en fr` -> `--to en --to fr`."""
    spread: list[str] = []
    inside = False
    for argument in arguments:
        if argument.startswith("-"):
            inside = argument == "--to"
            spread.append(argument)
        elif inside and spread[-1] != "--to" and not Path(argument).exists():
            spread += ["--to", argument]
        else:
            spread.append(argument)
    return spread


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of `tresse`."""
    given = sys.argv[1:] if arguments is None else arguments
    # Threads that wait for work sleep instead of spinning: on a shared machine spinning costs more than half the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return app(_spread(given) if given[:1] == ["record"] else given)
    except TresseError as error:
        print(f"tresse: {error}", file=sys.stderr)
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl+C, as typer reports it
            print("tresse: stopped; what was finished is kept", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno is None:
            raise
        place = f" ({error.filename})" if error.filename else ""
        print(
            f"tresse: {error.strerror}{place}: make room or check the permissions, then run it again", file=sys.stderr
        )
    sys.exit(2)


if __name__ == "__main__":
    main()
