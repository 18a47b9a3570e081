"""Measuring a bundle: evaluations (`tresse eval`) and benchmarks (`tresse bench`)."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demo.commands.options import (
    CORES,
    AsrOption,
    BundleOption,
    DeviceOption,
    JudgeOption,
    SpeakerOption,
    WorkersOption,
    no_telemetry,
    pairs,
)
from slm.errors import TresseError, complain, say

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.transcribe import Recogniser

OutOption = Annotated[Path, typer.Option("--out", help="Folder of the report.", show_default=False)]
CompareOption = Annotated[
    str | None, typer.Option("--compare", help="Another bundle, measured beside this one.", show_default=False)
]
VoiceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--voice", help="Who speaks a language: --voice fr=zoe. [default: unseen and seen voices]", show_default=False
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder for spoken units. [default: the user's cache]", show_default=False),
]


def cloze_command(
    out: OutOption,
    items: Annotated[
        str, typer.Option(help="test, unseen, validation, handwritten, written, or a .jsonl file of items.")
    ] = "test",
    count: Annotated[int, typer.Option(help="Items of each kind, of a split.", min=1)] = 1871,
    voice: VoiceOption = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Another bundle, or the folder of its evaluation: McNemar's test.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the voices that are drawn.", min=0)] = 0,
    cache: CacheOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = CORES,
) -> None:
    """How often the model finds the right ending of a story likelier than a wrong one, in and across languages."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.evaluate.cloze.comparison import compare_cloze
    from train.evaluate.cloze.evaluation import evaluate_cloze
    from train.evaluate.cloze.items import load_items
    from train.evaluate.cloze.report import comparison_table, markdown_table, voices_table
    from train.evaluate.spoken_items import default_cache

    speakers = pairs("--voice", voice, "LANG=VOICE")
    shown = Bundle.load(bundle, device)
    chosen, root = load_items(items, count, languages=shown.languages)

    def evaluate(measured: Bundle, folder: Path) -> dict[str, Any]:
        return evaluate_cloze(
            measured,
            chosen,
            out=folder,
            voices=speakers or None,
            cache=cache or default_cache(),
            audio_root=root,
            workers=workers,
            seed=seed,
        )

    results = evaluate(shown, out)
    say(markdown_table(results))
    say("\n" + voices_table(results))
    if compare:
        name = Path(bundle).name if bundle else "shipped"
        say("\n" + comparison_table(compare_cloze(out, compare, evaluate, device, name)))
    if results["problems"]:
        complain(f"{len(results['problems'])} entries could not be used: see {out / 'results.json'}")


def pairs_command(
    out: OutOption,
    items: Annotated[
        Path | None,
        typer.Option(help="Pairs (.jsonl) of right and wrong audio or texts, instead of a set.", show_default=False),
    ] = None,
    shipped: Annotated[str, typer.Option("--set", help="lexical, or grammar.")] = "lexical",
    voice: VoiceOption = None,
    language: Annotated[
        str | None, typer.Option(help="Language of pairs that name none. [default: detected]", show_default=False)
    ] = None,
    cache: CacheOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = CORES,
) -> None:
    """How often the model finds the right one of two recordings likelier: words, grammar, sWUGGY, sBLIMP, SALMon."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.evaluate.pairs import evaluate_pairs, markdown_table, read_pairs, shipped_pairs
    from train.evaluate.spoken_items import default_cache

    speakers = pairs("--voice", voice, "LANG=VOICE")
    chosen, root = read_pairs(items) if items else (shipped_pairs(shipped), Path("."))
    results = evaluate_pairs(
        Bundle.load(bundle, device),
        chosen,
        out=out,
        language=language,
        voices=speakers or None,
        cache=cache or default_cache(),
        audio_root=root,
        workers=workers,
    )
    say(markdown_table(results))
    if results["problems"]:
        complain(f"{len(results['problems'])} entries could not be used: see {out / 'results.json'}")


def alignment_command(
    out: OutOption,
    count: Annotated[int, typer.Option(help="Sentences and their translations.", min=2)] = 300,
    split: Annotated[str, typer.Option(help="Stories the sentences are from: test, unseen, validation.")] = "test",
    compare: CompareOption = None,
    cache: CacheOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = CORES,
) -> None:
    """Whether sentences and their translations are near each other inside the model, layer by layer."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.evaluate.alignment import evaluate_alignment, markdown_table
    from train.evaluate.spoken_items import default_cache

    names = (Path(bundle).name if bundle else "shipped", Path(compare).name if compare else "other")
    results = evaluate_alignment(
        Bundle.load(bundle, device),
        out=out,
        count=count,
        split=split,
        compare=Bundle.load(compare, device) if compare else None,
        names=names if names[0] != names[1] else ("this", "other"),
        cache=cache or default_cache(),
        workers=workers,
    )
    say(markdown_table(results))


