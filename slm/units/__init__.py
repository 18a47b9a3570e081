"""Unit encoders and the unit vocabulary: waveform -> Units -> tokens."""

from __future__ import annotations

import json
from pathlib import Path

from slm.errors import TresseError
from slm.units.sequence import UnitEncoder, Units, UnitStream, collapses
from slm.units.vocabulary import UnitVocabulary

__all__ = ["UnitEncoder", "UnitStream", "UnitVocabulary", "Units", "collapses", "load_encoder"]


def load_encoder(folder: Path) -> UnitEncoder:
    """The encoder that a bundle's units/config.json describes. Raises TresseError where it is missing or unknown."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TresseError(f"cannot read {folder / 'config.json'}: restore the bundle's files") from error
    if kind == "conv":
        from slm.units.conv import ConvUnitEncoder

        return ConvUnitEncoder.load(folder)
    if kind == "mimi":
        from slm.units.mimi import MimiUnitEncoder

        return MimiUnitEncoder.load(folder)
    if kind == "hubert":
        from slm.units.hubert import HubertUnitEncoder

        return HubertUnitEncoder.load(folder)
    raise TresseError(
        f"{folder / 'config.json'} asks for a unit encoder of type {kind!r}: known types are conv, mimi, hubert"
    )
