"""A proxy between a browser and the server, whose connections can die without either end being told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit


class Proxy:
    """Listens on `url`; passes bytes on to another address."""

    def __init__(self, target: str) -> None:
        self._target = (str(urlsplit(target).hostname), int(urlsplit(target).port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._generation = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def kill_lines(self) -> None:
        """From now on every connection that is open swallows what is sent; new ones work."""
        self._generation += 1

    def close(self) -> None:
        """Close everything."""
        for end in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(*ends, self._generation), daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation:
                    to.sendall(data)
            if generation == self._generation:
                to.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy that passes on to this URL."""
    running = Proxy(target)
    try:
        yield running
    finally:
        running.close()
