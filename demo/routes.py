"""The addresses that the page talks to, all below /tresse, and the socket for programs (`demo.realtime`).

Messages to the page come over one long answer (`listen`); what the page says goes in short requests, one after the other, so
that no proxy needs to know more than HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from demo import archive, recordings
from demo.benchmark import Benchmark
from demo.dialogue import Dialogue, Dialogues
from demo.exports import export
from demo.messages import GOODBYE, HEARTBEAT, outbox, voice_facts
from demo.realtime.socket import PATH, Realtime
from demo.requests import ACTIONS, Listen, Piece, Refused, Sound, Story, read
from demo.service import Service
from demo.sessions import UNEXPECTED, Session
from slm.audio import read_audio
from slm.errors import MENDS, TresseError, machine_fault

if TYPE_CHECKING:
    from slm.bundle import Bundle

log = logging.getLogger(__name__)

WEB = Path(__file__).with_name("web")
HEARTBEAT_SECONDS = 3.0
"""s after which something is sent to a silent page, so that proxies keep the line open, and the page knows that it is."""

PLOTS = {".png", ".svg"}
PRIVATE = {"Cache-Control": "no-store"}
"""For what one session alone may have."""

Handler = Callable[[Request], Awaitable[Response]]


def routes(service: Service) -> list[BaseRoute]:
    """For `launch(app_kwargs={"routes": ...})`."""
    pages = Pages(service)
    handlers: list[tuple[str, Handler, str]] = [
        ("health", pages.health, "GET"),
        ("listen", pages.listen, "GET"),
        ("hear", pages.hear, "POST"),
        ("voice", pages.voice, "POST"),
        ("dialogue/{language}.flac", pages.dialogue_sound, "GET"),
        ("dialogue/{language}", pages.dialogue, "GET"),
        ("do/{action}", pages.do, "POST"),
        ("upload", pages.upload, "POST"),
        ("example/{number:int}", pages.example, "POST"),
        ("example/{number:int}.flac", pages.example_sound, "GET"),
        ("sound", pages.sound, "GET"),
        ("story", pages.story, "GET"),
        ("plots/{name}", pages.plot, "GET"),
        ("benchmark", pages.benchmark, "GET"),
        ("benchmark/{name}.wav", pages.benchmark_sound, "GET"),
        ("recordings", pages.recordings, "GET"),
        ("recordings/{name}/{file}", pages.recording, "GET"),
    ]
    return [
        *(Route(f"/tresse/{path}", kindly(handler), methods=[method]) for path, handler, method in handlers),
        WebSocketRoute(PATH, Realtime(service).connect),
        Mount("/tresse/web", StaticFiles(directory=WEB)),
    ]


def kindly(handler: Handler) -> Handler:
    """Errors that the user can mend become their line, and status 400 or their own."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except TresseError as error:
            return JSONResponse({"problem": str(error)}, getattr(error, "status", 400))
        except OSError as error:  # a full disk, for one
            log.exception("a request failed")
            nameless = machine_fault(OSError(error.errno, "")) if error.errno in MENDS else None
            return JSONResponse({"problem": str(nameless or UNEXPECTED)}, 503)
        except ClientDisconnect:
            return Response(status_code=499)

    return answer


