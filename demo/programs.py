"""The page's functions for programs, through gradio_client. A client is one conversation:

    from gradio_client import Client, handle_file

    tresse = Client("http://127.0.0.1:7860")
    files, report = tresse.predict(handle_file("story.wav"), target="fr", api_name="/continue_story")
    files, report = tresse.predict(handle_file("more.wav"), target="both", api_name="/continue_story")
    print(report["replies"][0]["seconds"], files)           # a WAV for each reply
    print(tresse.predict(api_name="/undo_turn"))            # how many turns the story has now
    zipped = tresse.predict("zip", api_name="/save_story")  # or wav, flac, srt, vtt, html
    tresse.predict(api_name="/new_story")

`GET /tresse/health` says whether the server lives and how busy it is.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from demo import archive
from demo.conversation import SAME, Conversation, Settings, Speaking, Turn
from demo.exports import WRITTEN, export
from demo.messages import voice_facts
from demo.service import Service
from demo.waiting_line import Left
from slm.audio import read_audio, write_wav
from slm.errors import TresseError, writing

MAX_CONVERSATIONS = 1000
KEEP_STORIES = 3600.0
"""s that a program's story, and the files it was given, are kept after its last request."""
PATIENCE = 120.0
"""s that a request waits for the one before it."""
AT_ONCE = 40
"""Requests that Gradio's queue lets through: the service's own line decides who is next."""


