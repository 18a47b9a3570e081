"""The addresses that the page talks to, all below /tresse, and the socket for programs (`demo.realtime`).

What is said goes over the page's socket (`demo.page`); files come and go by requests.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from demo import archive, recordings
from demo.benchmark import Benchmark
from demo.dialogue import Dialogue, Dialogues
from demo.exports import export
from demo.page import PageSocket, example
from demo.realtime.socket import Realtime
from demo.requests import Sound, Story, problem_of, read
from demo.service import Service
from demo.sessions import Session
from demo.sockets import REALTIME, TALK
from slm.audio import read_audio
from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle

WEB = Path(__file__).with_name("web")
PLOTS = {".png", ".svg"}
PRIVATE = {"Cache-Control": "no-store"}
"""For what one session alone may have."""

Handler = Callable[[Request], Awaitable[Response]]


def routes(service: Service) -> list[BaseRoute]:
    """For `launch(app_kwargs={"routes": ...})`."""
    pages = Pages(service)
    handlers: list[tuple[str, Handler, str]] = [
        ("health", pages.health, "GET"),
        ("ticket", pages.ticket, "GET"),
        ("dialogue/{language}.flac", pages.dialogue_sound, "GET"),
        ("dialogue/{language}", pages.dialogue, "GET"),
        ("upload", pages.upload, "POST"),
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
        WebSocketRoute(TALK, PageSocket(service).connect),
        WebSocketRoute(REALTIME, Realtime(service).connect),
        Mount("/tresse/web", StaticFiles(directory=WEB)),
    ]


def kindly(handler: Handler) -> Handler:
    """Errors that the user can mend become their line, and status 400 or their own."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except TresseError as error:
            return JSONResponse({"problem": str(error)}, getattr(error, "status", 400))
        except OSError as error:
            return JSONResponse({"problem": problem_of(error)}, 503)
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

    async def ticket(self, request: Request) -> Response:
        """What lets the page's socket in, where there is a password."""
        return JSONResponse({"ticket": self.service.tickets.draw()}, headers=PRIVATE)

    async def _dialogue(self, request: Request) -> Dialogue:
        session, language = self._session(request), request.path_params["language"]
        return await session.commands.run(self._dialogues.get, language)

    async def dialogue(self, request: Request) -> Response:
        """Who says what in the example dialogue that begins in a language."""
        return JSONResponse({"parts": (await self._dialogue(request)).parts})

    async def dialogue_sound(self, request: Request) -> Response:
        """Its sound."""
        return Response((await self._dialogue(request)).sound, media_type="audio/flac")

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

    async def example_sound(self, request: Request) -> Response:
        """The sound of an example prompt."""
        return FileResponse(example(self.service.bundle, request.path_params["number"]))

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
        made = await asyncio.to_thread(export, story, bundle, asked.form, asked.interface, asked.title)
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


def _asked(request: Request) -> str:
    """The name of the session that a request is for."""
    return request.query_params.get("session") or request.query_params.get("tab", "")


def plots(bundle: Bundle) -> dict[str, Path]:
    """The pictures that came with a bundle, by name."""
    return {path.name: path for path in Path(bundle.path).rglob("*") if path.suffix in PLOTS}


def _download(data: bytes, media_type: str, name: str) -> Response:
    headers = {"Content-Disposition": f'inline; filename="{name}"', **PRIVATE}
    return Response(data, media_type=media_type, headers=headers)
