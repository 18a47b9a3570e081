"""Unit encoders and the unit vocabulary: waveform -> Units -> tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.errors import TresseError
from slm.schema import parse, read_json
from slm.units.sequence import UnitEncoder, Units, UnitStream, collapses
from slm.units.vocabulary import UnitVocabulary

__all__ = ["UnitEncoder", "UnitStream", "UnitVocabulary", "Units", "collapses", "load_encoder"]


def load_encoder(folder: Path) -> UnitEncoder:
    """The encoder that a bundle's units/config.json describes. Raises TresseError where it is missing or unknown."""
    path = folder / "config.json"
    kind = parse(dict[str, Any], read_json(path), path).get("type")
    if kind == "conv":
        from slm.units.conv import ConvUnitEncoder

        return ConvUnitEncoder.load(folder)
    if kind == "attention":
        from slm.units.attention import AttentionUnitEncoder

        return AttentionUnitEncoder.load(folder)
    if kind == "mimi":
        from slm.units.mimi import MimiUnitEncoder

        return MimiUnitEncoder.load(folder)
    if kind == "hubert":
        from slm.units.hubert import HubertUnitEncoder

        return HubertUnitEncoder.load(folder)
    known = "conv, attention, mimi, hubert"
    raise TresseError(f"{path} asks for a unit encoder of type {str(kind)[:40]!r}: known types are {known}")
