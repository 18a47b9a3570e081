"""What all sessions of a server share, and the sessions that it remembers."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo.password import Tickets
from demo.sessions import Session
from demo.transcripts import Transcripts
from demo.waiting_line import WaitingLine
from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle

KEEP_SECONDS = 900.0
"""s that the story of a closed page is kept."""
MAX_SESSIONS = 1000
NEW_A_MINUTE = 120
"""New sessions of one address in a minute: many people may share one."""


class Service:
    """What all sessions share: the bundle, the waiting line (`places` replies at once), the recogniser, and the folder of
    recordings."""

    def __init__(
        self, bundle: Bundle, places: int, folder: Path | None = None, transcripts: Transcripts | None = None
    ) -> None:
        self.bundle, self.folder, self.transcripts = bundle, folder, transcripts or Transcripts()
        self.waiting_line = WaitingLine(places)
        self.stopping = threading.Event()
        self.tickets = Tickets()
        self._sessions: dict[str, Session] = {}
        self._asked: dict[str, list[float]] = {}
        """By address, when it asked for new sessions in the last minute."""
        self._lock = threading.Lock()

    def session(self, name: str) -> Session:
        """The session of this name. Raises TresseError where the server gave out none of that name, or has forgotten it."""
        with self._lock:
            self._forget(MAX_SESSIONS)
            if name not in self._sessions:
                raise TresseError("the page has lost its session: reload it")
            return self._sessions[name]

    def open_session(self, name: str, address: str) -> Session:
        """The session of this name; where there is none a new one, under a name that the server draws.

        address: of who asks. Raises TresseError where it asks for too many in a minute, or too many people are here.
        """
        with self._lock:
            if name in self._sessions:
                return self._sessions[name]
            now = time.monotonic()
            asked = [moment for moment in self._asked.get(address, []) if now - moment < 60.0]
            if len(asked) >= NEW_A_MINUTE:
                raise TresseError("too many new pages from your address: please try again in a minute")
            self._forget(MAX_SESSIONS - 1)
            if len(self._sessions) >= MAX_SESSIONS:
                raise TresseError("too many people are here: please try again in a minute")
            self._asked = {key: moments for key, moments in self._asked.items() if now - moments[-1] < 60.0}
            self._asked[address] = [*asked, now]
            drawn = secrets.token_hex(16)
            self._sessions[drawn] = Session(drawn, self)
            return self._sessions[drawn]

    def _forget(self, most: int) -> None:
        """Forget sessions whose page is closed: those closed for long, and of more than `most` the longest closed."""
        now = time.monotonic()
        closed = sorted((session.left, name) for name, session in self._sessions.items() if session.left is not None)
        surplus = len(self._sessions) - most
        for number, (left, name) in enumerate(closed):
            if now - left > KEEP_SECONDS or number < surplus:
                del self._sessions[name]

    def drop(self, session: Session) -> None:
        """Forget a session at once: nobody can come back to it."""
        with self._lock:
            self._sessions.pop(session.name, None)

    def sessions(self) -> list[Session]:
        """All that are remembered."""
        with self._lock:
            self._forget(MAX_SESSIONS)
            return list(self._sessions.values())

    @property
    def open_sessions(self) -> int:
        """Sessions whose page is open now."""
        return sum(session.left is None for session in list(self._sessions.values()))
