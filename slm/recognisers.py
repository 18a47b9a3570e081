"""Which recogniser a bundle has: a lexicon for units that are phones (`slm.lexicon`), a small Whisper, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slm.errors import TresseError
from slm.lexicon import LexiconRecogniser, can_decode, check_lexicon, is_lexicon
from slm.recogniser_files import check_folder, check_recogniser
from slm.transcribe import Recogniser, Transcriber
from slm.units import load_encoder
from slm.units.causal import CausalUnitEncoder
from slm.units.sequence import UnitEncoder


def has_recogniser(bundle: Path) -> bool:
    """Whether a bundle's folder holds one that can be used here."""
    return (bundle / "asr" / "model.bin").exists() or (is_lexicon(bundle / "asr") and can_decode())


def open_recogniser(
    bundle: Path,
    languages: Sequence[str],
    asr: str | Path | None = None,
    *,
    encoder: UnitEncoder | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Recogniser:
    """The recogniser in a bundle's folder, or the Whisper that `asr` names (see `Transcriber`).

    encoder: the bundle's, where it is loaded already. Raises TresseError if there is none, or its files cannot be true.
    """
    folder = bundle / "asr"
    if asr is not None:
        return Transcriber(asr, languages, device=device, threads=threads)
    if not (folder / "model.bin").exists() and not is_lexicon(folder):
        raise TresseError(f"the bundle {bundle} has no recogniser: give --asr NAME_OR_PATH of a faster-whisper model")
    if not is_lexicon(folder):
        check_folder(folder)
        return Transcriber(folder, languages, device=device, threads=threads)
    encoder = encoder or load_encoder(bundle / "units")
    if not isinstance(encoder, CausalUnitEncoder):
        raise TresseError(f"the recogniser in {folder} spells with other units: restore the bundle's files")
    return LexiconRecogniser(folder, encoder, languages)


def check_asr(folder: Path) -> None:
    """Raises TresseError, one line, where the files of a bundle's asr/ cannot be true, or others are there."""
    if is_lexicon(folder):
        check_lexicon(folder)
    else:
        check_folder(folder)
        check_recogniser(folder)
