"""What a program is told over the socket: a model for every event."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from pydantic import BaseModel, Field

from demo.realtime.given import SessionGiven


def new_id(kind: str) -> str:
    """A name that nothing else has."""
    return f"{kind}_{secrets.token_hex(8)}"


class Event(BaseModel):
    """Every event has a name of its own."""

    event_id: str = Field(default_factory=lambda: new_id("event"))


class SessionTold(SessionGiven):
    """The settings as they are, and what the server is. rate: Hz of the model's own sound; transcripts: whether there is a
    recogniser."""

    id: str
    object: Literal["realtime.session"] = "realtime.session"
    model: str
    languages: list[str]
    voices: list[str]
    rate: int
    transcripts: bool


class Problem(BaseModel):
    """What is wrong; event_id: of the program's event, where it was one of these."""

    type: str
    code: str
    message: str
    param: str | None = None
    event_id: str | None = None


class Part(BaseModel):
    """The content of an item: speech."""

    type: Literal["input_audio", "audio"]
    transcript: str | None = None


class Item(BaseModel):
    """A prompt (role user) or a reply (role assistant). in_domain: of a prompt, whether the model can follow it; advice:
    what would help, a name of `slm.voice_check.ADVICE`. seconds, first_audio_ms, real_time_factor,
    tokens: of a reply that has ended."""

    id: str
    object: Literal["realtime.item"] = "realtime.item"
    type: Literal["message"] = "message"
    role: Literal["user", "assistant"]
    status: Literal["in_progress", "completed", "incomplete"] = "in_progress"
    content: list[Part]
    languages: list[str] = []
    in_domain: bool | None = None
    advice: str | None = None
    seed: int | None = None
    seconds: float | None = None
    first_audio_ms: float | None = None
    real_time_factor: float | None = None
    tokens: int | None = None


class Response(BaseModel):
    """The replies to one prompt. context: tokens of the story in use, tokens there are, sentences forgotten."""

    id: str
    object: Literal["realtime.response"] = "realtime.response"
    status: Literal["in_progress", "completed", "cancelled", "failed"] = "in_progress"
    status_details: dict[str, Any] | None = None
    output: list[Item] = []
    context: dict[str, int] | None = None


class _OfSession(Event):
    session: SessionTold


class SessionCreated(_OfSession):
    """The connection stands."""

    type: Literal["session.created"] = "session.created"


class SessionUpdated(_OfSession):
    """The settings were changed."""

    type: Literal["session.updated"] = "session.updated"


class Committed(Event):
    """What was appended is a prompt."""

    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"
    item_id: str
    previous_item_id: str | None


class Cleared(Event):
    """What was appended and not committed is forgotten."""

    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class SpeechStarted(Event):
    """Somebody speaks. audio_start_ms: how much had been appended when it was noticed."""

    type: Literal["input_audio_buffer.speech_started"] = "input_audio_buffer.speech_started"
    audio_start_ms: int
    item_id: str


class SpeechStopped(Event):
    """Somebody has finished."""

    type: Literal["input_audio_buffer.speech_stopped"] = "input_audio_buffer.speech_stopped"
    audio_end_ms: int
    item_id: str


class ItemCreated(Event):
    """A prompt was understood."""

    type: Literal["conversation.item.created"] = "conversation.item.created"
    previous_item_id: str | None
    item: Item


class Transcribed(Event):
    """What was said, as the recogniser understood it."""

    type: Literal["conversation.item.input_audio_transcription.completed"] = (
        "conversation.item.input_audio_transcription.completed"
    )
    item_id: str
    content_index: int = 0
    transcript: str


class Truncated(Event):
    """What of a reply was not heard is no part of the story."""

    type: Literal["conversation.item.truncated"] = "conversation.item.truncated"
    item_id: str
    content_index: int = 0
    audio_end_ms: int


class _OfResponse(Event):
    response: Response


class ResponseCreated(_OfResponse):
    """A reply is being made."""

    type: Literal["response.created"] = "response.created"


class ResponseDone(_OfResponse):
    """The last event of a response."""

    type: Literal["response.done"] = "response.done"


class _OfItem(Event):
    response_id: str
    output_index: int
    item: Item


class ItemAdded(_OfItem):
    """A reply in one language, or braided, begins: two of them where the target is `both`."""

    type: Literal["response.output_item.added"] = "response.output_item.added"


class ItemDone(_OfItem):
    """It has ended."""

    type: Literal["response.output_item.done"] = "response.output_item.done"


class _OfReply(Event):
    response_id: str
    item_id: str
    output_index: int
    content_index: int = 0


class AudioDelta(_OfReply):
    """More sound, in base 64."""

    type: Literal["response.audio.delta"] = "response.audio.delta"
    delta: str


class AudioDone(_OfReply):
    """All its sound was sent."""

    type: Literal["response.audio.done"] = "response.audio.done"


class TranscriptDelta(_OfReply):
    """More of its transcript."""

    type: Literal["response.audio_transcript.delta"] = "response.audio_transcript.delta"
    delta: str


class TranscriptDone(_OfReply):
    """The whole transcript."""

    type: Literal["response.audio_transcript.done"] = "response.audio_transcript.done"
    transcript: str


class Queued(Event):
    """Others are before this program: its place in the line, 1 is next. No event of the Realtime API."""

    type: Literal["tresse.queued"] = "tresse.queued"
    position: int


class Error(Event):
    """Something is wrong. The connection stays."""

    type: Literal["error"] = "error"
    error: Problem
