"""`python -m train.publish [--ablation] RESULTS BUNDLE [PAGE ...]`: see `train.publish.results`."""

from __future__ import annotations

import sys
from pathlib import Path

from slm.errors import TresseError
from train.publish.results import publish, publish_ablation


def main() -> None:
    """Command line: put the figures where people look; a mistake is one line and status 1."""
    ablation = "--ablation" in sys.argv
    paths = [Path(name) for name in sys.argv[1:] if name != "--ablation"]
    if len(paths) < 2:
        sys.exit("python -m train.publish [--ablation] RESULTS BUNDLE [PAGE ...]")
    try:
        (publish_ablation if ablation else publish)(paths[0], paths[1], paths[2:])
    except TresseError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