def continuation_command(
    out: OutOption,
    count: Annotated[int, typer.Option(help="Stories continued, in all language pairs.", min=1)] = 20,
    max_seconds: Annotated[float, typer.Option("--max-seconds", help="Longest continuation, in s.")] = 10.0,
    asr: AsrOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """What the model says: language, intelligibility, coherence, repetition and diversity of its continuations."""
    no_telemetry()
    from slm.bundle import Bundle
    from slm.recognisers import open_recogniser
    from train.evaluate.continuation import evaluate_continuation
    from train.evaluate.continuation_report import markdown_table

    measured = Bundle.load(bundle, device)
    recogniser = open_recogniser(measured.path, measured.languages, asr, encoder=measured.units)
    say(markdown_table(evaluate_continuation(measured, recogniser, out=out, prompts=count, max_seconds=max_seconds)))


def resynthesis_command(
    out: OutOption,
    count: Annotated[int, typer.Option(help="Sentences a language and voice group.", min=1)] = 60,
    judge: JudgeOption = None,
    asr: AsrOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """What units and vocoder keep of speech: words (where there is a recogniser), spectrum, melody, loudness.

    With the extra `judges`, also naturalness (DNSMOS) and how alike a speaker is in its languages.
    """
    no_telemetry()
    from slm.bundle import Bundle
    from slm.transcribe import Transcriber
    from train.evaluate.judges import naturalness, speaker_embedding
    from train.evaluate.resynthesis import evaluate_resynthesis, strangers, summary_table

    measured = Bundle.load(bundle, device)
    recogniser, missing = _recogniser(measured, asr)
    if missing:
        complain(f"without word errors: {missing}")
    independent = Transcriber(judge, measured.languages) if judge else None
    rating, embed = None, None
    try:
        rating, embed = naturalness(), speaker_embedding()
    except TresseError as error:
        complain(f"without naturalness and likeness: {error}")
    results = evaluate_resynthesis(
        measured, recogniser, out=out, count=count, judge=independent, rating=rating, embed=embed
    )
    say(summary_table(results), *strangers(results))


def _say_problems(problems: list[dict[str, str]]) -> None:
    for problem in problems:
        complain(f"left out: {problem['recording']}: {problem['problem']}")


def voices_command(
    recordings: Annotated[
        Path, typer.Argument(help="Folder of recordings, with NAME.txt or a list.jsonl.", show_default=False)
    ],
    out: OutOption,
    judge: JudgeOption = None,
    asr: AsrOption = None,
    speaker: SpeakerOption = None,
    units: Annotated[
        Path | None,
        typer.Option(help="Only this unit encoder, without a bundle: its folder.", show_default=False),
    ] = None,
    phones: Annotated[
        str | None,
        typer.Option(
            help="With --units: a bundle or folder of units that are phones, which times the phones of texts; '' for none.",
            show_default=False,
        ),
    ] = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """What a bundle understands of anybody's recordings: units, in-domain share, words, by speaker and family."""
    no_telemetry()
    if not recordings.is_dir():
        raise TresseError(f"{recordings} is not a folder: give a folder of recordings")
    if units is not None:
        from slm.units import load_encoder
        from train.corpus.recordings import read_recordings
        from train.evaluate.voice_phones import Aligner
        from train.evaluate.voice_units import evaluate_voice_units, tables
        from train.recipe import find_part

        aligner = None if phones == "" else Aligner.load(find_part(phones or "natural", "units", "--phones"))
        measured_units = evaluate_voice_units(
            load_encoder(units), read_recordings(recordings), out=out, aligner=aligner
        )
        _say_problems(measured_units["problems"])
        say(tables(measured_units))
        return
    from slm.bundle import Bundle
    from slm.transcribe import Transcriber
    from train.corpus.recordings import read_recordings
    from train.evaluate.voices import edit_table, evaluate_voices, group_table

    given, measured = read_recordings(recordings), Bundle.load(bundle, device)
    recogniser, missing = _recogniser(measured, asr)
    if missing:
        complain(f"without the bundle's own recogniser: {missing}")
    independent = Transcriber(judge, measured.languages) if judge else None
    results = evaluate_voices(measured, given, out=out, recogniser=recogniser, judge=independent, speaker=speaker)
    _say_problems(results["problems"])
    say(edit_table(results), group_table(results["groups"]["family"]))


def all_command(
    out: OutOption,
    only: Annotated[
        list[str] | None, typer.Option(help="A part: cloze, pairs, alignment ... [default: all]", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small part of everything, in minutes.")] = False,
    items: Annotated[
        int | None, typer.Option(help="Cloze items of each kind. [default: 1871, quick 60]", min=1, show_default=False)
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Stories continued. [default: 20, quick 2]", min=1, show_default=False)
    ] = None,
    asr: AsrOption = None,
    cache: CacheOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = CORES,
) -> None:
    """Everything in one folder: results.json, report.md and a self-contained report.html. Run again, it goes on."""
    no_telemetry()
    from slm.bundle import Bundle
    from train.evaluate.all import QUICK, Sizes, evaluate_all
    from train.evaluate.spoken_items import default_cache

    measured = Bundle.load(bundle, device)
    recogniser, missing = _recogniser(measured, asr)
    sizes = QUICK if quick else Sizes()
    sizes = replace(sizes, items=items or sizes.items, prompts=prompts or sizes.prompts)
    results = evaluate_all(
        measured,
        out=out,
        command=shlex.join(["tresse", *sys.argv[1:]]),
        transcriber=recogniser,
        deaf=missing,
        sizes=sizes,
        only=only or (),
        cache=cache or default_cache(),
        workers=workers,
    )
    for name, why in results["not_measured"].items():
        complain(f"not measured: {name}: {why}")
    say(f"{out / 'report.html'}: {', '.join(results['parts'])}")


def units_command(
    out: OutOption,
    count: Annotated[int, typer.Option(help="Sentences of each language.", min=2)] = 100,
    units: Annotated[
        Path | None, typer.Option(help="Folder of a unit encoder, instead of a bundle's.", show_default=False)
    ] = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Whether the units name what is said, and not who says it."""
    no_telemetry()
    from slm.bundle import Bundle, choose_device
    from slm.units import load_encoder
    from train.evaluate.units_report import report_units, summary_table
    from train.speech.voices import Voices

    if units:
        encoder, languages = load_encoder(units).to(choose_device(device)), list(Voices.load().languages)
    else:
        measured = Bundle.load(bundle, device)
        encoder, languages = measured.units, measured.languages
    say(summary_table(report_units(encoder, languages, out, count=count)))


def _recogniser(bundle: Bundle, asr: str | None) -> tuple[Recogniser | None, str]:
    """The recogniser asked for, or the bundle's; where the bundle has none, None and why."""
    from slm.recognisers import open_recogniser

    try:
        return open_recogniser(bundle.path, bundle.languages, asr, encoder=bundle.units), ""
    except TresseError as error:
        if asr:
            raise
        return None, str(error)
