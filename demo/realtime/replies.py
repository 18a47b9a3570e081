"""A session's messages (`demo.messages`) as events of the Realtime API.

A turn of the story is one response, each of its replies an output item. `response.done` waits for the transcripts, which are
made beside the replies, but never longer than until somebody speaks or asks again.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from demo.messages import Message
from demo.realtime import told
from demo.realtime.given import Wrong
from slm.audio import ResampleStream


@dataclass
class Spoken:
    """One reply as it is sent."""

    item: told.Item
    resample: ResampleStream
    transcript: str = ""
    ended: bool = False
    written: bool = False
    """Whether its transcript is complete."""


@dataclass
class Turn:
    """One response as it is sent. number: the turn of the story; cut: somebody did not want to hear the rest."""

    number: int
    id: str
    replies: list[Spoken] = field(default_factory=list)
    problem: str | None = None
    cut: bool = False
    ended: bool = False


class Replies:
    """Give `take` to `Session.attach`; emit: called with each event, from any thread. rate: Hz of the model's sound."""

    def __init__(self, emit: Callable[[told.Event], None], rate: int, transcripts: bool) -> None:
        self._emit, self._rate, self._transcripts = emit, rate, transcripts
        self.output_rate = 24000
        """Hz of what is sent."""
        self.appended_ms = 0
        """How much the program has appended."""
        self.asked = False
        """Whether a response was asked for, and has not begun yet."""
        self._given_up = False
        """Whether the work that ends next is that of a prompt that could not be used."""
        self._turn: Turn | None = None
        self._prompt = told.new_id("item")
        """The prompt that is being said."""
        self._committed = False
        self._last: str | None = None
        """The latest item of the story."""
        self._prompts: dict[int, str] = {}
        """By turn of the story, the item of what was said."""
        self._places: dict[str, tuple[int, int]] = {}
        self._context: dict[str, int] | None = None
        self._lock = threading.RLock()

    @property
    def working(self) -> bool:
        """Whether a response is under way."""
        return self.asked or (self._turn is not None and not self._turn.ended)

    def place(self, item: str) -> tuple[int, int]:
        """Turn and part of a reply. Raises Wrong for anything else."""
        with self._lock:
            if item not in self._places:
                raise Wrong("only a reply can be truncated: give the item_id of its sound", "invalid_value", "item_id")
            return self._places[item]

    def commit(self) -> None:
        """The program has committed a prompt, or a further part of it."""
        with self._lock:
            self._committed = True
            self._emit(told.Committed(item_id=self._prompt, previous_item_id=self._last))

    def settle(self) -> None:
        """No longer wait for the transcripts of the last response."""
        with self._lock:
            if self._turn is not None and self._turn.ended:
                self._finish(self._turn)

    def take(self, message: Message) -> None:
        """A message of the session."""
        handler = getattr(self, f"_on_{message.values['type']}", None)
        if handler is not None:
            with self._lock:
                handler(message.values, message.sound)

    # ---- what somebody said -----------------------------------------------------------------------------------------

    def _on_speech(self, values: dict[str, Any], sound: bytes | None) -> None:
        self.settle()
        self._prompt = told.new_id("item")
        self._emit(told.SpeechStarted(audio_start_ms=self.appended_ms, item_id=self._prompt))

    def _on_pause(self, values: dict[str, Any], sound: bytes | None) -> None:
        self._emit(told.SpeechStopped(audio_end_ms=self.appended_ms, item_id=self._prompt))

    def _on_heard(self, values: dict[str, Any], sound: bytes | None) -> None:
        self.settle()
        if not self._committed:
            self.commit()
        item = told.Item(
            id=self._prompt,
            role="user",
            status="completed",
            content=[told.Part(type="input_audio")],
            languages=[values["language"]] if values["language"] else [],
            in_domain=values["in_domain"],
            advice=values["advice"],
            seconds=values["seconds"],
        )
        self._emit(told.ItemCreated(previous_item_id=self._last, item=item))
        self._last = item.id
        self._prompts[values["turn"]] = item.id
        self._turn = turn = Turn(values["turn"], told.new_id("resp"))
        self._begin_anew()
        self._emit(told.ResponseCreated(response=told.Response(id=turn.id)))

    def _begin_anew(self) -> None:
        """Nothing is asked for, and the next prompt is another item."""
        self.asked, self._committed, self._prompt = False, False, told.new_id("item")

    # ---- replies ----------------------------------------------------------------------------------------------------

    def _on_queue(self, values: dict[str, Any], sound: bytes | None) -> None:
        self._emit(told.Queued(position=values["position"]))

    def _on_speaking(self, values: dict[str, Any], sound: bytes | None) -> None:
        if (turn := self._current(values)) is None:
            return
        item = told.Item(
            id=told.new_id("item"),
            role="assistant",
            content=[told.Part(type="audio")],
            languages=values["languages"],
            seed=values["seed"],
        )
        self._places[item.id] = (turn.number, values["part"])
        self._last = item.id
        turn.replies.append(Spoken(item, ResampleStream(self._rate, self.output_rate)))
        index = len(turn.replies) - 1
        self._emit(told.ItemAdded(response_id=turn.id, output_index=index, item=item.model_copy()))

    def _on_audio(self, values: dict[str, Any], sound: bytes | None) -> None:
        turn, spoken, key = self._reply(values)
        if turn is not None and spoken is not None and sound is not None:
            samples = np.frombuffer(sound, "<i2").astype(np.float32) / 32767
            self._send(spoken.resample.push(samples), key)

    def _on_done(self, values: dict[str, Any], sound: bytes | None) -> None:
        turn, spoken, key = self._reply(values)
        if turn is None or spoken is None or spoken.ended:
            return  # a truncated reply is told again
        self._send(spoken.resample.flush(), key)
        spoken.ended = True
        turn.cut = turn.cut or values["stopped"]
        figures = ("seconds", "first_audio_ms", "real_time_factor", "tokens")
        known = {name: values[name] for name in figures}
        spoken.item = spoken.item.model_copy(
            update={"status": "incomplete" if values["stopped"] else "completed", **known}
        )
        self._emit(told.AudioDone(**key))

    def _on_transcript(self, values: dict[str, Any], sound: bytes | None) -> None:
        if values["part"] == "prompt":
            if values["complete"] and (prompt := self._prompts.get(values["turn"])) is not None:
                self._emit(told.Transcribed(item_id=prompt, transcript=values["text"]))
            return
        turn, spoken, key = self._reply(values)
        if turn is None or spoken is None or spoken.written:
            return
        text = values["text"]
        if more := text[len(spoken.transcript) :]:
            self._emit(told.TranscriptDelta(delta=more, **key))
        spoken.transcript = text
        if values["complete"]:
            spoken.written = True
            self._emit(told.TranscriptDone(transcript=text, **key))
            self._finish_when_written(turn)

    def _on_context(self, values: dict[str, Any], sound: bytes | None) -> None:
        self._context = {name: values[name] for name in ("used", "limit", "forgotten")}

    def _on_problem(self, values: dict[str, Any], sound: bytes | None) -> None:
        if self._turn is not None and not self._turn.ended:
            self._turn.problem = values["text"]
        elif self.asked:  # the prompt could not be used: who is told so may ask for the next response at once
            self._begin_anew()
            self._given_up = True
        problem = told.Problem(type="server_error", code="problem", message=values["text"])
        self._emit(told.Error(error=problem))

    def _on_idle(self, values: dict[str, Any], sound: bytes | None) -> None:
        if self._given_up:
            self._given_up = False
        elif self.asked:  # the prompt was dropped
            self._begin_anew()
        if (turn := self._turn) is not None and not turn.ended:
            turn.ended = True
            for index, spoken in enumerate(turn.replies):
                if not spoken.ended:  # it ended before any sound was made
                    spoken.ended = spoken.written = True
                    spoken.item = spoken.item.model_copy(update={"status": "incomplete"})
                    self._emit(told.AudioDone(response_id=turn.id, item_id=spoken.item.id, output_index=index))
            self._finish_when_written(turn)

    # ---- their ends -------------------------------------------------------------------------------------------------

    def _finish_when_written(self, turn: Turn) -> None:
        if turn.ended and (not self._transcripts or all(spoken.written for spoken in turn.replies)):
            self._finish(turn)

    def _finish(self, turn: Turn) -> None:
        """The last events of a response."""
        self._turn = None
        output = []
        for index, spoken in enumerate(turn.replies):
            if self._transcripts and not spoken.written:
                key: dict[str, Any] = {"response_id": turn.id, "item_id": spoken.item.id, "output_index": index}
                self._emit(told.TranscriptDone(transcript=spoken.transcript, **key))
            content = [told.Part(type="audio", transcript=spoken.transcript or None)]
            item = spoken.item.model_copy(update={"content": content})
            output.append(item)
            self._emit(told.ItemDone(response_id=turn.id, output_index=index, item=item))
        response = told.Response(id=turn.id, output=output, context=self._context, **_status(turn))
        self._emit(told.ResponseDone(response=response))

    def _current(self, values: dict[str, Any]) -> Turn | None:
        """The response that a message is about, where it is not over."""
        turn = self._turn
        return turn if turn is not None and turn.number == values["turn"] else None

    def _reply(self, values: dict[str, Any]) -> tuple[Turn | None, Spoken | None, dict[str, Any]]:
        """The reply that a message is about, and the fields that name it in an event."""
        turn, part = self._current(values), values["part"]
        if turn is None or not 0 <= part < len(turn.replies):
            return turn, None, {}
        spoken = turn.replies[part]
        return turn, spoken, {"response_id": turn.id, "item_id": spoken.item.id, "output_index": part}

    def _send(self, samples: np.ndarray, key: dict[str, Any]) -> None:
        if len(samples):
            sound = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
            self._emit(told.AudioDelta(delta=base64.b64encode(sound).decode(), **key))


def _status(turn: Turn) -> dict[str, Any]:
    """How a response ended."""
    sounded = any(spoken.item.seconds for spoken in turn.replies)
    if turn.problem and not sounded:
        error = {"type": "server_error", "code": "problem", "message": turn.problem}
        return {"status": "failed", "status_details": {"type": "failed", "error": error}}
    if turn.cut or not sounded:
        return {"status": "cancelled", "status_details": {"type": "cancelled"}}
    return {"status": "completed"}
