"""A conversation as files: one WAV or FLAC, or a zip from which any reply can be made again, sample for sample.

The zip holds conversation.json (units of everything that was said, languages, seeds, settings, transcripts, the bundle),
conversation.flac, and turn-01-prompt.wav, turn-01-reply-1-fr.wav ... `reproduce` (and `tresse continue STORY.zip`) reads it.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from demo.conversation import Conversation, Reply, Settings, Speaking, Turn
from slm.audio import resample
from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.continuation import Sentence

FORMAT = 3
"""Of the zip. 2 said `familiar` for `in_domain`; 1 said neither: all prompts were."""
GAP = 0.5
"""s of silence between prompt and reply."""
LISTING = "conversation.json"
MAX_BYTES = 200_000_000


def check_begun(conversation: Conversation) -> None:
    """Raises TresseError for an empty story."""
    if not conversation.turns:
        raise TresseError("there is nothing to download yet: begin a story first")


def whole(conversation: Conversation, sample_rate: int) -> np.ndarray:
    """Prompts and chosen replies one after the other: float32 [samples]. Raises TresseError for an empty story."""
    check_begun(conversation)
    gap = np.zeros(round(GAP * sample_rate), np.float32)
    parts: list[np.ndarray] = []
    for turn in conversation.turns:
        parts += [resample(turn.waveform, turn.rate, sample_rate), gap]
        if turn.chosen < len(turn.replies):
            parts += [turn.replies[turn.chosen].waveform, gap]
    return np.concatenate(parts[:-1])


def sound_bytes(waveform: np.ndarray, sample_rate: int, form: str = "wav") -> bytes:
    """float32 [samples] as a 16-bit WAV or FLAC file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), sample_rate, format=form.upper(), subtype="PCM_16")
    return buffer.getvalue()


def pack(conversation: Conversation, bundle: Bundle) -> bytes:
    """The zip. Raises TresseError for an empty story."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        sound = whole(conversation, bundle.sample_rate)
        archive.writestr("conversation.flac", sound_bytes(sound, bundle.sample_rate, "flac"))
        turns: list[dict[str, Any]] = []
        for number, turn in enumerate(conversation.turns, 1):
            prompt = f"turn-{number:02d}-prompt.wav"
            archive.writestr(prompt, sound_bytes(turn.waveform, turn.rate))
            replies = []
            for part, reply in enumerate(turn.replies, 1):
                name = f"turn-{number:02d}-reply-{part}-{'-'.join(reply.languages)}.wav"
                archive.writestr(name, sound_bytes(reply.waveform, reply.sample_rate))
                replies.append({"file": name, **describe_reply(reply)})
            turns.append({"prompt": {"file": prompt, **describe_prompt(turn, bundle)}, "replies": replies})
            turns[-1] |= {"settings": asdict(turn.settings), "chosen": turn.chosen}
        listing = {"format": FORMAT, "bundle": bundle.info, "frame_rate": bundle.units.frame_rate, "turns": turns}
        archive.writestr(LISTING, json.dumps(listing, ensure_ascii=False, indent=1))
    return buffer.getvalue()


def describe_prompt(turn: Turn, bundle: Bundle) -> dict[str, Any]:
    """A prompt as JSON, with as much of the story before it as the model could look back on."""
    prompt = turn.prompt
    forgotten = bundle.context_use(prompt.story, turn.settings.max_seconds)[2]
    return {
        "language": prompt.language,
        "seconds": prompt.seconds,
        "in_domain": prompt.in_domain,
        "transcript": turn.transcript,
        "before": _sentences(prompt.before[forgotten:]),
        "sentences": _sentences(prompt.said),
    }


def describe_reply(reply: Reply) -> dict[str, Any]:
    """A reply as JSON."""
    return {
        "languages": reply.languages,
        "seed": reply.seed,
        "samples": len(reply.waveform),
        "seconds": round(reply.seconds, 3),
        "stopped": reply.stopped,
        "tokens": reply.tokens,
        "first_audio_ms": round(1000 * reply.first_audio, 1),
        "real_time_factor": round(reply.real_time_factor, 4),
        "transcript": reply.transcript,
        "sentences": _sentences(reply.sentences),
    }


def reproduce(bundle: Bundle, path: Path, turn: int | None = None, part: int = 1) -> Reply:
    """Make a reply of a downloaded conversation again. turn, part: counted from 1; None: the last turn.

    Raises TresseError where the file is no such conversation, or holds no such reply, or was made with another bundle.
    """
    from slm.continuation import Prompt

    listing = read_listing(path)
    try:
        turns = listing["turns"]
        number = len(turns) if turn is None else turn
        if not 1 <= number <= len(turns) or not 1 <= part <= len(turns[number - 1]["replies"]):
            raise TresseError(f"{path} has no reply {part} in turn {number}: it has {len(turns)} turns")
        saved, rate = turns[number - 1], float(listing["frame_rate"])
        prompt, wanted = saved["prompt"], saved["replies"][part - 1]
        own = [sentence.units for sentence in _read(prompt["sentences"], rate)]
        before = tuple(_read(prompt["before"], rate))
        in_domain = bool(prompt.get("in_domain", prompt.get("familiar", True)))
        asked = Prompt(own, prompt["language"], float(prompt["seconds"]), before, in_domain)
        settings = Settings(**saved["settings"]).reply(tuple(wanted["languages"]), int(wanted["seed"]))
        samples = int(wanted["samples"])
        made_with = listing["bundle"].get("name")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TresseError(f"{path} is damaged ({error!r}): download the conversation again") from error
    if made_with != bundle.info.get("name") or rate != bundle.units.frame_rate:
        raise TresseError(f"{path} was made with the bundle {made_with}: name it with --bundle")
    speaking = Speaking(bundle, asked, settings, threading.Event())
    for _ in speaking:
        pass
    if speaking.reply is None:
        raise TresseError(f"{path} was made with another bundle: name it with --bundle")
    speaking.reply.cut(samples / bundle.sample_rate)
    return speaking.reply


def read_listing(path: Path) -> dict[str, Any]:
    """conversation.json of a zip. Raises TresseError where there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(LISTING).file_size > MAX_BYTES:
                raise TresseError(f"{path} is too large: download the conversation again")
            listing = json.loads(archive.read(LISTING))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TresseError(f"{path} is not a conversation of this page: give a .zip that it made") from error
    if not isinstance(listing, dict) or listing.get("format") not in range(1, FORMAT + 1):
        raise TresseError(f"{path} has another format than 1 to {FORMAT}: upgrade tresse to read it")
    return listing


def _sentences(story: Iterable[Sentence]) -> list[dict[str, Any]]:
    return [
        {
            "language": sentence.language,
            "units": sentence.units.ids.tolist(),
            "run_lengths": sentence.units.run_lengths.tolist(),
        }
        for sentence in story
    ]


def _read(values: list[dict[str, Any]], frame_rate: float) -> list[Sentence]:
    from slm.continuation import Sentence
    from slm.units import Units

    return [
        Sentence(
            Units(np.asarray(value["units"], np.int64), np.asarray(value["run_lengths"], np.int64), frame_rate),
            value["language"],
        )
        for value in values
    ]
