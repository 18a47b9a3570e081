"""The bundle that most tests talk with: small, and quick to load."""

from __future__ import annotations

from slm.model import BUNDLES

BRAID = BUNDLES / "braid"
