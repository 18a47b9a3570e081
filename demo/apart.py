"""A server in a process of its own, for benchmarks: it shares neither interpreter nor memory with who measures it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slm.errors import TresseError
from train.tools.launch import free_port

START_SECONDS = 300.0
ENDING_SECONDS = 20.0


@dataclass(frozen=True)
class Apart:
    """A server. url: its address; process: its id."""

    url: str
    process: int

    def memory(self) -> int | None:
        """Bytes that it has in memory now; None where the system does not say."""
        try:
            status = Path(f"/proc/{self.process}/status").read_text(encoding="ascii")
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), None)


def health(url: str) -> dict[str, Any]:
    """What a server says of itself. Raises TresseError where there is none at this address, or it does not say."""
    parts = urlsplit(url)
    try:
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=10)
        connection.request("GET", "/tresse/health")
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 200:
            return dict(said)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TresseError(f"no server answers at {url}: start it with tresse demo") from error
    raise TresseError(f"the server at {url} refuses: {said.get('problem', answer.status)}")


@contextmanager
def served_apart(bundle: str | None, device: str) -> Iterator[Apart]:
    """`tresse demo` on a free port of this machine, as long as it is needed. Raises TresseError where it does not start."""
    port = free_port()
    chosen = [] if bundle is None else ["--bundle", bundle]
    environment = {
        name: value for name, value in os.environ.items() if name != "TRESSE_AUTH"
    }  # talkers know no password
    command = [sys.executable, "-P", "-m", "demo.cli", "demo", "--port", str(port), "--device", device, *chosen]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").strip().splitlines()
                    raise TresseError(lines[-1].removeprefix("tresse: ") if lines else "the server did not start")
                time.sleep(0.2)
            yield Apart(url, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return bool(health(url))
    except TresseError:
        return False
