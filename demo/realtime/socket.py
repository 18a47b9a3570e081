"""The WebSocket at /v1/realtime: events in, events out (`demo.sockets`)."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from demo.messages import GOODBYE, Message
from demo.realtime.talk import Talk
from demo.service import Service
from demo.sockets import GOING, TEXT_ONLY, Frame, Outbox, converse
from slm.errors import TresseError


class Realtime:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def connect(self, websocket: WebSocket) -> None:
        """One connection, from its beginning to its end."""
        try:
            session = self.service.open_session("", websocket.client.host if websocket.client else "")
        except TresseError as error:
            await websocket.send_denial_response(JSONResponse({"problem": str(error)}, 503))
            return
        outbox = Outbox(asyncio.get_running_loop())
        talk = Talk(session, lambda event: outbox.put(event.model_dump_json()))

        def tell(message: Message) -> None:
            if message is GOODBYE:
                outbox.close(GOING, "the server is stopping")
            else:
                talk.replies.take(message)

        async def take(frame: Frame) -> None:
            if isinstance(frame, bytes):
                outbox.close(TEXT_ONLY, "send events as JSON text")
            else:
                await talk.take(frame)

        try:
            offered = websocket.scope.get("subprotocols", [])
            await websocket.accept("realtime" if "realtime" in offered else None)
            talk.begin()
            await asyncio.to_thread(session.attach, tell, "")
            await converse(websocket, outbox, take)
        finally:
            session.detach(tell)
            self.service.drop(session)
