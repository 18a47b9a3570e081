"""The page as a Hugging Face Space: `python -m demo.space OUT` gathers the folder to push; there this file is app.py.

On a Space with ZeroGPU the replies are made within `spaces.GPU`, where that package is present.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.bundle import Bundle

PACKAGES = ("slm", "vocoder", "train", "demo")
FRONT_MATTER = """---
title: Tresse
emoji: 🥨
colorFrom: green
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: apache-2.0
short_description: Tell a story in two languages; a speech model goes on
---

Speak the beginning of a story in one language; a speech language model goes on with it, aloud, in another. No text is
involved. Programs talk to it through `gradio_client`: see `demo/programs.py`.
"""


def gather(out: Path) -> Path:
    """Write everything that a Space needs into the folder `out`: packages, bundle, requirements, README, app.py.

    Raises TresseError where the folder holds something already.
    """
    import gradio

    from slm.errors import TresseError

    root = Path(__file__).parents[1]
    if out.exists() and any(out.iterdir()):
        raise TresseError(f"{out} is not empty: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        shutil.copytree(root / package, out / package, ignore=shutil.ignore_patterns("__pycache__"))
    (out / "app.py").write_text('from demo.space import main\n\nif __name__ == "__main__":\n    main()\n')
    (out / "README.md").write_text(FRONT_MATTER.format(gradio=gradio.__version__), encoding="utf-8")
    (out / "requirements.txt").write_text("\n".join(_requirements(root)) + "\n")
    return out


def _requirements(root: Path) -> list[str]:
    """The project's own dependencies; the Space brings gradio."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [line for line in project["dependencies"] if not line.startswith("gradio")]


def on_gpu(bundle: Bundle) -> Bundle:
    """Replies within `spaces.GPU`, where there is one."""
    try:
        import spaces
    except ImportError:
        return bundle
    bundle.reply = spaces.GPU(bundle.reply)  # type: ignore[method-assign]
    return bundle


def main() -> None:
    """Serve the shipped bundle as a Space does: on every address, at the port that Gradio is told."""
    from demo.app import build_page, launch_options, open_service, share_cores
    from slm.bundle import Bundle

    share_cores()
    bundle = on_gpu(Bundle.load())
    bundle.warm_up()
    service = open_service(bundle)
    build_page(service).launch(**launch_options(service, hosts=[os.environ.get("SPACE_HOST", "localhost")]))


if __name__ == "__main__":
    print(gather(Path(sys.argv[1])))
