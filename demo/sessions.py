"""A session: one open page or program with its story, its microphone, the reply under way, and the messages that go to it.

Everything that takes time runs in threads; messages are handed to the event loop that writes them to the browser. A page
that is closed ends its work at once and is forgotten some minutes later, so that a lost connection does not cost the story.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from demo import keepsake, messages, recordings
from demo.anticipation import Anticipated, Asked, ReadPrompt
from demo.conversation import Conversation, Settings, Speaking, Turn
from demo.microphone import Microphone
from demo.requests import Choose, Nothing, SettingsAsked, Stop, problem_of
from demo.transcripts import LiveTranscript, Report, Words
from demo.waiting_line import BUSY, Commands, Left
from slm.errors import TresseError
from slm.settings import ReplySettings
from slm.turn_ends import PATIENCE, PatienceName, rule_of

if TYPE_CHECKING:
    from demo.service import Service
    from slm.continuation import Prompt
    from slm.speaking import Chunk

MESSAGE_INTERVAL = 0.06
"""s between two messages of sound: a reply that is made faster than it sounds costs few, larger ones."""
END_SECONDS = 10.0
"""s that a reply may take to end."""
NOBODY = "nobody listens to this story: open its page again"
UNKNOWN = "I know only those of the buttons, and may have misunderstood"


class Session:
    """See the module. Its methods may be called from any thread, one at a time."""

    def __init__(self, name: str, service: Service) -> None:
        self.name, self.service = name, service
        self.label = secrets.token_hex(4)
        """What its recordings say of it. The name lets whoever knows it in, and is written nowhere."""
        self.kept: deque[str] = deque(maxlen=recordings.MOST)
        """Its turns in the folder of recordings."""
        self.conversation = Conversation()
        self.settings = Settings()
        self.patience: PatienceName = PATIENCE
        """How soon a pause is taken for the end of a turn, hands-free."""
        self.left: float | None = time.monotonic()
        self._send: Callable[[messages.Message], None] | None = None
        self._page = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._number: int | None = None
        """The turn under way, or the latest; None while it is being understood."""
        self._microphone: Microphone | None = None
        self._anticipated: Anticipated | None = None
        """What was said until the pause under way, and the reply to it."""
        self._lock = threading.RLock()
        self.commands = Commands()
        self._wire = threading.RLock()
        """For what is sent, and to whom."""
        self._sent = messages.Sent()

    # ---- the connection ---------------------------------------------------------------------------------------------

    def attach(self, send: Callable[[messages.Message], None], page: str, received: int = 0) -> None:
        """A page or program is connected: it is told how things stand. page: the same when a lost connection is made again,
        "" where it cannot be; received: how many messages came over that one. The others are told, where they are still
        here. The connection before ends.

        Raises TresseError where another page listens under this name, as a duplicated browser tab does.
        """
        with self._wire:
            if self.left is None and page != self._page:
                raise TresseError("this story is open in another tab already")
            if self._send is not None:
                self._send(messages.GOODBYE)
            missed = self._sent.after(received) if page == self._page and received else None
            self._send, self._page, self.left = send, page, None
            working = self._thread is not None and self._thread.is_alive()
            hello = {"session": self.name, "resumed": missed is not None, "working": working}
            send(messages.Message({"type": "hello", **hello}))
            for message in missed or []:
                send(message)
            if missed is None:
                self._sent = messages.Sent()
                self.tell_story()

    def detach(self, send: Callable[[messages.Message], None]) -> None:
        """Who was connected is gone: the work ends."""
        with self._wire:
            if self._send == send:
                self._send, self.left, self._microphone = None, time.monotonic(), None
                self._stop.set()
                self.withdraw()

    def hang_up(self) -> None:
        """The server ends the connection, and the work for it."""
        self._stop.set()
        self.withdraw()
        if (send := self._send) is not None:
            send(messages.GOODBYE)

    def tell(self, kind: str, audio: bytes | None = None, **values: Any) -> None:
        """A message to who is connected, where anybody is: see `demo.messages`."""
        message = messages.Message({"type": kind, **values}, audio)
        with self._wire:
            if self._page:  # it may come back
                self._sent.add(message)
            if self._send is not None:
                self._send(message)

    def tell_story(self) -> None:
        """All turns, and how much of the context they take."""
        rate, turns = self.service.bundle.sample_rate, enumerate(self.conversation.turns)
        told = [messages.whole_turn(turn, number, rate) for number, turn in turns]
        self.tell("story", turns=told, title=keepsake.title(self.conversation))
        self.tell_context()

    def tell_context(self) -> None:
        """Tokens in use, tokens there are, sentences forgotten."""
        used, limit, forgotten = self.service.bundle.context_use(self.conversation.story, self.settings.max_seconds)
        self.tell("context", used=used, limit=limit, forgotten=forgotten)

    # ---- what the page can ask for ----------------------------------------------------------------------------------

    def do(self, action: str, asked: BaseModel) -> None:
        """An action of `demo.requests.ACTIONS`. Raises TresseError for one that cannot be done."""
        with self._lock:
            getattr(self, f"_do_{action}")(asked)

    def _do_settings(self, asked: SettingsAsked) -> None:
        self.settings = asked.settings().check(self.service.bundle)
        self.patience = asked.patience
        self.tell_context()

    def _do_stop(self, asked: Stop) -> None:
        """Stop, or barge-in: what was not heard is no part of the story. A later turn that is under way goes on."""
        turns, turn, part = self.conversation.turns, asked.turn, asked.part
        if turn is None or turn == self._number:
            self.end_work()
        if turn is not None and turn < len(turns) and part < len(turns[turn].replies):
            turns[turn].replies[part].cut(asked.heard)
            self.tell("done", **messages.reply_key(turn, part), **messages.reply_facts(turns[turn].replies[part]))
        self.tell_context()

    def _do_undo(self, asked: Nothing) -> None:
        self.end_work()
        self.conversation.undo()
        self.tell_story()

    def _do_new(self, asked: Nothing) -> None:
        self.end_work()
        self.conversation = Conversation()
        self.tell_story()

    def _do_choose(self, asked: Choose) -> None:
        self.conversation.choose(asked.turn, asked.part)
        self.tell_context()

    def _do_again(self, asked: Nothing) -> None:
        """Another reply to the last prompt. Until there is one the turn stays as it is."""
        self.end_work()
        if not (turns := self.conversation.turns):
            raise TresseError("there is no turn yet: begin a story first")
        last = turns[-1]
        self.answer(lambda before: (last.waveform, last.rate, last.prompt), replaces=last)

    def hear_file(self, waveform: np.ndarray, rate: int) -> None:
        """A prompt that is complete: float32 [samples] at `rate` Hz."""
        with self._lock:
            self.answer(lambda before: (waveform, rate, self.service.bundle.prompt(waveform, rate, before)))

    @property
    def listening(self) -> bool:
        """Whether a microphone is open."""
        return self._microphone is not None

    def open_microphone(self, rate: int, hands_free: bool) -> None:
        """Listen to a microphone of `rate` Hz. What was heard before and not answered is forgotten."""
        with self._lock:
            self.withdraw()
            self._microphone = Microphone(self, self.service.bundle, self.service.transcripts, rate, hands_free)

    def hear(self, samples: np.ndarray) -> None:
        """More of the microphone's sound: float32 [n]; where none is open nothing is done. Raises TresseError where it is
        too much, or cannot be answered: the microphone is closed then."""
        with self._lock:
            try:
                if self._microphone is not None:
                    self._microphone.push(samples, rule_of(self.patience))
            except TresseError:
                self._microphone = None
                raise

    def finish(self) -> None:
        """The microphone is closed; what was said into it by button is the prompt. Raises TresseError as `answer` does."""
        with self._lock:
            microphone, self._microphone = self._microphone, None
            self.withdraw()
            if microphone is not None:
                microphone.finish()

    def close_microphone(self) -> None:
        """Forget what was heard and not answered."""
        with self._lock:
            self._microphone = None
            self.withdraw()

    def interrupt(self) -> None:
        """Somebody speaks hands-free: the reply under way ends. What of it was heard the page says with `stop`."""
        self._stop.set()

    def anticipate(self, read: ReadPrompt) -> Prompt | None:
        """Somebody pauses hands-free: the prompt so far, None where it cannot be used. A reply to it is computed where that
        keeps nobody waiting; nothing is changed or said before `answer` is called with the same `read`."""
        self.withdraw()
        asked = Asked(read, self.conversation.story, self.settings)
        try:
            spoken = read(asked.story)
        except Left:
            return None
        line = self.service.waiting_line
        with self._wire:
            if self._send is not None:
                self._anticipated = Anticipated(self.service.bundle, line, asked, spoken)
        return spoken[2]

    def withdraw(self) -> None:
        """What was anticipated is not wanted."""
        anticipated, self._anticipated = self._anticipated, None
        if anticipated is not None:
            anticipated.withdraw()

    def end_work(self) -> None:
        """Wait until the reply under way, if any, has ended. Raises TresseError where that takes too long."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                raise TresseError(BUSY)

    # ---- replying ---------------------------------------------------------------------------------------------------

    def answer(self, read: ReadPrompt, transcript: LiveTranscript | None = None, replaces: Turn | None = None) -> None:
        """Understand a prompt and reply to it, in a thread of its own; with what was anticipated, where that is the same.
        read: called there with the story so far; replaces: the last turn, where its prompt gets another reply. Raises
        TresseError where nobody listens."""
        anticipated, self._anticipated = self._anticipated, None
        ready: Anticipated | None = None
        try:
            self.end_work()
            asked = Asked(read, self.conversation.story, self.settings)
            with self._wire:
                if self._send is None:
                    raise TresseError(NOBODY)
                if anticipated is not None and anticipated.asked.understood_alike(asked):
                    read = anticipated.read
                    ready = anticipated if anticipated.claim(asked) else None
                self._stop = stop = ready.stop if ready else threading.Event()
        finally:
            if anticipated is not None and ready is None:
                anticipated.withdraw()
        self._number = None
        arguments = (read, transcript, replaces, self.settings, stop, time.perf_counter(), ready)
        self._thread = threading.Thread(target=self._answer, args=arguments, daemon=True)
        self._thread.start()

    def _answer(
        self,
        read: ReadPrompt,
        transcript: LiveTranscript | None,
        replaces: Turn | None,
        settings: Settings,
        stop: threading.Event,
        started: float,
        ready: Anticipated | None,
    ) -> None:
        service, conversation = self.service, self.conversation
        turn = None
        try:
            turn = Turn(*read(conversation.story), settings)
            if replaces is not None:
                conversation.undo()
                self.tell_story()
            self._number = number = conversation.add(turn)
            self.tell("heard", turn=number, **messages.prompt_facts(turn, service.bundle.sample_rate))
            report = self._reporter(turn, number, "prompt")
            if transcript is not None:
                transcript.redirect(report)

            @functools.cache  # once
            def write_down() -> None:
                """The prompt's last words: the recogniser shares the processor with the reply, whose sound goes first."""
                if transcript is None:
                    service.transcripts.write_down(turn.waveform, turn.rate, report)
                else:
                    transcript.finish()

            def wait(position: int) -> None:
                self.tell("queue", turn=number, position=position)
                write_down()

            spoken = turn.prompt.language
            replies = ready.replies if ready else settings.replies(service.bundle.languages, spoken)
            with nullcontext() if ready else service.waiting_line.wait(stop, wait):
                for part, asked in enumerate(replies):
                    if not stop.is_set():
                        plain = Speaking(service.bundle, turn.prompt, asked, stop, started)
                        speaking = plain if ready is None or part else ready
                        self._speak(turn, number, part, asked, speaking, stop, write_down)
            write_down()
            if not turn.replies and not stop.is_set():
                self.tell("problem", turn=number, text="the model had nothing to add: try again, or begin differently")
            self.tell_context()
            self._record(turn, number)
        except Left:
            self.tell_context()
        except Exception as error:
            self.tell("problem", text=problem_of(error))
        finally:
            if ready is not None:
                ready.withdraw()
                ready.give_back()
            if replaces is not None and turn is not None and not turn.replies:
                conversation.turns[-1] = replaces  # it keeps the reply that it had
                self.tell_story()
            self.tell("idle")

    def _speak(
        self,
        turn: Turn,
        number: int,
        part: int,
        settings: ReplySettings,
        speaking: Speaking | Anticipated,
        stop: threading.Event,
        sounded: Callable[[], None],
    ) -> None:
        """One reply; sounded: called once its first sound is on its way."""
        bundle = self.service.bundle
        key, languages = messages.reply_key(number, part), settings.languages
        known = languages[0] if bundle.tags and len(languages) == 1 else None
        transcript = self.service.transcripts.listen(bundle.sample_rate, self._reporter(turn, number, part), known)
        self.tell("speaking", **key, languages=languages, seed=settings.seed)
        waiting: list[Chunk] = []
        sent = -MESSAGE_INTERVAL
        for chunk in speaking:
            waiting.append(chunk)
            if time.monotonic() - sent >= MESSAGE_INTERVAL:
                self.tell("audio", messages.pcm16(waiting), **key, **messages.units_of(waiting))
                waiting, sent = [], time.monotonic()
                sounded()
            if transcript:
                transcript.push(chunk.audio)
        if waiting and not stop.is_set():
            self.tell("audio", messages.pcm16(waiting), **key, **messages.units_of(waiting))
        if speaking.reply is not None:
            turn.replies.append(speaking.reply)
            if transcript:
                transcript.finish()
            self.tell("done", **key, **messages.reply_facts(speaking.reply))

    def _reporter(self, turn: Turn, number: int, part: int | str) -> Report:
        def report(words: Words) -> None:
            if part == "prompt":
                turn.written = words.segments
                if words.language and words.language not in self.service.bundle.languages:
                    self.tell(
                        "problem", turn=number, text=f"that sounded like the language {words.language}: {UNKNOWN}"
                    )
            elif int(part) < len(turn.replies):
                turn.replies[int(part)].written = words.segments
            key = messages.reply_key(number, part)
            title = keepsake.title(self.conversation)
            self.tell("transcript", text=words.text, complete=words.complete, title=title, **key)

        return report

    def _record(self, turn: Turn, number: int) -> None:
        if (folder := self.service.folder) is not None and turn.replies:
            kept = recordings.save(folder, turn, self.label, number, self.service.bundle.info)
            self.kept.append(kept.name)
            self.tell("saved", turn=number, name=kept.name)
