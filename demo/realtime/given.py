"""What a program may say over the socket: a model for every event, and the names of what does not apply here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from demo.limits import MAX_EVENT
from demo.requests import Seed, SettingsAsked, Text
from slm.errors import TresseError, one_line
from slm.schema import first_problem
from slm.settings import MAX_SECONDS, TEMPERATURE, TOP_P
from slm.turn_ends import PATIENCE, PatienceName

Rate = Literal[16000, 24000]
Name = Annotated[str, Field(max_length=200)]

UNUSED: dict[str, str] = {
    "tools": "the model calls no tools",
    "tool_choice": "the model calls no tools",
    "parallel_tool_calls": "the model calls no tools",
    "instructions": "the model reads no text: it goes on from what it hears",
    "prompt": "the model reads no text: it goes on from what it hears",
    "input": "the model goes on from the whole story: append audio, commit it",
    "conversation": "there is one story for each connection",
    "input_audio_transcription": "transcripts come by themselves, where the server has a recogniser",
    "input_audio_noise_reduction": "send the sound as it should be heard",
    "max_response_output_tokens": "give max_seconds",
    "max_output_tokens": "give max_seconds",
    "output_modalities": "a reply is always speech with its transcript",
    "audio": "give input_audio_rate, output_audio_rate, turn_detection and voice",
    "metadata": "nothing is kept beside the story",
    "speed": "the voice has one speed",
    "tracing": "nothing is reported to anybody",
    "truncation": "the oldest sentences are forgotten by themselves",
    "include": "there is nothing more to include",
    "model": "the server has one model",
}
"""Fields of the Realtime API that do not apply, and why. Their usual empty values are accepted."""
EMPTY: tuple[Any, ...] = (None, "", [], {}, "auto", "none", "inf")
OTHER_EVENTS: dict[str, str] = {
    "conversation.item.create": "the model reads no text, and hears only what is appended and committed",
    "conversation.item.delete": "a story goes on: begin a new connection",
    "conversation.item.retrieve": "items are not sent again",
    "output_audio_buffer.clear": "nothing waits here: sound is sent as it is made",
    "transcription_session.update": "there are no sessions that only transcribe",
}
"""Events of the Realtime API that do not apply, and why."""


class Wrong(TresseError):
    """An event that is answered with an `error` event. code: its kind; param: the field; kind: the type of the error."""

    def __init__(self, message: str, code: str, param: str | None = None, kind: str = "invalid_request_error") -> None:
        super().__init__(one_line(message))
        self.code, self.param, self.kind = code, param, kind


class Given(BaseModel):
    """Whatever a program sends: fields of other names are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TurnDetection(Given):
    """The server notices when somebody begins to speak and has finished."""

    type: Literal["server_vad"] = "server_vad"
    create_response: Literal[True] = True
    interrupt_response: Literal[True] = True


class ReplyGiven(Given):
    """How to reply. Temperature, voice and the last four as in `demo.requests.SettingsAsked`."""

    modalities: Annotated[list[Literal["audio", "text"]], Field(max_length=2)] = ["audio", "text"]
    voice: Text | None = None
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    target: Text = "same"
    seed: Seed | None = None
    max_seconds: float = MAX_SECONDS

    @field_validator("modalities")
    @classmethod
    def _speech(cls, values: list[str]) -> list[str]:
        if "audio" not in values:
            raise ValueError("text alone does not apply: a reply is speech, its text is the transcript")
        return values

    def settings(self) -> SettingsAsked:
        """The same, for a session of the page."""
        given = self.model_dump(include={"temperature", "top_p", "target", "seed", "max_seconds"})
        return SettingsAsked(**given, speaker=self.voice)


class SessionGiven(ReplyGiven):
    """`session.update`: rates in Hz; turn_detection: null where the program commits turns itself; patience: how soon a pause
    is taken for the end of a turn, otherwise."""

    input_audio_format: Literal["pcm16"] = "pcm16"
    output_audio_format: Literal["pcm16"] = "pcm16"
    input_audio_rate: Rate = 24000
    output_audio_rate: Rate = 24000
    turn_detection: TurnDetection | None = TurnDetection()
    patience: PatienceName = PATIENCE

    def settings(self) -> SettingsAsked:
        """See `ReplyGiven`."""
        return super().settings().model_copy(update={"patience": self.patience})


class _Event(Given):
    event_id: Name | None = None


class SessionUpdate(_Event):
    """Change the settings that are named."""

    type: Literal["session.update"]
    session: SessionGiven


class Append(_Event):
    """More sound, in base 64."""

    type: Literal["input_audio_buffer.append"]
    audio: Annotated[str, Field(max_length=MAX_EVENT)]


class Commit(_Event):
    """What was appended is a prompt, or a part of it."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    """Forget what was appended and not committed."""

    type: Literal["input_audio_buffer.clear"]


class Create(_Event):
    """Reply to what was committed."""

    type: Literal["response.create"]
    response: ReplyGiven | None = None


class Cancel(_Event):
    """End the reply under way."""

    type: Literal["response.cancel"]
    response_id: Name | None = None


class Truncate(_Event):
    """Of this reply only so many ms were heard."""

    type: Literal["conversation.item.truncate"]
    item_id: Name
    content_index: Literal[0] = 0
    audio_end_ms: Annotated[int, Field(ge=0, le=3_600_000)]


EVENTS: dict[str, type[_Event]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": Append,
    "input_audio_buffer.commit": Commit,
    "input_audio_buffer.clear": Clear,
    "response.create": Create,
    "response.cancel": Cancel,
    "conversation.item.truncate": Truncate,
}
SETTINGS = {"session.update": "session", "response.create": "response"}
"""Events with settings, and the field that holds them."""


def parse(values: dict[str, Any]) -> _Event:
    """The event that JSON describes. Raises Wrong, which names what is wrong or does not apply."""
    name = values.get("type")
    if not isinstance(name, str):
        raise Wrong("an event needs a type", "invalid_event", "type")
    if name not in EVENTS:
        reason = OTHER_EVENTS.get(name, f"send one of {', '.join(EVENTS)}")
        code = "not_supported" if name in OTHER_EVENTS else "unknown_event"
        raise Wrong(f"{name[:60]!r} does not apply: {reason}", code, "type")
    if (field := SETTINGS.get(name)) and isinstance(settings := values.get(field), dict):
        values = {**values, field: _without_unused(settings, field)}
    try:
        return EVENTS[name].model_validate(values)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise Wrong(f"{name}: {first_problem(error)}", "invalid_value", where) from error


def _without_unused(settings: dict[str, Any], field: str) -> dict[str, Any]:
    """The settings that apply. Raises Wrong for one that does not, and is not empty."""
    for name, reason in UNUSED.items():
        if name in settings and settings[name] not in EMPTY:
            raise Wrong(f"{field}.{name} does not apply: {reason}", "not_supported", f"{field}.{name}")
    return {name: value for name, value in settings.items() if name not in UNUSED}


def read_object(text: str) -> dict[str, Any]:
    """A message as JSON. Raises Wrong for anything but an object."""
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Wrong("this is no JSON", "invalid_json") from error
    if not isinstance(values, dict):
        raise Wrong("an event is a JSON object with a type", "invalid_event")
    return values