class Pages:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._benchmark = Benchmark(service.bundle)
        self._dialogues = Dialogues(service)

    def _session(self, request: Request) -> Session:
        return self.service.session(_asked(request))

    async def health(self, request: Request) -> Response:
        """Whether it lives, its languages, and how many are here."""
        service = self.service
        return JSONResponse(
            {
                "status": "ok",
                "languages": service.bundle.languages,
                "transcripts": bool(service.transcripts),
                "open": service.open_sessions,
                "replying": service.waiting_line.busy,
                "waiting": service.waiting_line.waiting,
            }
        )

    async def listen(self, request: Request) -> Response:
        """One long answer with all messages to a session."""
        address, asked = request.client.host if request.client else "", read(Listen, dict(request.query_params))
        session = self.service.open_session(_asked(request), address)
        queue, send = outbox(asyncio.get_running_loop())
        await asyncio.to_thread(session.attach, send, asked.page, asked.received)

        async def messages() -> AsyncIterator[bytes]:
            try:
                while not self.service.stopping.is_set():
                    try:
                        message = await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                    except TimeoutError:
                        message = HEARTBEAT
                    if message != GOODBYE:
                        yield message
            finally:
                session.detach(send)

        return StreamingResponse(
            messages(),
            media_type="application/octet-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def hear(self, request: Request) -> Response:
        """A piece of what the microphone hears: 16-bit samples at `rate` Hz."""
        session, piece = self._session(request), read(Piece, dict(request.query_params))
        samples = _samples(await request.body())
        flags = (piece.free is not None, piece.first is not None, piece.last is not None)
        await session.commands.run(session.hear, samples, piece.rate, *flags)
        return Response(status_code=204)

    async def voice(self, request: Request) -> Response:
        """What the model would make of a voice: 16-bit samples at `rate` Hz, of which nothing is kept."""
        session, rate = self._session(request), read(Piece, dict(request.query_params)).rate
        samples = _samples(await request.body())
        prompt = await session.commands.run(self.service.bundle.prompt, samples, rate)
        known = {"language": prompt.language, "in_domain": prompt.in_domain, **voice_facts(prompt)}
        return JSONResponse(known, headers=PRIVATE)

    async def _dialogue(self, request: Request) -> Dialogue:
        session, language = self._session(request), request.path_params["language"]
        return await session.commands.run(self._dialogues.get, language)

    async def dialogue(self, request: Request) -> Response:
        """Who says what in the example dialogue that begins in a language."""
        return JSONResponse({"parts": (await self._dialogue(request)).parts})

    async def dialogue_sound(self, request: Request) -> Response:
        """Its sound."""
        return Response((await self._dialogue(request)).sound, media_type="audio/flac")

    async def do(self, request: Request) -> Response:
        """An action of the page, by name."""
        session, action = self._session(request), request.path_params["action"]
        if action not in ACTIONS:
            raise Refused(f"the page asks for {action[:40]!r}, which is unknown: reload it")
        await session.commands.run(session.do, action, read(ACTIONS[action], await request.body()))
        return Response(status_code=204)

    async def upload(self, request: Request) -> Response:
        """A recording as a prompt."""
        session = self._session(request)
        name = Path(request.query_params.get("name", "")[:200]).name or "recording"
        with tempfile.TemporaryDirectory(prefix="tresse-") as folder:
            path = Path(folder) / "upload"
            with path.open("wb") as file:  # as it comes: many recordings at once do not fill the memory
                async for part in request.stream():
                    await asyncio.to_thread(file.write, part)
            try:
                waveform, rate = await asyncio.to_thread(read_audio, path, self.service.bundle.max_prompt_seconds)
            except TresseError as error:
                raise TresseError(str(error).replace(str(path), f"“{name}”")) from error
        await session.commands.run(session.hear_file, waveform, rate)
        return Response(status_code=204)

    def _example(self, request: Request) -> Path:
        examples, number = self.service.bundle.examples, request.path_params["number"]
        if not 0 <= number < len(examples):
            raise TresseError("there is no such example: reload the page")
        return examples[number].path

    async def example(self, request: Request) -> Response:
        """An example prompt as the prompt."""
        session, path = self._session(request), self._example(request)
        waveform, rate = await asyncio.to_thread(read_audio, path, self.service.bundle.max_prompt_seconds)
        await session.commands.run(session.hear_file, waveform, rate)
        return Response(status_code=204)

    async def example_sound(self, request: Request) -> Response:
        """The sound of an example prompt."""
        return FileResponse(self._example(request))

    async def sound(self, request: Request) -> Response:
        """The sound of a prompt or a reply, as WAV."""
        session, asked = self._session(request), read(Sound, dict(request.query_params))
        try:
            turn = session.conversation.turns[asked.turn]
            reply = None if asked.part == "prompt" else turn.replies[asked.part]
        except IndexError as error:
            raise TresseError("this turn has been taken back: reload the page") from error
        waveform, rate = (turn.waveform, turn.rate) if reply is None else (reply.waveform, reply.sample_rate)
        spoken = turn.prompt.language if reply is None else "-".join(reply.languages)
        name = f"tresse-{asked.turn + 1}-{'prompt' if reply is None else 'reply'}-{spoken}.wav"
        return _download(await asyncio.to_thread(archive.sound_bytes, waveform, rate), "audio/wav", name)

    async def story(self, request: Request) -> Response:
        """The whole story, in one of `demo.exports.FORMS`."""
        session, asked = self._session(request), read(Story, dict(request.query_params))
        story, bundle = session.conversation, self.service.bundle
        made = await asyncio.to_thread(export, story, bundle, asked.form, asked.interface)
        return _download(made.data, made.media_type, made.name)

    async def plot(self, request: Request) -> Response:
        """A picture of the evaluation."""
        path = plots(self.service.bundle).get(request.path_params["name"])
        if path is None:
            raise TresseError("there is no such plot: reload the page")
        return FileResponse(path)

    async def benchmark(self, request: Request) -> Response:
        """Benchmark items with their scores."""
        return JSONResponse(await asyncio.to_thread(self._benchmark.items))

    async def benchmark_sound(self, request: Request) -> Response:
        """The sound of a benchmark item."""
        name = request.path_params["name"]
        data = await asyncio.to_thread(archive.sound_bytes, *self._benchmark.sound(name))
        return _download(data, "audio/wav", f"benchmark-{name}.wav")

    def _folder(self) -> Path:
        if self.service.folder is None:
            raise TresseError("nothing is kept here: start the page with --recordings DIR")
        return self.service.folder

    async def recordings(self, request: Request) -> Response:
        """The session's turns that were kept; nobody else's."""
        folder, session, language = self._folder(), self._session(request), request.query_params.get("language")
        listed = await asyncio.to_thread(recordings.listing, folder, tuple(session.kept), language)
        return JSONResponse(listed, headers=PRIVATE)

    async def recording(self, request: Request) -> Response:
        """A file of a turn that was kept of the session."""
        folder, session = self._folder(), self._session(request)
        path = recordings.file_of(folder, tuple(session.kept), **request.path_params)
        return FileResponse(path, headers=PRIVATE)


def _samples(data: bytes) -> np.ndarray:
    """16-bit little-endian samples -> float32 [n]."""
    return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768


def _asked(request: Request) -> str:
    """The name of the session that a request is for."""
    return request.query_params.get("session") or request.query_params.get("tab", "")


def plots(bundle: Bundle) -> dict[str, Path]:
    """The pictures that came with a bundle, by name."""
    return {path.name: path for path in Path(bundle.path).rglob("*") if path.suffix in PLOTS}


def _download(data: bytes, media_type: str, name: str) -> Response:
    headers = {"Content-Disposition": f'inline; filename="{name}"', **PRIVATE}
    return Response(data, media_type=media_type, headers=headers)
