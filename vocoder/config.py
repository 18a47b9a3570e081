"""What a vocoder is made of: sizes, rates, speakers and languages, kept as config.json beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

MAX_BYTES = 1_000_000
"""Of config.json."""
Width = Annotated[int, Field(strict=True, ge=1, le=16_384)]
Rate = Annotated[int, Field(strict=True, ge=1000, le=384_000)]
Names = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=10_000)]
Dilations = Annotated[list[Annotated[int, Field(strict=True, ge=1, le=4096)]], Field(min_length=1, max_length=256)]


@dataclass(frozen=True)
class VocoderConfig:
    """All that is needed to build a `Vocoder`.

    Units come at `frame_rate` Hz; each unit frame is repeated to the rate of the head, `sample_rate / hop_length` Hz,
    which must be a whole multiple of it. `dilations` holds one entry per backbone block (the dilation of its causal
    depthwise convolution). `lookahead` is the look-ahead of the network in head frames. A unit is spoken once the
    `units_ahead` units behind it are known, or its sentence has ended. Run lengths above `max_run_length` unit frames are
    never predicted. The bounds are those of files (`load`), where a size is believed
    before there is memory for it.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    codebook_size: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    frame_rate: Annotated[float, Field(strict=True, ge=1, le=1000)]
    sample_rate: Rate
    speakers: Names
    languages: Names
    dim: Width = 256
    intermediate_dim: Width = 640
    dilations: Dilations = field(default_factory=lambda: [1, 1, 1, 2, 2, 2])
    kernel_size: Annotated[int, Field(strict=True, ge=1, le=127)] = 7
    lookahead: Annotated[int, Field(strict=True, ge=0)] = 4
    n_fft: Annotated[int, Field(strict=True, ge=2, le=16_384)] = 640
    hop_length: Annotated[int, Field(strict=True, ge=1, le=8192)] = 160
    prosody_dim: Width = 128
    prosody_dilations: Dilations = field(default_factory=lambda: [1, 2, 4, 8])
    max_run_length: Annotated[int, Field(strict=True, ge=1, le=1000)] = 32
    units_ahead: Annotated[int, Field(strict=True, ge=0, le=16)] = 0

    def __post_init__(self) -> None:
        for name, values in (("speakers", self.speakers), ("languages", self.languages)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be a list of at least one name, each once, not {values}")
        if self.codebook_size < 1 or self.max_run_length < 1:
            raise ValueError("codebook_size and max_run_length must be at least 1")
        per_frame = self.sample_rate / (self.hop_length * self.frame_rate)
        if round(per_frame) < 1 or abs(per_frame - round(per_frame)) > 1e-6:
            raise ValueError(
                f"hop_length {self.hop_length} does not divide a unit frame of {self.sample_rate / self.frame_rate:g} "
                f"samples ({self.frame_rate:g} Hz units at {self.sample_rate} Hz): choose a divisor"
            )
        if self.n_fft < 2 * self.hop_length or (self.n_fft - self.hop_length) % 2:
            raise ValueError("n_fft must be at least twice hop_length, and n_fft - hop_length even")
        if not 0 <= self.lookahead < self.kernel_size:
            raise ValueError(f"lookahead must lie between 0 and kernel_size - 1 = {self.kernel_size - 1} head frames")

    @property
    def repeats(self) -> int:
        """Head frames per unit frame."""
        return round(self.sample_rate / (self.hop_length * self.frame_rate))

    @property
    def frame_samples(self) -> int:
        """Samples per unit frame."""
        return self.repeats * self.hop_length

    @property
    def lookahead_seconds(self) -> float:
        """How much later than its unit a sample leaves, in s: the first convolution and the overlap of the ISTFT."""
        return (self.lookahead * self.hop_length + (self.n_fft - self.hop_length) / 2) / self.sample_rate

    @property
    def receptive_field(self) -> int:
        """Past head frames that the backbone sees (the unit context reaches further back)."""
        return self.kernel_size - 1 - self.lookahead + (self.kernel_size - 1) * sum(self.dilations)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> VocoderConfig:
        """Read what `save` wrote. Raises ValueError (one line) where the file is missing or damaged."""
        try:
            if not path.is_file() or path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is no file, or larger than {MAX_BYTES // 1_000_000} MB")
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field_name = ".".join(str(part) for part in problem["loc"])
            reason = f"{field_name}: {problem['msg']}".removeprefix(": ")
            raise ValueError(f"cannot read the vocoder's {path}: {_one_line(reason)}") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the vocoder's {path}: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:300]