@dataclass
class Story:
    """A program's conversation. asked: time.monotonic() of its last request; lock: of whoever changes it."""

    conversation: Conversation = field(default_factory=Conversation)
    asked: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Programs:
    """The conversations of the programs that are connected, by Gradio's session."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._stories: OrderedDict[str, Story] = OrderedDict()
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="tresse-programs-")
        self._written: deque[tuple[float, Path]] = deque()

    @contextlib.contextmanager
    def story(self, request: gr.Request) -> Iterator[Conversation]:
        """The conversation of this client, for it alone: its other requests wait. A request without a session has a story
        of its own, which is forgotten at once. Stories are forgotten as `forget` says.

        Raises gr.Error where the request before does not end, or all stories there is room for are in use.
        """
        name = str(request.session_hash or "")
        with self._lock:
            self.forget(MAX_CONVERSATIONS - (name not in self._stories))
            if name not in self._stories and len(self._stories) >= MAX_CONVERSATIONS:
                raise gr.Error("too many programs are here: please try again in a minute", print_exception=False)
            story = self._stories.setdefault(name, Story()) if name else Story()
            if name:
                self._stories.move_to_end(name)
            story.asked = time.monotonic()
        if not story.lock.acquire(timeout=PATIENCE):
            raise gr.Error("the request before this is still under way: wait for its end", print_exception=False)
        try:
            yield story.conversation
        finally:
            story.asked = time.monotonic()
            story.lock.release()

    def forget(self, most: int) -> None:
        """Forget stories that nobody asked about for KEEP_STORIES s, and of more than `most` those idle longest, never one
        in use; and delete files that were written as long ago."""
        now = time.monotonic()
        surplus = len(self._stories) - most
        for name, story in list(self._stories.items()):  # those idle longest come first
            if not story.lock.locked() and (surplus > 0 or now - story.asked > KEEP_STORIES):
                del self._stories[name]
                surplus -= 1
        while self._written and now - self._written[0][0] > KEEP_STORIES:
            shutil.rmtree(self._written.popleft()[1], ignore_errors=True)

    def _path(self, name: str) -> Path:
        with writing(self._folder.name):
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        with self._lock:
            self._written.append((time.monotonic(), folder))
        return folder / name

    def _shown(self, error: TresseError, prompt: str = "") -> gr.Error:
        """An error as the program gets it: without the folders of this machine."""
        text = str(error).replace(f"{self._folder.name}/", "").replace(self._folder.name, "the server")
        return gr.Error(text.replace(prompt, Path(prompt).name) if prompt else text, print_exception=False)

    def continue_story(
        self,
        prompt: str,
        target: str | None,
        seed: float | None,
        temperature: float | None,
        top_p: float | None,
        max_seconds: float | None,
        speaker: str | None,
        request: gr.Request,
    ) -> tuple[list[str], dict[str, Any]]:
        """One turn. prompt: an audio file; target: a language, same, both or braided; seed: -1 draws one. None, for any of
        them but the prompt, means the default."""
        values = {"target": target, "temperature": temperature, "top_p": top_p, "max_seconds": max_seconds}
        values |= {"seed": None if seed is None or seed < 0 else int(seed), "speaker": speaker or None}
        settings = Settings(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
        with self.story(request) as conversation:
            return self._continue(conversation, prompt, settings)

    def _continue(
        self, conversation: Conversation, prompt: str, settings: Settings
    ) -> tuple[list[str], dict[str, Any]]:
        bundle = self.service.bundle
        try:
            if not prompt:
                raise TresseError("give an audio file with the beginning of a story")
            settings.check(bundle)
            waveform, rate = read_audio(prompt, bundle.max_prompt_seconds)
            spoken = bundle.prompt(waveform, rate, conversation.story)
            turn = Turn(waveform, rate, spoken, settings)
            stop = self.service.stopping
            with self.service.waiting_line.wait(stop):
                for asked in settings.replies(bundle.languages, spoken.language):
                    speaking = Speaking(bundle, spoken, asked, stop)
                    for _ in speaking:
                        pass
                    if speaking.reply is not None:
                        turn.replies.append(speaking.reply)
            if not turn.replies:
                raise TresseError("the model had nothing to add: try another seed")
            files, number = [], len(conversation.turns)
            for part, reply in enumerate(turn.replies, 1):
                files.append(str(self._path(f"reply-{number + 1}-{part}-{'-'.join(reply.languages)}.wav")))
                write_wav(files[-1], reply.waveform, reply.sample_rate)
            conversation.add(turn)
        except Left as error:
            raise gr.Error("the server is stopping: ask again later", print_exception=False) from error
        except TresseError as error:
            raise self._shown(error, prompt or "") from error
        described = [archive.describe_reply(reply) for reply in turn.replies]
        replies = [{key: value for key, value in reply.items() if key != "sentences"} for reply in described]
        used, limit, forgotten = bundle.context_use(conversation.story, settings.max_seconds)
        context = {"used": used, "limit": limit, "forgotten": forgotten}
        said = {"language": spoken.language, "in_domain": spoken.in_domain, **voice_facts(spoken)}
        return files, {"turn": number + 1, **said, "replies": replies, "context": context}

    def undo_turn(self, request: gr.Request) -> int:
        """Take the last turn back; how many are left."""
        with self.story(request) as conversation:
            conversation.undo()
            return len(conversation.turns)

    def new_story(self, request: gr.Request) -> int:
        """Forget everything; 0 turns are left."""
        with self.story(request) as conversation:
            conversation.turns.clear()
            return 0

    def save_story(self, form: str, request: gr.Request) -> str:
        """The conversation as one file, in one of `demo.exports.FORMS`."""
        try:
            with self.story(request) as conversation:
                if form in WRITTEN:
                    self.service.transcripts.complete(conversation)
                made = export(conversation, self.service.bundle, form)
            path = self._path(made.name)
            with writing(path):
                path.write_bytes(made.data)
        except TresseError as error:
            raise self._shown(error) from error
        return str(path)


def add_programs(service: Service) -> None:
    """The endpoints, within a `gr.Blocks`. Their inputs and outputs are never shown."""
    programs = Programs(service)
    defaults = Settings()
    with gr.Row(visible=False):
        prompt = gr.Audio(type="filepath", label="prompt")
        target = gr.Textbox(SAME, label="target")
        seed = gr.Number(-1, label="seed", precision=0)
        temperature = gr.Number(defaults.temperature, label="temperature")
        top_p = gr.Number(defaults.top_p, label="top_p")
        max_seconds = gr.Number(defaults.max_seconds, label="max_seconds")
        speaker = gr.Textbox("", label="speaker")
        form = gr.Textbox("zip", label="form")
        files = gr.File(file_count="multiple", label="files")
        report = gr.JSON(label="report")
        turns = gr.Number(label="turns", precision=0)
        story = gr.File(label="story")
        inputs = [prompt, target, seed, temperature, top_p, max_seconds, speaker]
        gr.Button().click(
            programs.continue_story, inputs, [files, report], api_name="continue_story", concurrency_limit=AT_ONCE
        )
        gr.Button().click(programs.undo_turn, None, turns, api_name="undo_turn")
        gr.Button().click(programs.new_story, None, turns, api_name="new_story")
        gr.Button().click(programs.save_story, form, story, api_name="save_story")
