"""One open page: its story, its microphone, the reply under way, and the messages that go to it.

Everything that takes time runs in threads; messages are handed to the event loop that writes them to the browser. A page
that is closed ends its work at once and is forgotten KEPT s later, so that a lost connection does not cost the story.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from demo import recordings
from demo.conversation import BOTH, Conversation, Reply, Settings, Speaking, Turn
from demo.transcripts import Ears, Hearing
from demo.turn_taking import TurnTaking
from demo.waiting_line import Left, Line
from slm.audio import ResampleStream
from slm.errors import TresseError
from slm.voice_activity import RATE

if TYPE_CHECKING:
    from slm.bundle import Bundle, Chunk
    from slm.continuation import Prompt, Sentence
    from slm.prompt_stream import PromptStream

log = logging.getLogger(__name__)

KEPT = 900.0
"""s that the story of a closed page is kept."""
MAX_TABS = 1000
MESSAGE_INTERVAL = 0.06
"""s between two messages of sound: a reply that is made faster than it sounds costs few, larger ones."""
UNEXPECTED = "something went wrong here, not on your side: please try again; the server's log says more"
UNKNOWN = "I know only those of the buttons, and may have misunderstood"

Heard = tuple[np.ndarray, int, "Prompt"]
"""What somebody said: float32 [samples], their rate in Hz, and the prompt it makes."""


class Service:
    """What all pages share: the bundle, the waiting line, the ears, the folder of recordings, and the pages."""

    def __init__(self, bundle: Bundle, places: int, folder: Path | None = None, ears: Ears | None = None) -> None:
        self.bundle, self.folder, self.ears = bundle, folder, ears or Ears()
        self.line = Line(places)
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()

    def tab(self, name: str) -> Tab:
        """The page of this name; a new one where there is none. Raises TresseError where there are too many."""
        with self._lock:
            now = time.monotonic()
            for old in [key for key, tab in self._tabs.items() if tab.left is not None and now - tab.left > KEPT]:
                del self._tabs[old]
            if name not in self._tabs:
                if len(self._tabs) >= MAX_TABS:
                    raise TresseError("too many people are here: please try again in a minute")
                self._tabs[name] = Tab(name, self)
            return self._tabs[name]

    @property
    def open_tabs(self) -> int:
        """Pages that are open now."""
        return sum(tab.left is None for tab in list(self._tabs.values()))


class Tab:
    """See the module. Its methods may be called from any thread, one at a time."""

    def __init__(self, name: str, service: Service) -> None:
        self.name, self.service = name, service
        self.conversation = Conversation()
        self.settings = Settings()
        self.left: float | None = time.monotonic()
        self._send: Callable[[bytes], None] | None = None
        self._page = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._microphone: Microphone | None = None
        self._lock = threading.RLock()

    # ---- the connection ---------------------------------------------------------------------------------------------

    def attach(self, send: Callable[[bytes], None], page: str) -> None:
        """A browser listens: it is told how things stand. page: the same when a lost connection is made again.

        Raises TresseError where another page listens under this name, as a duplicated browser tab does.
        """
        if self.left is None and page != self._page:
            raise TresseError("this story is open in another tab already")
        self._send, self._page, self.left = send, page, None
        self.tell("hello", tab=self.name)
        self.tell_story()

    def detach(self, send: Callable[[bytes], None]) -> None:
        """The browser is gone: its work ends."""
        if self._send == send:
            self._send, self.left, self._microphone = None, time.monotonic(), None
            self._stop.set()

    def tell(self, kind: str, audio: bytes = b"", **values: Any) -> None:
        """A message to the browser: 4 bytes length of the JSON, 4 bytes length of the sound, both (little-endian)."""
        text = json.dumps({"type": kind, **values}, ensure_ascii=False).encode()
        if (send := self._send) is not None:
            send(struct.pack("<II", len(text), len(audio)) + text + audio)

    def tell_story(self) -> None:
        """All turns, and how much of the context they take."""
        self.tell("story", turns=[self._turn(number) for number in range(len(self.conversation.turns))])
        self.tell_context()

    def tell_context(self) -> None:
        """Tokens in use, tokens there are, sentences forgotten."""
        story, seconds = self.conversation.story, self.settings.max_seconds
        used, limit, forgotten = self.service.bundle.context_use(story, seconds)
        self.tell("context", used=used, limit=limit, forgotten=forgotten)

    # ---- what the page can ask for ----------------------------------------------------------------------------------

    def do(self, action: str, values: dict[str, Any]) -> None:
        """An action of the page by name. Raises TresseError for one that cannot be done."""
        actions = {
            "settings": self._change_settings,
            "stop": self._silenced,
            "undo": self._undo,
            "again": self._again,
            "new": self._new,
            "choose": self._choose,
        }
        if action not in actions:
            raise TresseError(f"the page asks for {action!r}, which is unknown: reload it")
        with self._lock:
            actions[action](values)

    def _change_settings(self, values: dict[str, Any]) -> None:
        self.settings = Settings.parse(values, self.service.bundle)
        self.tell_context()

    def _silenced(self, values: dict[str, Any]) -> None:
        """Stop, or barge-in: what was not heard is no part of the story."""
        self.end_work()
        turns = self.conversation.turns
        turn, part = values.get("turn"), values.get("part", 0)
        if isinstance(turn, int) and 0 <= turn < len(turns) and 0 <= part < len(turns[turn].replies):
            turns[turn].replies[part].cut(float(values.get("heard", 0.0)))
            self.tell("done", **self._place(turn, part), **self._facts(turns[turn].replies[part]))
        self.tell_context()

    def _undo(self, values: dict[str, Any]) -> None:
        self.end_work()
        self.conversation.undo()
        self.tell_story()

    def _new(self, values: dict[str, Any]) -> None:
        self.end_work()
        self.conversation = Conversation()
        self.tell_story()

    def _choose(self, values: dict[str, Any]) -> None:
        self.conversation.choose(int(values.get("turn", -1)), int(values.get("part", 0)))
        self.tell_context()

    def _again(self, values: dict[str, Any]) -> None:
        """Another reply to the last prompt."""
        self.end_work()
        if not self.conversation.turns:
            raise TresseError("there is no turn yet: begin a story first")
        last = self.conversation.turns.pop()
        self.tell_story()
        self.answer(lambda before: (last.waveform, last.rate, last.prompt))

    def hear_file(self, waveform: np.ndarray, rate: int) -> None:
        """A prompt that is complete: float32 [samples] at `rate` Hz."""
        self.end_work()
        self.answer(lambda before: (waveform, rate, self.service.bundle.prompt(waveform, rate, before)))

    def hear(self, samples: np.ndarray, rate: int, hands_free: bool, first: bool, last: bool) -> None:
        """A piece of what the microphone hears: float32 [n] at `rate` Hz. Raises TresseError where it is too much."""
        with self._lock:
            if first or self._microphone is None:
                self._microphone = Microphone(self, rate, hands_free)
            microphone = self._microphone
            try:
                microphone.push(samples)
                if last:
                    self._microphone = None
                    microphone.finish()
            except TresseError:
                self._microphone = None
                raise

    def end_work(self) -> None:
        """Wait until the reply under way, if any, has ended."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(10)

    # ---- replying ---------------------------------------------------------------------------------------------------

    def answer(self, hear: Callable[[tuple[Sentence, ...]], Heard], transcript: Hearing | None = None) -> None:
        """Understand a prompt and reply to it, in a thread of its own. hear: called there with the story so far."""
        self.end_work()
        self._stop = stop = threading.Event()
        if self._send is None:
            return
        arguments = (hear, transcript, self.settings, stop, time.perf_counter())
        self._thread = threading.Thread(target=self._answer, args=arguments, daemon=True)
        self._thread.start()

    def _answer(
        self,
        hear: Callable[[tuple[Sentence, ...]], Heard],
        transcript: Hearing | None,
        settings: Settings,
        stop: threading.Event,
        started: float,
    ) -> None:
        service, conversation = self.service, self.conversation
        try:
            turn = Turn(*hear(conversation.story), settings)
            number = conversation.add(turn)
            self.tell("heard", turn=number, **self._prompt(turn))
            report = self._reporter(turn, number, "prompt")
            if transcript is not None:
                transcript.redirect(report)

            @functools.cache  # once
            def write_down() -> None:
                """The prompt's last words: the recogniser shares the processor with the reply, whose sound goes first."""
                if transcript is None:
                    service.ears.write_down(turn.waveform, turn.rate, report)
                else:
                    transcript.finish()

            def position(place: int) -> None:
                self.tell("queue", turn=number, position=place)
                write_down()

            with service.line.wait(stop, position):
                for part, languages in enumerate(settings.plans(service.bundle.languages, turn.prompt.language)):
                    if not stop.is_set():
                        self._speak(turn, number, part, languages, stop, started, write_down)
            write_down()
            if not turn.replies and not stop.is_set():
                self.tell("problem", turn=number, text="the model had nothing to add: try again, or begin differently")
            self.tell_context()
            self._keep(turn, number)
        except Left:
            self.tell_context()
        except TresseError as error:
            self.tell("problem", text=str(error))
        except Exception:
            log.exception("a turn failed")
            self.tell("problem", text=UNEXPECTED)
        finally:
            self.tell("idle")

    def _speak(
        self,
        turn: Turn,
        number: int,
        part: int,
        languages: tuple[str, ...],
        stop: threading.Event,
        started: float,
        sounded: Callable[[], None],
    ) -> None:
        """One reply; sounded: called once its first sound is on its way."""
        bundle = self.service.bundle
        place = self._place(number, part)
        speaking = Speaking(bundle, turn.prompt, languages, turn.settings, stop, started)
        report = self._reporter(turn, number, part)
        hearing = self.service.ears.listen(bundle.sample_rate, report, languages[0] if len(languages) == 1 else None)
        self.tell("speaking", **place, languages=languages, seed=speaking.seed)
        waiting: list[Chunk] = []
        sent = -MESSAGE_INTERVAL
        for chunk in speaking:
            waiting.append(chunk)
            if time.monotonic() - sent >= MESSAGE_INTERVAL:
                self.tell("audio", pcm16(waiting), **place, **units_message(waiting))
                waiting, sent = [], time.monotonic()
                sounded()
            if hearing:
                hearing.push(chunk.audio)
        if waiting and not stop.is_set():
            self.tell("audio", pcm16(waiting), **place, **units_message(waiting))
        if speaking.reply is not None:
            turn.replies.append(speaking.reply)
            if hearing:
                hearing.finish()
            self.tell("done", **place, **self._facts(speaking.reply))

    def _reporter(self, turn: Turn, number: int, part: int | str) -> Callable[[str, str | None], None]:
        def report(text: str, language: str | None) -> None:
            if part == "prompt":
                turn.transcript = text
                if language and language not in self.service.bundle.languages:
                    self.tell("problem", turn=number, text=f"that sounded like the language {language}: {UNKNOWN}")
            elif int(part) < len(turn.replies):
                turn.replies[int(part)].transcript = text
            self.tell("transcript", turn=number, part=part, text=text)

        return report

    def _keep(self, turn: Turn, number: int) -> None:
        if self.service.folder is not None and turn.replies:
            kept = recordings.save(self.service.folder, turn, self.name[:8], number, self.service.bundle.info)
            self.tell("saved", turn=number, name=kept.name)

    # ---- messages ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _place(turn: int, part: int) -> dict[str, Any]:
        return {"turn": turn, "part": part}

    def _facts(self, reply: Reply) -> dict[str, Any]:
        return {
            "languages": reply.languages,
            "seed": reply.seed,
            "seconds": round(reply.seconds, 3),
            "first_audio_ms": round(1000 * reply.first_audio, 1),
            "real_time_factor": round(reply.real_time_factor, 4),
            "tokens": reply.tokens,
            "stopped": reply.stopped,
        }

    def _prompt(self, turn: Turn) -> dict[str, Any]:
        rate = self.service.bundle.sample_rate
        sentences = [
            {"language": turn.prompt.language, "ids": part.ids.tolist(), "lengths": part.run_lengths.tolist()}
            for part in turn.prompt.sentences
        ]
        return {
            "language": turn.prompt.language,
            "familiar": turn.prompt.familiar,
            "seconds": round(turn.prompt.seconds, 3),
            "rate": rate,
            "sentences": sentences,
            "text": turn.transcript,
        }

    def _turn(self, number: int) -> dict[str, Any]:
        turn = self.conversation.turns[number]
        replies = [
            {**self._facts(reply), **units_message(reply.heard_chunks()), "text": reply.transcript}
            for reply in turn.replies
        ]
        both = turn.settings.target == BOTH
        return {**self._prompt(turn), "turn": number, "replies": replies, "chosen": turn.chosen, "both": both}


