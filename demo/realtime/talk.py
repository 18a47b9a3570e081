"""One connection: what the program sends becomes what a page would do, with the same session (`demo.sessions`)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import numpy as np

from demo.realtime import told
from demo.realtime.given import (
    Append,
    Cancel,
    Clear,
    Commit,
    Create,
    Given,
    SessionGiven,
    SessionUpdate,
    Truncate,
    Wrong,
    parse,
    read_object,
)
from demo.realtime.replies import Replies
from demo.requests import Stop, problem_of
from demo.sessions import Session
from slm.errors import TresseError


class Talk:
    """Attach `replies.take` to the session, then give `take` each message; emit: called with each event, from any thread."""

    def __init__(self, session: Session, emit: Callable[[told.Event], None]) -> None:
        self.session, self._emit = session, emit
        self.settings = SessionGiven()
        transcripts = bool(session.service.transcripts)
        self.replies = Replies(emit, session.service.bundle.sample_rate, transcripts)
        self._fresh = self._committed = 0
        """Samples that were appended: not committed, and committed but not replied to."""
        self._appended = 0.0
        """s that were appended since the connection stands."""

    def begin(self) -> None:
        """Say how things stand."""
        self._emit(told.SessionCreated(session=self._told()))

    def _told(self) -> told.SessionTold:
        bundle, session = self.session.service.bundle, self.session
        return told.SessionTold(
            **self.settings.model_dump(),
            id=session.name,
            model=str(bundle.info.get("name", "tresse")),
            languages=bundle.languages,
            voices=bundle.speakers,
            rate=bundle.sample_rate,
            transcripts=bool(session.service.transcripts),
        )

    async def take(self, text: str) -> None:
        """A message. Whatever is wrong with it becomes an `error` event."""
        name: str | None = None
        try:
            values = read_object(text)
            given_id = values.get("event_id")
            name = given_id[:200] if isinstance(given_id, str) else None
            event = parse(values)
            await self.session.commands.run(self._do, event)
        except Wrong as wrong:
            self._complain(name, wrong.kind, wrong.code, str(wrong), wrong.param)
        except TresseError as error:
            self._complain(name, "invalid_request_error", "refused", str(error))
        except Exception as error:
            self._complain(name, "server_error", "unexpected", problem_of(error))

    def _complain(self, name: str | None, kind: str, code: str, message: str, param: str | None = None) -> None:
        problem = told.Problem(type=kind, code=code, message=message, param=param, event_id=name)
        self._emit(told.Error(error=problem))

    def _do(self, event: Given) -> None:
        """What an event asks for, in a thread. Raises TresseError where it cannot be done."""
        handlers: dict[type[Given], Callable[[Any], None]] = {
            SessionUpdate: self._update,
            Append: self._append,
            Commit: self._commit,
            Clear: self._clear,
            Create: self._create,
            Cancel: self._cancel,
            Truncate: self._truncate,
        }
        handlers[type(event)](event)

    @property
    def _hands_free(self) -> bool:
        return self.settings.turn_detection is not None

    def _update(self, event: SessionUpdate) -> None:
        given = {name: getattr(event.session, name) for name in event.session.model_fields_set}
        settings = self.settings.model_copy(update=given)
        hearing = ("input_audio_rate", "turn_detection")
        changed = any(getattr(settings, name) != getattr(self.settings, name) for name in hearing)
        if changed and (self._fresh or self._committed) and not self._hands_free:
            message = "rate and turn detection cannot change within a prompt: clear it, or ask for a response"
            raise Wrong(message, "buffer_not_empty", "session")
        self.session.do("settings", settings.settings())
        if changed:
            self._forget()
        self.settings, self.replies.output_rate = settings, settings.output_audio_rate
        self._emit(told.SessionUpdated(session=self._told()))

    # ---- what is heard ----------------------------------------------------------------------------------------------

    def _append(self, event: Append) -> None:
        try:
            data = base64.b64decode(event.audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Wrong("the sound is not in base 64", "invalid_value", "audio") from error
        if len(data) % 2:
            raise Wrong("the sound is not of whole 16-bit samples", "invalid_value", "audio")
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        self._fresh += len(samples)
        self._appended += len(samples) / self.settings.input_audio_rate
        self.replies.appended_ms = round(1000 * self._appended)
        self._hear(samples)

    def _hear(self, samples: np.ndarray) -> None:
        """Raises TresseError where it is too much; what was appended is lost then."""
        if not self.session.listening:
            self.session.open_microphone(self.settings.input_audio_rate, self._hands_free)
        try:
            self.session.hear(samples)
        except TresseError:
            self._forget()
            raise

    def _forget(self) -> None:
        self.session.close_microphone()
        self._fresh = self._committed = 0

    def _commit(self, event: Commit) -> None:
        if self._hands_free:
            raise Wrong("turns are committed by themselves: set turn_detection to null", "not_supported", "type")
        if not self._fresh:
            raise Wrong("there is nothing to commit: append audio first", "input_audio_buffer_commit_empty")
        self._committed, self._fresh = self._committed + self._fresh, 0
        self.replies.commit()

    def _clear(self, event: Clear) -> None:
        if self._committed and self._fresh:
            message = "this goes on from what was committed, which cannot be cleared: ask for a response"
            raise Wrong(message, "buffer_committed", "type")
        if not self._committed:
            self._forget()
        self._emit(told.Cleared())

    # ---- replies ----------------------------------------------------------------------------------------------------

    def _create(self, event: Create) -> None:
        if self._hands_free:
            raise Wrong("replies begin by themselves: set turn_detection to null", "not_supported", "type")
        if self.replies.working:
            raise Wrong(
                "a response is under way: cancel it, or wait for its end", "conversation_already_has_active_response"
            )
        if not self._committed:
            raise Wrong("there is nothing to reply to: append audio and commit it first", "nothing_committed")
        session, own = self.session, self.session.settings
        if event.response is not None:
            given = {name: getattr(event.response, name) for name in event.response.model_fields_set}
            asked = self.settings.model_copy(update=given).settings()
            session.settings = asked.settings().check(session.service.bundle)
        self.replies.settle()
        self.replies.asked = True
        try:
            self._committed = self._fresh = 0
            session.finish()
        except BaseException:
            self.replies.asked = False
            raise
        finally:
            session.settings = own

    def _cancel(self, event: Cancel) -> None:
        if not self.replies.working:
            raise Wrong("there is no response to cancel", "response_cancel_not_active", "type")
        self.session.do("stop", Stop())

    def _truncate(self, event: Truncate) -> None:
        turn, part = self.replies.place(event.item_id)
        self.session.do("stop", Stop(turn=turn, part=part, heard=event.audio_end_ms / 1000))
        self._emit(told.Truncated(item_id=event.item_id, audio_end_ms=event.audio_end_ms))
