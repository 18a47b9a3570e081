"""Continuations as files: one prompt, or every audio file of a folder in every language asked for."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from demo.messages import voice_facts
from demo.prompts import (
    MANIFEST,
    PARTS,
    append_row,
    content_of,
    continuation_file,
    digest,
    find_prompts,
    finished,
    read_rows,
)
from slm.audio import read_audio, write_wav
from slm.bundle import Bundle
from slm.errors import MachineError, TresseError, writing
from slm.settings import ReplySettings

if TYPE_CHECKING:
    from slm.continuation import Prompt
    from slm.transcribe import Recogniser


def continue_file(bundle: Bundle, prompt: Path, out: Path, settings: ReplySettings) -> dict[str, Any]:
    """Continue an audio file and write the continuation as WAV; returns the report (see the README, `--json`).

    Raises TresseError for anything the user can mend; then nothing is written.
    """
    settings.check(bundle.languages, bundle.speakers, tags=bundle.tags)
    waveform, sample_rate = read_audio(prompt, bundle.max_prompt_seconds)
    bundle.warm_up()
    began = time.perf_counter()
    chunks = list(bundle.continue_speech(waveform, sample_rate, settings))
    took = time.perf_counter() - began
    if not chunks:
        raise TresseError("the model ended the story at once: try another --seed")
    audio = np.concatenate([chunk.audio for chunk in chunks])
    write_wav(out, audio, bundle.sample_rate)
    seconds = len(audio) / bundle.sample_rate
    return {
        **_prompt_fields(chunks[0].prompt),
        "seconds": round(seconds, 3),
        "language": "-".join(settings.languages) if bundle.tags else None,
        "tokens": chunks[-1].tokens,
        "time_to_first_audio_ms": round(chunks[0].elapsed * 1000, 1),
        "total_ms": round(took * 1000, 1),
        "real_time_factor": round(took / seconds, 4),
        "transcript": _transcript(bundle, audio, settings.languages[0] if bundle.tags else None),
        "seed": settings.seed,
    }


def _prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """What the reports say of a prompt."""
    return {
        "prompt_seconds": round(prompt.seconds, 3),
        "prompt_language": prompt.language or None,
        "prompt_in_domain": prompt.in_domain,
        **{f"prompt_{name}": value for name, value in voice_facts(prompt).items()},
    }


def _transcript(bundle: Bundle, audio: np.ndarray, language: str | None) -> str | None:
    """What was said, where the bundle has a recogniser."""
    transcriber = _transcriber(bundle)
    return transcriber.transcribe(audio, bundle.sample_rate, language).text if transcriber else None


_opened: dict[tuple[Path, tuple[str, ...]], Recogniser | None] = {}
"""The recogniser of the bundle that was asked last."""


def _transcriber(bundle: Bundle) -> Recogniser | None:
    from slm.recognisers import has_recogniser, open_recogniser

    key = (bundle.path, tuple(bundle.languages))
    if key not in _opened:
        _opened.clear()
        there = has_recogniser(bundle.path)
        _opened[key] = open_recogniser(bundle.path, bundle.languages, encoder=bundle.units) if there else None
    return _opened[key]


def continue_archive(bundle: Bundle, path: Path, out: Path, turn: int | None = None, part: int = 1) -> dict[str, Any]:
    """Make a reply of a conversation that the page saved (.zip) again, sample for sample, and write it as WAV.

    turn, part: counted from 1; None: the last turn. Returns the report. Raises TresseError as `archive.reproduce`.
    """
    from demo.archive import reproduce

    bundle.warm_up()
    reply = reproduce(bundle, path, turn, part)
    write_wav(out, reply.waveform, reply.sample_rate)
    return {
        **_prompt_fields(reply.chunks[0].prompt),
        "seconds": round(reply.seconds, 3),
        "language": "-".join(reply.languages) if bundle.tags else None,
        "tokens": reply.tokens,
        "time_to_first_audio_ms": round(1000 * reply.first_audio, 1),
        "real_time_factor": round(reply.real_time_factor, 4),
        "transcript": _transcript(bundle, reply.waveform, reply.languages[0] if bundle.tags else None),
        "seed": reply.seed,
    }


def record_folder(
    bundle: Bundle, prompts: Path, languages: list[str], out: Path, settings: ReplySettings
) -> tuple[int, int, int, int]:
    """Continue every audio file of a folder in every one of the languages, which replace those of `settings`; returns
    (continuations, prompts that failed, continuations of prompts that are out of domain, other files of the folder).

    out receives NAME.LANG.wav, in folders as the prompts are, and manifest.jsonl, a line a continuation. A continuation
    that the manifest lists with the same content of the prompt, the same bundle and settings is not made again. What an
    earlier run left in the folder is no prompt.

    Raises TresseError where there are no audio files, and MachineError where a disk is full or the like: that is no
    prompt's fault, so that no row says so, and the run goes on from there when it is started again.
    """
    if out.resolve() == prompts.resolve():
        raise TresseError(f"{out} holds the prompts: name another folder for the continuations (--out)")
    files, others = find_prompts(prompts, out)
    if not files:
        raise TresseError(f"{prompts} holds no audio files: give a folder of wav, flac, mp3, ogg, m4a or webm files")
    asked = {language: replace(settings, languages=(language,)) for language in languages}
    for reply in asked.values():
        reply.check(bundle.languages, bundle.speakers, tags=bundle.tags)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    manifest = out / MANIFEST
    rows = read_rows(manifest)
    listed = {name: value for name, value in asdict(settings).items() if name != "languages"}
    model = digest(*(bundle.path / part for part in PARTS))
    done = failed = out_of_domain = 0
    for path in files:
        name, content = path.relative_to(prompts), content_of(path)
        for language, reply in asked.items():
            file = continuation_file(name, language)
            key = {"prompt": name.as_posix(), "content": content, "language": language, "settings": listed}
            key["bundle"] = model
            made = finished(rows, key, out / file, file.as_posix())
            if made is not None:
                done += 1
                out_of_domain += not made["prompt_in_domain"]
                continue
            try:
                row = {**key, "file": file.as_posix(), **continue_file(bundle, path, out / file, reply)}
                row["sound"] = digest(out / file)
                done += 1
                out_of_domain += not row["prompt_in_domain"]
            except MachineError:
                raise
            except TresseError as error:
                row = {**key, "error": str(error)}
                failed += 1
            rows.append(row)
            append_row(manifest, row)
    return done, failed, out_of_domain, len(others)