class Microphone:
    """What one opened microphone hears: one prompt (push to talk), or turn after turn (hands-free)."""

    def __init__(self, tab: Tab, rate: int, hands_free: bool) -> None:
        self.tab, self.rate = tab, rate
        self._turns = TurnTaking() if hands_free else None
        self._resample = ResampleStream(rate, RATE)
        self._prompt: PromptStream | None = None
        self._transcript: Hearing | None = None
        if not hands_free:
            self._begin(rate)

    def push(self, samples: np.ndarray) -> None:
        """float32 [n] more. Raises TresseError where somebody speaks too long."""
        if self._turns is None:
            self._take(samples)
            return
        part, began, ended = self._turns.push(self._resample.push(samples))
        if began:  # the page falls silent and says how much of the reply was heard
            self.tab.tell("speech")
            self._begin(RATE)
        self._take(part)
        if ended:
            self.tab.tell("pause")
            self._answer(quiet=True)

    def finish(self) -> None:
        """The microphone is closed."""
        if self._turns is None:
            self._answer(quiet=False)

    def _begin(self, rate: int) -> None:
        self._prompt = self.tab.service.bundle.prompt_stream(rate)
        self._transcript = self.tab.service.ears.listen(rate, self._report)
        self.tab.tell("listening", ids=[])

    def _report(self, text: str, language: str | None) -> None:
        self.tab.tell("transcript", turn=None, part="prompt", text=text)

    def _take(self, samples: np.ndarray) -> None:
        if self._prompt is None or not len(samples):
            return
        try:
            frames = self._prompt.push(samples)
        except TresseError:
            self._prompt = None
            raise
        if self._transcript:
            self._transcript.push(samples)
        if len(frames):
            self.tab.tell("listening", ids=frames.tolist())

    def _answer(self, quiet: bool) -> None:
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            return
        bundle = self.tab.service.bundle

        def hear(before: tuple[Sentence, ...]) -> Heard:
            try:
                sentences, seconds = prompt.finish()
            except TresseError:
                if quiet:  # a cough, a door: hands-free, nobody asked for anything
                    raise Left from None
                raise
            return prompt.waveform, prompt.sample_rate, bundle.understand(sentences, seconds, before)

        self.tab.answer(hear, self._transcript)


def pcm16(chunks: list[Chunk]) -> bytes:
    """Their sound as 16-bit little-endian samples."""
    audio = np.concatenate([chunk.audio for chunk in chunks])
    return np.round(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()


def units_message(chunks: list[Chunk]) -> dict[str, Any]:
    """Their units as JSON: ids, run lengths, the sentence each belongs to, the sentences' languages."""
    if not chunks:
        return {"ids": [], "lengths": [], "sentence": [], "spoken": []}
    return {
        "ids": np.concatenate([chunk.units.ids for chunk in chunks]).tolist(),
        "lengths": np.concatenate([chunk.units.run_lengths for chunk in chunks]).tolist(),
        "sentence": np.concatenate([chunk.sentence for chunk in chunks]).tolist(),
        "spoken": list(chunks[-1].languages),
    }


def outbox(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Queue[bytes], Callable[[bytes], None]]:
    """A queue of this loop, and a function that any thread may put messages into it with."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    def send(message: bytes) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, message)

    return queue, send
