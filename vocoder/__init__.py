"""Units in, waveform out. Knows nothing of the language model."""

from vocoder.config import VocoderConfig
from vocoder.model import Vocoder
from vocoder.streaming import VocoderStream

__all__ = ["Vocoder", "VocoderConfig", "VocoderStream"]
