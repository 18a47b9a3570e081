"""The transcripts of a story as subtitles, SRT or WebVTT. Their times are those of the whole story in one file
(`archive.whole`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from demo.archive import GAP, check_begun
from demo.conversation import Conversation, Reply, Turn
from slm.errors import TresseError
from slm.transcribe import Segment

LONGEST = 84
"""Characters of a cue: two lines of a subtitle. A longer word stands alone."""


@dataclass(frozen=True)
class Cue:
    """What is said from `start` to `end`, in s; spoken: by a person, not by the model."""

    start: float
    end: float
    text: str
    language: str
    spoken: bool


def told(conversation: Conversation) -> list[Turn | Reply]:
    """Prompts (as their turns) and chosen replies, in order."""
    parts: list[Turn | Reply] = []
    for turn in conversation.turns:
        parts += [turn, *turn.replies[turn.chosen : turn.chosen + 1]]
    return parts


def _seconds(part: Turn | Reply) -> float:
    return part.seconds if isinstance(part, Reply) else len(part.waveform) / part.rate


def heard(part: Turn | Reply) -> list[Segment]:
    """What of a prompt or a reply is written down and was heard: a reply may have been cut."""
    length = _seconds(part)
    return [segment for segment in part.written if segment.text.strip() and segment.start < length]


def cues(conversation: Conversation) -> Iterator[Cue]:
    """The cues of prompts and chosen replies, in order; a long segment is several, each as long as its share of the text."""
    begin = 0.0
    for part in told(conversation):
        length = _seconds(part)
        for segment in heard(part):
            end = min(segment.end, length)
            texts = _pieces(segment.text)
            share = (end - segment.start) / sum(map(len, texts))
            start = begin + segment.start
            for text in texts:
                stop = start + share * len(text)
                yield Cue(start, stop, text, segment.language, isinstance(part, Turn))
                start = stop
        begin += length + GAP


def _pieces(text: str) -> list[str]:
    """The words of a text in pieces of at most LONGEST characters."""
    pieces: list[str] = []
    for word in text.split():
        if pieces and len(pieces[-1]) + 1 + len(word) <= LONGEST:
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    return pieces


def srt(conversation: Conversation) -> str:
    """SubRip: a dash where somebody else speaks. Raises TresseError where there is no transcript."""
    blocks: list[str] = []
    speaker: bool | None = None
    for number, cue in enumerate(_some(conversation), 1):
        dash = "- " if cue.spoken != speaker else ""
        blocks.append(f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{dash}{_plain(cue.text)}\n")
        speaker = cue.spoken
    return "\n".join(blocks)


def vtt(conversation: Conversation, you: str = "You", model: str = "Tresse") -> str:
    """WebVTT with speakers, who are called so, and languages. Raises TresseError where there is no transcript."""
    blocks = ["WEBVTT\n"]
    for cue in _some(conversation):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        line = f"<v {you if cue.spoken else model}><lang {cue.language}>{text}</lang>"
        blocks.append(f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{line}\n")
    return "\n".join(blocks)


def _some(conversation: Conversation) -> list[Cue]:
    check_begun(conversation)
    if not (found_cues := list(cues(conversation))):
        raise TresseError("this story has no transcript: wait a moment, or serve it with a recogniser (--asr)")
    return found_cues


def _plain(text: str) -> str:
    """Nothing in it is an arrow of times."""
    return text.replace("-->", "->")


def _time(seconds: float, point: str) -> str:
    """hours:minutes:seconds and ms."""
    total = round(1000 * seconds)
    return f"{total // 3_600_000:02d}:{total // 60_000 % 60:02d}:{total // 1000 % 60:02d}{point}{total % 1000:03d}"
