"""The WebSocket of the page (`demo.sockets`), with the same sessions as that of programs.

What the page says is JSON, `{"id", "do", "values"}`, one of `demo.requests.COMMANDS`, each answered by
`{"type": "answer", "id", "problem"}`; and frames of 16-bit samples, which belong to the microphone that it opened last, each
answered by `{"type": "taken"}`: what is not taken yet tells the page to send fewer, larger ones. The server sends what
`demo.messages` says, and something at least every HEARTBEAT_SECONDS.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from demo.limits import MAX_FORM
from demo.messages import GOODBYE, Message, voice_facts
from demo.requests import COMMANDS, Command, Connect, Example, OpenMicrophone, Refused, problem_of, read
from demo.service import Service
from demo.sessions import Session
from demo.sockets import GOING, Frame, Outbox, converse
from slm.audio import read_audio
from slm.errors import TresseError

if TYPE_CHECKING:
    from pathlib import Path

    from slm.bundle import Bundle
    from slm.prompt_stream import PromptStream

HEARTBEAT_SECONDS = 3.0
"""s after which something is sent to a silent page, so that proxies keep the connection and the page knows of it."""
BEAT, TAKEN = json.dumps({"type": "beat"}), json.dumps({"type": "taken"})


class PageSocket:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def connect(self, websocket: WebSocket) -> None:
        """One connection, from its beginning to its end. The session stays: the page may come back."""
        address = websocket.client.host if websocket.client else ""
        outbox = Outbox(asyncio.get_running_loop(), BEAT, HEARTBEAT_SECONDS)
        try:
            asked = read(Connect, dict(websocket.query_params))
            session = self.service.open_session(asked.session, address)
            page = Page(session, outbox)
            await asyncio.to_thread(session.attach, page.tell, asked.page, asked.received)
        except TresseError as error:
            status = getattr(error, "status", 400)
            await websocket.send_denial_response(JSONResponse({"problem": str(error)}, status))
            return
        try:
            await websocket.accept()
            await converse(websocket, outbox, page.take)
        finally:
            session.detach(page.tell)


class Page:
    """One connection. Attach `tell` to the session, then give `take` each frame."""

    def __init__(self, session: Session, outbox: Outbox) -> None:
        self.session, self._outbox = session, outbox
        self._open: OpenMicrophone | None = None
        self._check: PromptStream | None = None
        """What is said for a check of the voice."""
        self._problem: str | None = None
        """Why the microphone is not heard any more."""

    def tell(self, message: Message) -> None:
        """A message of the session."""
        if message is GOODBYE:
            self._outbox.close(GOING, "this connection is over: connect again")
        else:
            self._outbox.put(*message.frames)

    async def take(self, frame: Frame) -> None:
        """A command or sound; either is answered."""
        if isinstance(frame, bytes):
            try:
                await self.session.commands.run(self._hear, frame)
            except Exception as error:
                await asyncio.to_thread(self._lose, problem_of(error))
            self._outbox.put(TAKEN)
            return
        number: int | None = None
        more: dict[str, Any] = {"problem": None}
        try:
            if len(frame) > MAX_FORM:
                raise Refused("this is too much at once: reload the page", 413)
            command = read(Command, frame.encode())
            number = command.id
            more |= await self.session.commands.run(self._do, command)
        except Exception as error:
            more["problem"] = problem_of(error)
        self._outbox.put(json.dumps({"type": "answer", "id": number, **more}, ensure_ascii=False))

    def _do(self, command: Command) -> dict[str, Any]:
        """What a command asks for, in a thread: more for its answer. Raises TresseError where it cannot be done."""
        if command.do not in COMMANDS:
            raise Refused(f"the page asks for {command.do[:40]!r}, which is unknown: reload it")
        asked: BaseModel = read(COMMANDS[command.do], command.values)
        if command.do == "finish":
            return self._finish()
        if isinstance(asked, OpenMicrophone):
            self._listen(asked)
        elif isinstance(asked, Example):
            bundle = self.session.service.bundle
            self.session.hear_file(*read_audio(example(bundle, asked.number), bundle.max_prompt_seconds))
        else:
            self.session.do(command.do, asked)
        return {}

    # ---- the microphone ---------------------------------------------------------------------------------------------

    def _listen(self, asked: OpenMicrophone) -> None:
        self._open, self._check, self._problem = asked, None, None
        if asked.use == "check":
            self.session.close_microphone()
            self._check = self.session.service.bundle.prompt_stream(asked.rate)
        else:
            self.session.open_microphone(asked.rate, asked.use == "free")

    def _hear(self, data: bytes) -> None:
        """Sound, in a thread. Raises TresseError where it is too much, or cannot be answered."""
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
        if self._check is not None:
            self._check.push(samples)
        elif self._open is not None:
            self.session.hear(samples)

    def _lose(self, problem: str) -> None:
        """Sound was not heard: hands-free the next turn is; otherwise the rest is not heard either."""
        if self._open is not None and self._open.use == "free":
            self.session.open_microphone(self._open.rate, True)
            self.session.tell("problem", text=problem)
        elif self._open is not None:
            self._open, self._check, self._problem = None, None, problem
            self.session.close_microphone()
            self.session.tell("unheard", text=problem)

    def _finish(self) -> dict[str, Any]:
        """All was said: a prompt is replied to; what is known of a voice that is checked is answered."""
        opened, check = self._open, self._check
        self._open = self._check = None
        if opened is None:
            raise TresseError(self._problem or "there is no open microphone: reload the page")
        if check is None:
            self.session.finish()
            return {}
        prompt = check.finish()
        return {"check": {"language": prompt.language, "in_domain": prompt.in_domain, **voice_facts(prompt)}}


def example(bundle: Bundle, number: int) -> Path:
    """The file of an example prompt. Raises TresseError where there is none of this number."""
    if not 0 <= number < len(bundle.examples):
        raise TresseError("there is no such example: reload the page")
    return bundle.examples[number].path
