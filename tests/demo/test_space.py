"""The folder for a Hugging Face Space is complete: it serves the page by itself."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from demo.space import gather
from slm.errors import TresseError


def test_the_space_serves_itself(tmp_path: Path) -> None:
    out = gather(tmp_path / "space")
    front = re.match(r"---\n(.*?)\n---\n", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert front
    assert "sdk: gradio" in front[1]
    assert "app_file: app.py" in front[1]
    assert any(line.startswith("torch>") for line in (out / "requirements.txt").read_text().splitlines())
    with pytest.raises(TresseError, match="not empty"):
        gather(out)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONPATH": str(out),
        "GRADIO_SERVER_NAME": "127.0.0.1",
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=out, env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                health = httpx.get(f"http://127.0.0.1:{port}/tresse/health", timeout=5).json()
                break
            except (httpx.HTTPError, ValueError):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
        assert health["status"] == "ok"
        assert health["languages"]
    finally:
        process.terminate()
        process.wait(20)
