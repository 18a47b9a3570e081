"""Every evaluation of a bundle in one folder: `results.json`, `report.md` and a self-contained `report.html`.

Each part has a folder of its own with its results, page and plots. A part is finished when its `done.json` holds the
fingerprint of what it was made from: the bundle's files, its settings and the code of the evaluation. Run again, finished
parts are kept and the others made. A part that cannot be measured (no recogniser, say) is named with its reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm.errors import MachineError, TresseError, complain
from slm.settings import TEMPERATURE, TOP_P
from train.evaluate.cloze.items import learnt_written
from train.evaluate.cloze.voice_groups import fingerprints, panel_of
from train.evaluate.html import nested, write_html
from train.evaluate.scorable import Talking, Transcribing
from train.evaluate.spoken_items import files_hash
from train.speech.voices import Voices
from train.stories.cloze_items import BENCHMARK_ITEMS
from train.tools.checkpoints import atomic_path, write_json


@dataclass(frozen=True)
class Sizes:
    """How much is measured. items: cloze items of each kind; sentences: for alignment; prompts: stories continued;
    spoken: sentences a language for units and resynthesis."""

    items: int = BENCHMARK_ITEMS
    sentences: int = 300
    prompts: int = 20
    spoken: int = 100


QUICK = Sizes(items=60, sentences=60, prompts=2, spoken=10)


@dataclass(frozen=True)
class Setting:
    """What the parts share. telling: who speaks the texts of items (cloze and grammar). transcriber: None where there is
    none; `deaf` says why."""

    bundle: Talking
    panel: Voices
    telling: Voices
    sizes: Sizes
    workers: int
    cache: Path | None
    transcriber: Transcribing | None
    deaf: str = ""


def _cloze(source: str) -> Callable[[Setting, Path], Any]:
    def run(setting: Setting, out: Path) -> Any:
        from train.evaluate.cloze.evaluation import evaluate_cloze
        from train.evaluate.cloze.items import load_items

        items, root = load_items(source, setting.sizes.items, languages=setting.bundle.languages)
        return evaluate_cloze(
            setting.bundle,
            items,
            out=out,
            panel=setting.telling,
            cache=setting.cache,
            audio_root=root,
            workers=setting.workers,
        )

    return run


def _pairs(name: str) -> Callable[[Setting, Path], Any]:
    def run(setting: Setting, out: Path) -> Any:
        from train.evaluate.pairs import evaluate_pairs, shipped_pairs

        pairs = shipped_pairs(name)
        pairs = pairs[:: max(1, len(pairs) // (2 * setting.sizes.items))]
        return evaluate_pairs(
            setting.bundle,
            [pair for pair in pairs if pair.language in setting.bundle.languages],
            out=out,
            panel=setting.telling if name == "grammar" else setting.panel,
            cache=setting.cache,
            workers=setting.workers,
        )

    return run


def _alignment(setting: Setting, out: Path) -> Any:
    from train.evaluate.alignment import evaluate_alignment

    return evaluate_alignment(
        setting.bundle,
        out=out,
        count=setting.sizes.sentences,
        panel=setting.panel,
        cache=setting.cache,
        workers=setting.workers,
    )


def _units(setting: Setting, out: Path) -> Any:
    from train.evaluate.units_report import report_units

    bundle = setting.bundle
    return report_units(bundle.units, bundle.languages, out, count=setting.sizes.spoken, voices=setting.panel)


def _continuation(setting: Setting, out: Path) -> Any:
    from train.evaluate.continuation import evaluate_continuation

    return evaluate_continuation(
        setting.bundle, setting.transcriber, out=out, prompts=setting.sizes.prompts, panel=setting.panel
    )


@dataclass(frozen=True)
class Part:
    """One evaluation: how it is run, its page, and the sections of the page that the common report leaves out."""

    title: str
    run: Callable[[Setting, Path], Any]
    page: str
    without: tuple[str, ...] = ()


def _resynthesis(setting: Setting, out: Path) -> Any:
    from train.evaluate.resynthesis import evaluate_resynthesis

    return evaluate_resynthesis(
        setting.bundle, setting.transcriber, out=out, count=setting.sizes.spoken, panel=setting.panel
    )


def _recogniser(setting: Setting, out: Path) -> Any:
    from train.evaluate.recogniser import evaluate_recogniser
    from train.stories.held_out import held_out_sentences

    if setting.transcriber is None:
        raise TresseError(setting.deaf or "there is no recogniser: give --asr")
    sentences = held_out_sentences(setting.bundle.info, setting.bundle.languages, 2 * setting.sizes.spoken)
    return evaluate_recogniser(setting.transcriber, sentences, setting.panel, out=out)


PARTS = {
    "cloze": Part("Cloze, test stories", _cloze("test"), "cloze.md"),
    "cloze-unseen": Part("Cloze, unseen situations", _cloze("unseen"), "cloze.md"),
    "cloze-handwritten": Part("Cloze, hand-written items", _cloze("handwritten"), "cloze.md"),
    "cloze-written": Part("Cloze, written stories", _cloze("written"), "cloze.md"),
    "pairs": Part("Pairs", _pairs("lexical"), "pairs.md"),
    "grammar": Part("Pairs, grammar", _pairs("grammar"), "pairs.md"),
    "alignment": Part("Alignment", _alignment, "alignment.md"),
    "units": Part("Units", _units, "units.md"),
    "recogniser": Part("Recogniser", _recogniser, "recogniser.md"),
    "resynthesis": Part("Resynthesis", _resynthesis, "resynthesis.md"),
    "continuation": Part("Continuation", _continuation, "continuation.md", ("Transcripts",)),
}


def parts_of(provenance: Mapping[str, Any]) -> dict[str, Part]:
    """All parts, in the order of the report: first the headline, the written stories, where a bundle was trained on such."""
    return {"cloze-written": PARTS["cloze-written"], **PARTS} if learnt_written(provenance) else PARTS


def evaluate_all(
    bundle: Talking,
    *,
    out: Path,
    command: str = "",
    transcriber: Transcribing | None = None,
    deaf: str = "",
    sizes: Sizes | None = None,
    only: Sequence[str] = (),
    panel: Voices | None = None,
    cache: Path | None = None,
    workers: int = 1,
    parts: dict[str, Part] | None = None,
) -> dict[str, Any]:
    """Run every part (or those of `only`) that is not finished; write and return the common results.

    command: the command line, to be printed in the report. transcriber: a recogniser; where None, `deaf` says why.
    Raises TresseError for an unknown part, or where no part can be measured.
    """
    parts = parts or parts_of(bundle.info.get("provenance", {}))
    for name in only:
        if name not in parts:
            raise TresseError(f"there is no part {name}: choose from {', '.join(parts)}")
    chosen = {name: part for name, part in parts.items() if not only or name in only}
    telling = panel or panel_of(bundle)
    panel = panel or Voices.of(bundle.info, bundle.languages)
    setting = Setting(bundle, panel, telling, sizes or Sizes(), workers, cache or out / "speech", transcriber, deaf)
    identity: dict[str, Any] = {
        "bundle": files_hash(bundle.path),
        "sizes": asdict(setting.sizes),
        "transcribed": transcriber is not None,
        "code": code_hash(),
        "drawing": [TEMPERATURE, TOP_P],
        "voices": [fingerprints(voices, bundle.languages) for voices in (panel, telling)],
    }
    measured: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for number, (name, part) in enumerate(chosen.items(), start=1):
        mark = hashlib.sha256(json.dumps([name, identity]).encode()).hexdigest()[:16]
        folder = out / name
        done = _read(folder / "done.json")
        if (
            done is not None
            and done.get("fingerprint") == mark
            and (earlier := _read(folder / "results.json")) is not None
        ):
            complain(f"{name} ({number} of {len(chosen)}): finished before")
            measured[name] = earlier
            continue
        complain(f"{name} ({number} of {len(chosen)})")
        try:
            measured[name] = part.run(setting, folder)
        except MachineError:
            raise
        except TresseError as error:
            missing[name] = str(error)
            complain(f"{name}: not measured: {error}")
            continue
        write_json(folder / "done.json", {"fingerprint": mark})
    if not measured:
        raise TresseError(f"nothing could be measured; {next(iter(missing))}: {next(iter(missing.values()))}")
    about = _bundle(bundle) | {"files": identity["bundle"]}
    results = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "bundle": about,
        "machine": _machine(),
        "sizes": asdict(setting.sizes),
        "parts": measured,
        "not_measured": missing | ({"transcripts": deaf} if transcriber is None and deaf else {}),
    }
    write_json(out / "results.json", results)
    page = report(results, {name: part for name, part in chosen.items() if name in measured}, out)
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_html(out / "report.html", page, out, f"Evaluation of {about['name']}")
    return results


def report(results: dict[str, Any], parts: dict[str, Part], out: Path) -> str:
    """The common page: provenance, command, what was not measured, then a chapter for each part."""
    bundle = results["bundle"]
    page = [
        f"# Evaluation of {bundle['name']}",
        "",
        "| | |",
        "|---|---|",
        f"| Command | `{results['command'] or 'evaluate_all(...)'}` |",
        f"| Made | {results['made']} |",
        f"| Bundle | {bundle['name']}, languages {', '.join(bundle['languages'])}, files {bundle['files']} |",
        *(f"| {key.replace('_', ' ')} | {_plain(value)} |" for key, value in bundle["provenance"].items()),
        *(f"| {key} | {value} |" for key, value in results["machine"].items()),
        "",
    ]
    if results["not_measured"]:
        page += ["Not measured:", "", *(f"- {name}: {why}" for name, why in results["not_measured"].items()), ""]
    for name, part in parts.items():
        chapter = nested((out / name / part.page).read_text(encoding="utf-8"), name, part.without)
        first, _, rest = chapter.partition("\n")
        page += [f"## {part.title}" if first.startswith("## ") else first, rest]
    if "continuation" in parts:
        page += sample_lines(out / "continuation", "continuation")
    return "\n".join(page) + "\n"


SAMPLES = 2
"""Continuations of each language pair that can be played in the report."""


def sample_lines(folder: Path, name: str) -> list[str]:
    """A table of a few continuations to listen to: the first of each language pair, at the middle temperature."""
    rows = [json.loads(line) for line in (folder / "continuations.jsonl").read_text(encoding="utf-8").splitlines()]
    temperatures = sorted({row["temperature"] for row in rows})
    middle = temperatures[len(temperatures) // 2]
    lines = ["## Samples", "", "| Told > asked | Prompt | Transcript | |", "|---|---|---|---|"]
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        cell = (row["told"], row["asked"])
        if row["temperature"] == middle and row["seconds"] and counts.get(cell, 0) < SAMPLES:
            counts[cell] = counts.get(cell, 0) + 1
            said, prompt = ((row[key] or "-").replace("|", "/") for key in ("transcript", "prompt"))
            lines.append(f"| {cell[0]}>{cell[1]} | {prompt} | {said} | [listen]({name}/{row['audio']}) |")
    return lines


def code_hash() -> str:
    """A hash of the evaluation's code."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.rglob("*.py"), *here.glob("*.jsonl")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _bundle(bundle: Talking) -> dict[str, Any]:
    info = bundle.info
    return {
        "name": info.get("name", bundle.path.name),
        "languages": list(bundle.languages),
        "provenance": info.get("provenance", {}),
    }


def _machine() -> dict[str, str]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    names = ("torch", "transformers", "numpy")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, GPU: {gpu}",
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]),
    }


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {part:.0f}" if isinstance(part, float) else f"{key} {part}" for key, part in value.items()
        )
    return str(value)
