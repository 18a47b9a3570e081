"""What the server says to a page: messages, and prompts, replies and units as JSON."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from demo.conversation import BOTH, Reply, Turn

if TYPE_CHECKING:
    from slm.continuation import Prompt
    from slm.speaking import Chunk

KEEP_SECONDS, KEEP_BYTES = 60.0, 4_000_000
"""Messages are kept for a page whose connection breaks: so long, and so many bytes of them."""


@dataclass(frozen=True)
class Message:
    """A frame of JSON: the values, of which "type" says what it is about. sound: 16-bit little-endian samples, in a frame
    of their own behind it; None: there is no such frame."""

    values: dict[str, Any]
    sound: bytes | None = None

    @cached_property
    def text(self) -> str:
        """The JSON."""
        return json.dumps(self.values, ensure_ascii=False)

    @property
    def frames(self) -> tuple[str | bytes, ...]:
        """What is sent."""
        return (self.text,) if self.sound is None else (self.text, self.sound)

    def __len__(self) -> int:
        return sum(map(len, self.frames))


GOODBYE = Message({"type": "goodbye"})
"""No message: the connection ends."""


def reply_key(turn: int, part: int | str) -> dict[str, Any]:
    """Which reply of which turn a message is about, both counted from 0; part "prompt": what was said."""
    return {"turn": turn, "part": part}


def reply_facts(reply: Reply) -> dict[str, Any]:
    """The figures of a reply."""
    return {
        "languages": reply.languages,
        "seed": reply.seed,
        "seconds": round(reply.seconds, 3),
        "first_audio_ms": round(1000 * reply.first_audio, 1),
        "real_time_factor": round(reply.real_time_factor, 4),
        "tokens": reply.tokens,
        "stopped": reply.stopped,
    }


def voice_facts(prompt: Prompt) -> dict[str, Any]:
    """How a prompt was recorded (`slm.voice_check.Voice`, null where that is not known), and the name of what would help."""
    return {"voice": prompt.voice and asdict(prompt.voice), "advice": prompt.advice}


def prompt_facts(turn: Turn, sample_rate: int) -> dict[str, Any]:
    """What was said in a turn; sample_rate: Hz of the replies."""
    prompt = turn.prompt
    sentences = [
        {"language": prompt.language, "ids": part.ids.tolist(), "lengths": part.run_lengths.tolist()}
        for part in prompt.sentences
    ]
    return {
        "language": prompt.language,
        "in_domain": prompt.in_domain,
        **voice_facts(prompt),
        "seconds": round(prompt.seconds, 3),
        "rate": sample_rate,
        "sentences": sentences,
        "text": turn.transcript,
    }


def whole_turn(turn: Turn, number: int, sample_rate: int) -> dict[str, Any]:
    """A turn with all its replies, for a page that shows it anew."""
    replies = [
        {**reply_facts(reply), **units_of(reply.heard_chunks()), "text": reply.transcript} for reply in turn.replies
    ]
    both = turn.settings.target == BOTH
    return {**prompt_facts(turn, sample_rate), "turn": number, "replies": replies, "chosen": turn.chosen, "both": both}


def pcm16(chunks: list[Chunk]) -> bytes:
    """Their sound as 16-bit little-endian samples."""
    audio = np.concatenate([chunk.audio for chunk in chunks])
    return np.round(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()


def units_of(chunks: list[Chunk]) -> dict[str, Any]:
    """Their units as JSON: ids, run lengths, the sentence each belongs to, the sentences' languages."""
    if not chunks:
        return {"ids": [], "lengths": [], "sentence": [], "spoken": []}
    return {
        "ids": np.concatenate([chunk.units.ids for chunk in chunks]).tolist(),
        "lengths": np.concatenate([chunk.units.run_lengths for chunk in chunks]).tolist(),
        "sentence": np.concatenate([chunk.sentence for chunk in chunks]).tolist(),
        "spoken": list(chunks[-1].languages),
    }


class Sent:
    """The latest messages to a page, so that it gets those that a broken connection swallowed."""

    def __init__(self) -> None:
        self._count = 0
        self._kept: deque[tuple[float, Message]] = deque()
        self._size = 0

    def add(self, message: Message) -> None:
        """A further message; the oldest are let go."""
        now = time.monotonic()
        self._count += 1
        self._kept.append((now, message))
        self._size += len(message)
        while self._kept and (self._size > KEEP_BYTES or now - self._kept[0][0] > KEEP_SECONDS):
            self._size -= len(self._kept.popleft()[1])

    def after(self, received: int) -> list[Message] | None:
        """The messages that follow the first `received` ones; None where not all of them are here any more."""
        missed = self._count - received
        if not 0 <= missed <= len(self._kept):
            return None
        return [message for _, message in self._kept][len(self._kept) - missed :]
