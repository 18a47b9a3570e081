"""An example dialogue to hear before one speaks: the beginning of an example, and the model's reply in another language."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo import archive
from demo.conversation import Conversation, Settings, Speaking, Turn
from demo.waiting_line import Left
from slm.audio import read_audio
from slm.errors import TresseError

if TYPE_CHECKING:
    from demo.service import Service
    from slm.bundle import Example

SEED = 3
LONGEST = 6.0
"""s of the reply."""


@dataclass(frozen=True)
class Dialogue:
    """parts: who speaks ("you", "model"), in which language, and the words, "" where nobody wrote them down; sound: FLAC."""

    parts: tuple[dict[str, str], ...]
    sound: bytes


class Dialogues:
    """One dialogue for each language that it may begin in, made when somebody first asks, and kept."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._made: dict[str, Dialogue] = {}
        self._lock = threading.Lock()

    def get(self, language: str) -> Dialogue:
        """That which begins in this language, or in another one where there is no example in it.

        Raises TresseError where the bundle has no examples, nothing was said to one, or the server is too busy.
        """
        examples = self.service.bundle.examples
        if not examples:
            raise TresseError("this bundle has no example: begin a story yourself")
        example = next((example for example in examples if example.language == language), examples[0])
        with self._lock:
            if example.language not in self._made:
                self._made[example.language] = self._make(example)
            return self._made[example.language]

    def _make(self, example: Example) -> Dialogue:
        bundle, stop = self.service.bundle, self.service.stopping
        others = [language for language in bundle.languages if language != example.language]
        settings = Settings([*others, example.language][0], SEED, max_seconds=LONGEST)
        waveform, rate = read_audio(example.path, bundle.max_prompt_seconds)
        story = Conversation()
        turn = Turn(waveform, rate, bundle.prompt(waveform, rate), settings)
        story.add(turn)
        try:
            with self.service.waiting_line.wait(stop):
                (asked,) = settings.replies(bundle.languages, example.language)
                speaking = Speaking(bundle, turn.prompt, asked, stop)
                for _ in speaking:
                    pass
        except Left as error:
            raise TresseError("the server is stopping: ask again later") from error
        if speaking.reply is None:
            raise TresseError("the model had nothing to add: begin a story yourself")
        turn.replies.append(speaking.reply)
        self.service.transcripts.complete(story)
        parts = (
            {"who": "you", "language": example.language, "text": example.text},
            {"who": "model", "language": asked.languages[0], "text": speaking.reply.transcript},
        )
        waveform = archive.whole(story, bundle.sample_rate)
        return Dialogue(parts, archive.sound_bytes(waveform, bundle.sample_rate, "flac"))
