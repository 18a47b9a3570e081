"""What the page and programs may ask: the form of every request, checked before anything is done with it."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from demo.conversation import MAX_SEED, SAME, Settings
from slm.errors import MENDS, TresseError, machine_fault
from slm.schema import first_problem
from slm.settings import MAX_SECONDS, TEMPERATURE, TOP_P
from slm.turn_ends import PATIENCE, PatienceName

log = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)

UNEXPECTED = "something went wrong here, not on your side: please try again; the server's log says more"


class Refused(TresseError):
    """A request that is answered with this HTTP status and one line."""

    def __init__(self, problem: str, status: int = 422) -> None:
        super().__init__(problem)
        self.status = status


def _none_of_nothing(value: Any) -> Any:
    return None if value == "" else value


Text = Annotated[str, Field(max_length=100)]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
Number = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Asked(BaseModel):
    """Fields that are not known are ignored: a page may be newer than its server."""

    model_config = ConfigDict(allow_inf_nan=False)


class Nothing(_Asked):
    """An action without settings."""


class SettingsAsked(_Asked):
    """How to go on, from the page's fields: numbers may be written as text. patience: how soon a pause is taken for the end
    of a turn, hands-free."""

    target: Text = SAME
    seed: Annotated[Seed | None, BeforeValidator(_none_of_nothing)] = None
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    max_seconds: float = MAX_SECONDS
    speaker: Annotated[Text | None, BeforeValidator(_none_of_nothing)] = None
    patience: PatienceName = PATIENCE

    def settings(self) -> Settings:
        """The same, for a conversation."""
        return Settings(self.target, self.seed, self.temperature, self.top_p, self.max_seconds, self.speaker)


class Stop(_Asked):
    """Which reply is silenced (None: whatever sounds), and how many s of it were heard."""

    turn: Number | None = None
    part: Number = 0
    heard: Annotated[float, Field(ge=0, le=3600)] = 0.0


class Choose(_Asked):
    """The reply that the story goes on from."""

    turn: Number
    part: Number = 0


ACTIONS: dict[str, type[BaseModel]] = {
    "settings": SettingsAsked,
    "stop": Stop,
    "choose": Choose,
    "undo": Nothing,
    "again": Nothing,
    "new": Nothing,
}
"""What is done with a story, by name."""


class Example(_Asked):
    """An example prompt as the prompt."""

    number: Number


class OpenMicrophone(_Asked):
    """Sound follows, at `rate` Hz. use: a prompt up to the command "finish", turns hands-free, or a check of the voice up to
    "finish", of which nothing is kept."""

    rate: Annotated[int, Field(ge=8000, le=192_000)]
    use: Literal["prompt", "free", "check"] = "prompt"


COMMANDS: dict[str, type[BaseModel]] = {
    **ACTIONS,
    "example": Example,
    "microphone": OpenMicrophone,
    "finish": Nothing,
}
"""What the page says, by name."""


class Command(_Asked):
    """What the page says: the name of one of COMMANDS, and its values; the answer has the same id."""

    id: Annotated[int, Field(ge=0, le=10**12)]
    do: Text
    values: dict[str, Any] = {}


class Connect(_Asked):
    """Which page connects, to which session, and how many messages it got over the connection before."""

    session: str = ""
    page: Annotated[str, Field(min_length=1, max_length=100)]
    received: Annotated[int, Field(ge=0, le=10**12)] = 0


class Sound(_Asked):
    """A prompt or a reply to hear."""

    turn: Number
    part: Literal["prompt"] | Number


class Story(_Asked):
    """The form of a story, one of `demo.exports.FORMS`, the language of the page, and the story's title, "" for its own."""

    form: Literal["wav", "flac", "zip", "srt", "vtt", "html"] = "wav"
    interface: Text = "en"
    title: Text = ""


class UploadedFile(_Asked):
    """A file that a program uploaded before, as Gradio describes it."""

    path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]


class ContinueStory(SettingsAsked):
    """The inputs of /continue_story. A seed of -1 draws one; null, for any of them but the prompt, means the default."""

    prompt: UploadedFile | None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if name == "prompt" or value is not None}


class SaveStory(_Asked):
    """The input of /save_story."""

    form: Text


PROGRAMS: dict[str, tuple[type[BaseModel], tuple[str, ...]]] = {
    "continue_story": (
        ContinueStory,
        ("prompt", "target", "seed", "temperature", "top_p", "max_seconds", "speaker"),
    ),
    "save_story": (SaveStory, ("form",)),
    "undo_turn": (Nothing, ()),
    "new_story": (Nothing, ()),
}
"""The functions for programs: their inputs' form, and the order in which these come."""


class Call(_Asked):
    """What Gradio's interface is sent: a function by number or name, and its inputs."""

    data: Annotated[list[Any], Field(max_length=20)]
    fn_index: Number | None = None
    session_hash: Token | None = None
    event_id: Token | None = None
    trigger_id: Number | None = None
    simple_format: bool = False
    batched: Literal[False] | None = None


class Cancel(_Asked):
    """A call that is not wanted any more."""

    session_hash: Token
    fn_index: Number
    event_id: Token


class Reset(_Asked):
    """The same, as older clients say it."""

    event_id: Token


def read(kind: type[T], values: bytes | dict[str, Any]) -> T:
    """A request's body (JSON, nothing for {}) or its query. Raises Refused for one of another form."""
    try:
        return kind.model_validate_json(values or b"{}") if isinstance(values, bytes) else kind.model_validate(values)
    except ValidationError as error:
        raise Refused(f"this request has not the form it should have ({first_problem(error)})") from error


def read_call(kind: type[Call], body: bytes, name: str | None) -> None:
    """Check a call of one of PROGRAMS. Raises Refused for another one, or inputs of another form."""
    call = read(kind, body)
    if name not in PROGRAMS:
        raise Refused(f"there is no such function: call one of {', '.join(PROGRAMS)}")
    model, fields = PROGRAMS[name]
    if len(call.data) != len(fields):
        raise Refused(f"{name} takes {len(fields)} inputs, not {len(call.data)}")
    read(model, dict(zip(fields, call.data, strict=True)))


def function_number(body: bytes) -> int | None:
    """The number of the function that a call names, if it can be read."""
    try:
        values = from_json(body)
    except ValueError:
        return None
    number = values.get("fn_index") if isinstance(values, dict) else None
    return number if isinstance(number, int) else None


def problem_of(error: Exception) -> str:
    """The line for who asked, called where it is caught. What is not the asker's to mend is logged."""
    if isinstance(error, TresseError):
        return str(error)
    log.exception("a request failed")
    if isinstance(error, OSError) and error.errno in MENDS:  # a full disk, for one
        return str(machine_fault(OSError(error.errno, "")))  # without the name of the file
    return UNEXPECTED
