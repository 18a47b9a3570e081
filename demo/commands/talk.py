"""Talking to the model: the page, one file, a folder of files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demo.commands.options import (
    AsrOption,
    BundleOption,
    CandidatesOption,
    DeviceOption,
    MaxSecondsOption,
    SeedOption,
    SpeakerOption,
    TemperatureOption,
    TopPOption,
    no_telemetry,
)
from demo.ending import temporary_folder
from slm.errors import TresseError, complain, say
from slm.settings import MAX_SECONDS, TEMPERATURE, TOP_P, ReplySettings

if TYPE_CHECKING:
    from slm.bundle import Bundle

OUT_OF_DOMAIN = "this prompt is out of domain, so the continuation does not follow from it"


UNTAGGED = "this model has no language tags: it chooses the language itself, and --to is only how the voice speaks"


def demo_command(
    bundle: BundleOption = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 7860,
    device: DeviceOption = "auto",
    recordings: Annotated[
        Path | None, typer.Option(help="Keep every turn in this folder. [default: nothing is kept]", show_default=False)
    ] = None,
    asr: AsrOption = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that the server answers to, beside this machine's own.", show_default=False),
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            help="USER:PASSWORD that the page asks for, or @FILE that holds them: other users see arguments.",
            envvar="TRESSE_AUTH",
            show_envvar=True,
            show_default=False,
        ),
    ] = None,
    replies: Annotated[
        int | None,
        typer.Option(
            help="Replies that are made at once; who comes later waits in line. [default: two a core]",
            envvar="TRESSE_REPLIES",
            show_envvar=True,
            show_default=False,
            min=1,
        ),
    ] = None,
) -> None:
    """Serve the page on which one talks with the model."""
    no_telemetry()
    os.environ.pop("TRESSE_AUTH", None)  # programs that are started from here need not know it
    with temporary_folder():
        from demo.app import serve
        from demo.password import account
        from slm.bundle import Bundle

        known = account(auth) if auth is not None else None
        loaded = Bundle.load(bundle, device)
        hosts = allow_host or ()
        serve(loaded, host, port, recordings=recordings, asr=asr, hosts=hosts, account=known, replies=replies)


def continue_command(
    prompt: Annotated[
        Path, typer.Argument(help="Audio file with the beginning of a story, or a saved .zip.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="WAV file to write.", show_default=False)],
    to: Annotated[
        str | None, typer.Option(help="Language of the continuation, for example en or fr.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    temperature: TemperatureOption = TEMPERATURE,
    top_p: TopPOption = TOP_P,
    max_seconds: MaxSecondsOption = MAX_SECONDS,
    speaker: SpeakerOption = None,
    candidates: CandidatesOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    turn: Annotated[
        int | None, typer.Option(help="Of a saved conversation: the turn whose reply is made again.", min=1)
    ] = None,
    part: Annotated[int, typer.Option(help="Which reply of that turn.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")] = False,
) -> None:
    """Go on with a spoken story in the language asked for."""
    no_telemetry()
    _check_output(out)
    if not prompt.exists():
        raise TresseError(f"no such file: {prompt}")
    from demo.record import continue_archive, continue_file

    if prompt.suffix.lower() != ".zip" and to is None:
        raise TresseError("say in which language to go on: --to LANG")
    loaded = _load(bundle, device)
    if to is None or prompt.suffix.lower() == ".zip":
        report = continue_archive(loaded, prompt, out, turn, part)
    else:
        settings = ReplySettings((to,), seed, temperature, top_p, max_seconds, speaker, candidates)
        report = continue_file(loaded, prompt, out, settings)
    if not report["prompt_in_domain"]:
        from slm.voice_check import ADVICE

        complain(f"tresse: {OUT_OF_DOMAIN}; {ADVICE[report['prompt_advice']]}")
    if as_json:
        say(json.dumps(report))
    else:
        say(
            f"{out}: {report['seconds']:.1f} s{' in ' + report['language'] if report['language'] else ''}; "
            f"first audio after {report['time_to_first_audio_ms']:.0f} ms, real-time factor {report['real_time_factor']:.3f}"
        )


def record_command(
    prompts: Annotated[Path, typer.Argument(help="Folder of audio files.", show_default=False)],
    to: Annotated[list[str], typer.Option(help="Languages of the continuations: --to en fr.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for WAVs and manifest.jsonl.", show_default=False)],
    seed: SeedOption = 0,
    temperature: TemperatureOption = TEMPERATURE,
    top_p: TopPOption = TOP_P,
    max_seconds: MaxSecondsOption = MAX_SECONDS,
    speaker: SpeakerOption = None,
    candidates: CandidatesOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Continue every audio file of a folder in every language asked for. Run again, it goes on where it stopped."""
    no_telemetry()
    if not prompts.is_dir():
        raise TresseError(f"{prompts} is not a folder: give a folder of audio files")
    from demo.record import record_folder

    settings = ReplySettings((), seed, temperature, top_p, max_seconds, speaker, candidates)
    done, failed, out_of_domain, others = record_folder(_load(bundle, device), prompts, to, out, settings)
    say(
        f"{out}: {done} continuations"
        + (f", {out_of_domain} of prompts that are out of domain" if out_of_domain else "")
        + (f", {failed} prompts could not be used" if failed else "")
        + (f", {others} other files left out" if others else "")
        + (" (see manifest.jsonl)" if failed or out_of_domain else "")
    )


def _load(source: str | None, device: str) -> Bundle:
    """The bundle; says so where it cannot be asked for a language."""
    from slm.bundle import Bundle

    bundle = Bundle.load(source, device)
    if not bundle.tags:
        complain(f"tresse: {UNTAGGED}")
    return bundle


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
