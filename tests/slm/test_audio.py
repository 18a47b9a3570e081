"""Reading and writing audio: every promised format, and one clear line for everything that is not speech."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.audio import check_waveform, read_audio, resample, write_wav
from slm.errors import TresseError

RATE = 24000


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encode_with_av(path: Path, codec: str, rate: int, waveform: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size or 0)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".wav", {"subtype": "PCM_16"}),
        (".wav", {"subtype": "FLOAT"}),
        (".wav", {"subtype": "PCM_24"}),
        (".flac", {}),
        (".ogg", {}),
        (".mp3", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_of_libsndfile(tmp_path: Path, suffix: str, options: dict, channels: int) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(str(path), np.stack([tone()] * channels, axis=1), RATE, **options)
    waveform, rate = read_audio(path)
    assert rate == RATE
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) / rate - 1.0) < 0.12  # mp3 pads
    assert abs(np.sqrt(np.mean(waveform**2)) - 0.3 / np.sqrt(2)) < 0.02


@pytest.mark.parametrize(("suffix", "codec", "rate"), [(".m4a", "aac", 44100), (".webm", "libopus", 48000)])
def test_formats_of_browsers_and_phones(tmp_path: Path, suffix: str, codec: str, rate: int) -> None:
    path = tmp_path / f"a{suffix}"
    encode_with_av(path, codec, rate, tone(1.5, rate))
    waveform, read_rate = read_audio(path)
    assert read_rate == rate
    assert abs(len(waveform) / rate - 1.5) < 0.1
    assert abs(np.sqrt(np.mean(waveform**2)) - 0.3 / np.sqrt(2)) < 0.03


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (path, words the message must hold)."""
    folder.mkdir(exist_ok=True)

    def wav(name: str, data: np.ndarray) -> Path:
        soundfile.write(str(folder / name), data, 16000, subtype="FLOAT")
        return folder / name

    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio\n" * 50, encoding="utf-8")
    spoiled = tone(1.0, 16000)
    spoiled[500] = np.nan
    soundfile.write(str(folder / "long.flac"), np.tile(tone(10, 8000), 180), 8000)
    return {
        "missing": (folder / "nowhere.wav", "no such file"),
        "folder": (folder, "is a folder"),
        "empty": (folder / "empty.wav", "is empty"),
        "text": (folder / "text.wav", "not audio"),
        "silence": (wav("silence.wav", np.zeros(32000)), "no speech found"),
        "short": (wav("short.wav", tone(0.05, 16000)), "0.05 s"),
        "nan": (wav("nan.wav", spoiled), "not numbers"),
        "long": (folder / "long.flac", "the limit is 60 s"),
    }


@pytest.mark.parametrize("name", ["missing", "folder", "empty", "text", "silence", "short", "nan", "long"])
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str) -> None:
    path, words = bad_files(tmp_path / "bad")[name]
    with pytest.raises(TresseError, match=words) as caught:
        read_audio(path, max_seconds=60)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_file_that_is_cut_off_is_read_or_refused_in_one_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(str(path), tone(2.0), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message, waveform = "", tone()
    try:
        waveform, _ = read_audio(path)
    except TresseError as error:
        message = str(error)
    assert np.isfinite(waveform).all()
    assert "\n" not in message
    assert share > 0.5 or message


@settings(max_examples=25, deadline=None)
@given(st.integers(8000, 48000), st.integers(100, 5000))
def test_resampling_keeps_length_and_level(rate: int, samples: int) -> None:
    waveform = np.full(samples, 0.5, np.float32)
    out = resample(waveform, rate, 16000)
    assert abs(len(out) - samples * 16000 / rate) <= max(2, samples * 16000 / rate * 0.005)
    assert out.dtype == np.float32
    middle = out[len(out) // 3 : 2 * len(out) // 3]
    if samples > 1000:
        assert np.allclose(middle, 0.5, atol=0.02)


def test_integer_and_stereo_arrays() -> None:
    ints = (tone() * 32767).astype(np.int16)
    assert np.allclose(check_waveform(ints, RATE), tone(), atol=1e-3)
    stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
    assert np.allclose(check_waveform(stereo, RATE), tone() / 2, atol=1e-6)
    with pytest.raises(TresseError):
        check_waveform(np.zeros((2, 2, 2)), RATE)
    with pytest.raises(TresseError):
        check_waveform(tone(), 0)


def test_writing_is_atomic_and_clips(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.wav"
    write_wav(path, tone() * 10, RATE)
    data, rate = soundfile.read(str(path))
    assert rate == RATE
    assert np.abs(data).max() <= 1.0
    assert [entry.name for entry in path.parent.iterdir()] == ["a.wav"]
    with pytest.raises(TresseError, match="cannot write"):
        write_wav(Path("/proc/nowhere/a.wav"), tone(), RATE)
