"""The page's functions for programs, through gradio_client. A client is one conversation:

    from gradio_client import Client, handle_file

    tresse = Client("http://127.0.0.1:7860")
    files, report = tresse.predict(handle_file("story.wav"), target="fr", api_name="/continue_story")
    files, report = tresse.predict(handle_file("more.wav"), target="both", api_name="/continue_story")
    print(report["replies"][0]["seconds"], files)           # a WAV for each reply
    print(tresse.predict(api_name="/undo_turn"))            # how many turns the story has now
    zipped = tresse.predict("zip", api_name="/save_story")  # wav, flac or zip
    tresse.predict(api_name="/new_story")

`GET /tresse/health` says whether the server lives and how busy it is.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gradio as gr

from demo import archive
from demo.conversation import SAME, Conversation, Settings, Speaking, Turn
from demo.sessions import Service
from demo.waiting_line import Left
from slm.audio import read_audio, write_wav
from slm.errors import TresseError, writing

MAX_CONVERSATIONS = 1000
AT_ONCE = 40
"""Requests that Gradio's queue lets through: the service's own line decides who is next."""


class Programs:
    """The conversations of the programs that are connected, by Gradio's session."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="tresse-programs-")

    def conversation(self, request: gr.Request) -> Conversation:
        """The conversation of this client; the oldest of very many are forgotten."""
        with self._lock:
            conversation = self._conversations.setdefault(str(request.session_hash), Conversation())
            self._conversations.move_to_end(str(request.session_hash))
            while len(self._conversations) > MAX_CONVERSATIONS:
                self._conversations.popitem(last=False)
            return conversation

    def _path(self, name: str) -> Path:
        with writing(self._folder.name):
            return Path(tempfile.mkdtemp(dir=self._folder.name)) / name

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
        bundle, conversation = self.service.bundle, self.conversation(request)
        try:
            if not prompt:
                raise TresseError("give an audio file with the beginning of a story")
            values: dict[str, Any] = {
                "target": target,
                "temperature": temperature,
                "top_p": top_p,
                "max_seconds": max_seconds,
            }
            values |= {"seed": None if seed is not None and seed < 0 else seed, "speaker": speaker}
            settings = Settings.parse({name: value for name, value in values.items() if value is not None}, bundle)
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
        said = {"language": spoken.language, "in_domain": spoken.in_domain}
        return files, {"turn": number + 1, **said, "replies": replies, "context": context}

    def undo_turn(self, request: gr.Request) -> int:
        """Take the last turn back; how many are left."""
        conversation = self.conversation(request)
        conversation.undo()
        return len(conversation.turns)

    def new_story(self, request: gr.Request) -> int:
        """Forget everything; 0 turns are left."""
        self.conversation(request).turns.clear()
        return 0

    def save_story(self, form: str, request: gr.Request) -> str:
        """The conversation as one file: wav, flac or zip."""
        conversation, bundle = self.conversation(request), self.service.bundle
        try:
            if form == "zip":
                data = archive.pack(conversation, bundle)
            elif form in ("wav", "flac"):
                data = archive.sound_bytes(archive.whole(conversation, bundle.sample_rate), bundle.sample_rate, form)
            else:
                raise TresseError(f"a story comes as wav, flac or zip, not as {form}")
            path = self._path(f"tresse-story.{form}")
            with writing(path):
                path.write_bytes(data)
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
