"""The command line. Importing this module imports neither torch nor gradio: `tresse --help` answers at once.

Errors that the user can mend are one line on standard error and exit status 2.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any

import typer

from demo.commands import bench as speed
from demo.commands import make, measure, talk
from demo.ending import ending_when_asked
from slm.errors import TresseError, complain, machine_fault

INTERRUPTED = 130
"""Exit status after Ctrl+C, as typer reports it."""
QUIET = {
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "CT2_VERBOSE": "-1",
}
WITHOUT_A_VALUE = {"--ray": "local"}
"""Options that may stand without a value, and what they mean then."""

app = typer.Typer(
    help="Tell the beginning of a story; a speech language model goes on with it, aloud, in the language you ask for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(talk.demo_command)
app.command("continue")(talk.continue_command)
app.command("record")(talk.record_command)
app.command("recipe")(make.recipe_command)
app.command("prepare")(make.prepare_command)
app.command("train")(make.train_command)

evaluate = typer.Typer(help="Measure a bundle.", no_args_is_help=True)
evaluate.command("cloze")(measure.cloze_command)
evaluate.command("units")(measure.units_command)
evaluate.command("pairs")(measure.pairs_command)
evaluate.command("alignment")(measure.alignment_command)
evaluate.command("resynthesis")(measure.resynthesis_command)
evaluate.command("continuation")(measure.continuation_command)
evaluate.command("voices")(measure.voices_command)
evaluate.command("all")(measure.all_command)
app.add_typer(evaluate, name="eval")
bench = typer.Typer(help="Measure speed against the plain way, in one process.", no_args_is_help=True)
bench.command("prepare")(speed.prepare_command)
bench.command("cloze")(speed.cloze_command)
bench.command("train")(speed.train_command)
bench.command("loader")(speed.loader_command)
bench.command("vocoder")(speed.vocoder_command)
bench.command("continue")(speed.continue_command)
bench.command("turns")(speed.turns_command)
bench.command("serve")(speed.serve_command)
app.add_typer(bench, name="bench")


def _spread(arguments: list[str]) -> list[str]:
    """`--to en fr` -> `--to en --to fr`, whatever files there are of these names. The folder of the prompts may stand
    anywhere: where nothing else can be it, it is the last of what follows the last `--to`."""
    options: list[str] = []
    languages: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            rest += waiting
            break
        if argument == "--to" or argument.startswith("--to="):
            languages += [argument[5:]] if "=" in argument else []
            while waiting and not waiting[0].startswith("-"):
                languages.append(waiting.pop(0))
        elif argument.startswith("-") and argument != "--help":
            options += [argument, *(waiting[:1] if "=" not in argument else [])]
            del waiting[: "=" not in argument]
        else:
            (options if argument == "--help" else rest).append(argument)
    if not rest and len(languages) > 1:
        rest.append(languages.pop())
    return [*options, *(part for language in languages for part in ("--to", language)), "--", *rest]


def _completed(arguments: list[str]) -> list[str]:
    """`--ray --out corpus/` -> `--ray=local --out corpus/`."""
    following = [*arguments[1:], "-"]
    return [
        f"{argument}={WITHOUT_A_VALUE[argument]}" if argument in WITHOUT_A_VALUE and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=False)
    ]


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of `tresse`."""
    given = sys.argv[1:] if arguments is None else arguments
    _calm()
    with ending_when_asked():
        try:
            given = ["record", *_spread(given[1:])] if given[:1] == ["record"] else _completed(given)
            status = app(given, standalone_mode=False)
            sys.stdout.flush()
        except Exception as error:
            status = _explained(error)
            if status is None:
                raise
        if status == INTERRUPTED:
            complain("tresse: stopped; what was finished is kept")
        if status:
            sys.exit(status)


def _calm() -> None:
    """One error is one line: what libraries remark on the way is not for the user. `PYTHONWARNINGS=default` shows it."""
    # Threads that wait for work sleep instead of spinning: on a shared machine spinning costs more than half the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)  # worker processes too
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show


def _explained(error: Exception) -> int | None:
    """Print what the user can do about an error, in one line; returns the exit status, None for a fault of ours."""
    show = getattr(error, "show", None)
    if isinstance(error, TresseError):
        line = str(error)
    elif callable(show) and type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        show()
        return 2
    elif callable(message := getattr(error, "format_message", None)):  # what typer raises for a wrong option
        context = getattr(error, "ctx", None)
        line = message().rstrip(".") + (f": see {context.command_path} --help" if context else "")
    elif isinstance(error, BrokenPipeError):
        line = ""  # whoever read the output has left, as `head` does
    elif (fault := machine_fault(error)) is not None:
        line = str(fault)
    else:
        return None
    if line:
        complain(f"tresse: {line}")
    try:
        sys.stdout.flush()
    except OSError:  # Python would complain of it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if line else 1


if __name__ == "__main__":
    main()
