"""The command line. Importing this module imports neither torch nor gradio: `tresse --help` answers at once.

Errors that the user can mend are one line on standard error and exit status 2.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from demo.commands import make, measure, talk
from slm.errors import TresseError

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
bench.command("prepare")(measure.bench_prepare_command)
bench.command("cloze")(measure.bench_cloze_command)
bench.command("train")(measure.bench_train_command)
bench.command("vocoder")(measure.bench_vocoder_command)
bench.command("continue")(measure.bench_continue_command)
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


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of `tresse`."""
    given = sys.argv[1:] if arguments is None else arguments
    # Threads that wait for work sleep instead of spinning: on a shared machine spinning costs more than half the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return app(["record", *_spread(given[1:])] if given[:1] == ["record"] else given)
    except TresseError as error:
        print(f"tresse: {error}", file=sys.stderr)
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl+C, as typer reports it
            print("tresse: stopped; what was finished is kept", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno is None:
            raise
        file = f" ({error.filename})" if error.filename else ""
        print(f"tresse: {error.strerror}{file}: make room or check the permissions, then run it again", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
