"""Files that nobody has checked: headers that lie, formats that open other files, channels that cancel, too much of it."""

from __future__ import annotations

import io
import os
import resource
import struct
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slm import decoding
from slm.audio import ResampleStream, check_waveform, read_audio, resample
from slm.decoder import MAX_CHANNELS, SLACK
from slm.decoding import decode, mono
from slm.errors import TresseError
from tests.bundles import BRAID
from tests.slm.test_audio import RATE, encode_with_av, tone

EXAMPLE = BRAID / "examples" / "en-1.flac"


def wav_bytes(waveform: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def refused(path: Path, words: str, **limits: float) -> None:
    with pytest.raises(TresseError, match=words) as caught:
        read_audio(path, **limits)
    assert "\n" not in str(caught.value)


def read_or_refused(path: Path) -> None:
    """Whatever a file holds: at most a minute of finite samples, or one line."""
    waveform, rate, message = np.zeros(0), 1, ""
    try:
        waveform, rate = read_audio(path, max_seconds=60)
    except TresseError as error:
        message = str(error)
    assert "\n" not in message
    assert np.isfinite(waveform).all()
    assert len(waveform) <= 60 * rate


# ---- lengths ---------------------------------------------------------------------------------------------------------


def test_a_flac_that_was_streamed_does_not_know_its_length(tmp_path: Path) -> None:
    data = bytearray(EXAMPLE.read_bytes())
    data[21] &= 0xF0  # the number of samples in STREAMINFO: 36 bits, unknown
    data[22:26] = bytes(4)
    (tmp_path / "p.flac").write_bytes(data)
    expected, _ = read_audio(EXAMPLE)
    waveform, _ = read_audio(tmp_path / "p.flac", max_seconds=60)
    assert np.array_equal(waveform, expected)
    refused(tmp_path / "p.flac", "the limit is 5 s", max_seconds=5)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_whose_sizes_were_never_written(tmp_path: Path, size: int) -> None:
    data = bytearray(wav_bytes(tone(1.0)))
    data[4:8] = data[40:44] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(data)
    waveform, rate = read_audio(tmp_path / "a.wav", max_seconds=60)
    assert abs(len(waveform) / rate - 1.0) < 0.01


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    data = bytearray(wav_bytes(tone(1.0)))
    data[40:44] = struct.pack("<I", 2_000_000_000)
    (tmp_path / "a.wav").write_bytes(data)
    waveform, rate = read_audio(tmp_path / "a.wav", max_seconds=60)
    assert abs(len(waveform) / rate - 1.0) < 0.01


def test_no_more_is_decoded_than_the_limit(tmp_path: Path) -> None:
    soundfile.write(str(tmp_path / "long.flac"), np.tile(tone(10, 8000), 60), 8000)
    samples, rate = decode(tmp_path / "long.flac", max_seconds=5)
    assert 5 * rate < len(samples) < (5 + SLACK) * rate + 2 * 65536


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_oggs_one_after_another_are_read_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    rate = 48000
    subtype = "OPUS" if suffix == "opus" else "VORBIS"
    soundfile.write(str(path), tone(1.5, rate), rate, format="OGG", subtype=subtype)
    single = len(read_audio(path)[0])
    path.write_bytes(path.read_bytes() * 2)
    waveform, _ = read_audio(path)
    assert abs(len(waveform) - 2 * single) < 0.1 * rate


@pytest.mark.parametrize(("suffix", "codec", "rate"), [(".m4a", "aac", 44100), (".webm", "libopus", 48000)])
def test_what_an_encoder_adds_is_not_too_long(tmp_path: Path, suffix: str, codec: str, rate: int) -> None:
    path = tmp_path / f"a{suffix}"
    encode_with_av(path, codec, rate, tone(2.0, rate))
    waveform, read_rate = read_audio(path, max_seconds=2.0)
    assert abs(len(waveform) / read_rate - 2.0) < 0.05
    refused(path, "the limit is", max_seconds=1.5)


# ---- channels and forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [-1.0, -0.98])
@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_opposite_channels_do_not_cancel(tmp_path: Path, factor: float, suffix: str) -> None:
    rate = 44100
    left = tone(1.0, rate)
    hiss = 1e-3 * np.random.default_rng(0).standard_normal(len(left)).astype(np.float32)
    stereo = np.stack([left, factor * left + hiss], axis=1)
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        soundfile.write(str(path), stereo, rate)
    else:
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=rate, layout="stereo")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(stereo.T), format="fltp", layout="stereo")
            frame.sample_rate = rate
            size = stream.frame_size or 1024
            resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=rate, frame_size=size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    waveform, _ = read_audio(path)
    assert np.sqrt(np.mean(waveform**2)) > 0.15


def test_channels_of_one_phase_are_averaged_and_a_silent_one_does_no_harm() -> None:
    left = tone()
    assert np.allclose(mono(np.stack([left, left], axis=1)), left)
    assert np.allclose(mono(np.stack([left, 0 * left], axis=1)), left / 2)
    assert np.sqrt(np.mean(mono(np.stack([left, *[0 * left] * 5], axis=1)) ** 2)) > 0.15


def test_forms_of_arrays() -> None:
    quiet = np.full(8000, 128, np.uint8)
    quiet[::2] = 200
    assert abs(check_waveform(quiet, 16000).max() - 72 / 127) < 0.01
    assert np.array_equal(check_waveform(tone()[None], RATE), tone())
    assert np.array_equal(check_waveform(tone(), float(RATE)), tone())  # type: ignore[arg-type]
    with pytest.raises(TresseError, match="no speech found"):
        check_waveform(np.full(8000, 128, np.uint8), 16000)
    with pytest.raises(TresseError, match="a whole number"):
        check_waveform(tone(), 24000.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [44100, 44101, 22051, 15999, 11025])
def test_odd_rates_stream_as_they_are_read_whole(rate: int) -> None:
    waveform = np.random.default_rng(1).standard_normal(rate).astype(np.float32)
    stream = ResampleStream(rate, 16000)
    parts = [stream.push(part) for part in np.array_split(waveform, 37)]
    streamed, whole = np.concatenate([*parts, stream.flush()]), resample(waveform, rate, 16000)
    assert len(streamed) == len(whole)
    assert np.allclose(streamed, whole, atol=1e-5)


# ---- files that want something else ----------------------------------------------------------------------------------


def playlist(target: Path) -> dict[str, bytes]:
    """Name -> content of files that ask for another one."""
    name = str(target).encode()
    return {
        "list.m3u8": b"#EXTM3U\n#EXTINF:7,\n" + name + b"\n#EXT-X-ENDLIST\n",
        "list.m3u": b"#EXTM3U\n" + name + b"\n",
        "list.wav": b"#EXTM3U\n#EXT-X-TARGETDURATION:7\n#EXTINF:7,\n" + name + b"\n#EXT-X-ENDLIST\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile '" + name + b"'\n",
        "list.mp3": b"ffconcat version 1.0\nfile '" + name + b"'\n",
        "list.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "list.xspf": b"<playlist><trackList><track><location>" + name + b"</location></track></trackList></playlist>",
        "list.mpd": b"<?xml version='1.0'?><MPD><Period><BaseURL>" + name + b"</BaseURL></Period></MPD>",
        "list.raw": b"\x00\x01" * 20000,
    }


@pytest.mark.parametrize("name", sorted(playlist(Path("x"))))
def test_a_file_never_opens_another_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(playlist(EXAMPLE)[name])
    refused(path, "not audio that can be read", max_seconds=60)


def test_a_playlist_that_names_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "list.m3u8"
    path.write_bytes(playlist(tmp_path / "pipe")["list.m3u8"])
    refused(path, "not audio that can be read")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(wav_bytes(tone(1.0))), daemon=True).start()
    waveform, rate = read_audio(pipe, max_seconds=60)
    assert abs(len(waveform) / rate - 1.0) < 0.01


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    path.write_bytes(wav_bytes(tone(1.0)))
    assert len(read_audio(path)[0]) == RATE


def test_a_name_says_nothing_about_what_is_in_a_file(tmp_path: Path) -> None:
    for name in ("a.raw", "a.m3u8", "a", "a.txt"):
        (tmp_path / name).write_bytes(wav_bytes(tone(1.0)))
        assert len(read_audio(tmp_path / name)[0]) == RATE


# ---- decoders that fail, and too much work ---------------------------------------------------------------------------


def test_a_wav_of_no_bits(tmp_path: Path) -> None:
    for at, value in ((34, 0), (34, 65535), (22, 0), (32, 0), (20, 77)):
        data = bytearray(wav_bytes(tone(1.0)))
        data[at : at + 2] = struct.pack("<H", value)
        (tmp_path / "a.wav").write_bytes(data)
        read_or_refused(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [MAX_CHANNELS + 1, 64, 255])
def test_too_many_channels(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * channels * 16000))
    refused(path, f"{channels} channels: give at most {MAX_CHANNELS}")


def test_a_small_file_of_many_channels_costs_nothing(tmp_path: Path) -> None:
    """Compressed, 255 channels of silence are small: they must be counted before they are decoded."""
    path = tmp_path / "a.ogg"
    soundfile.write(str(path), np.zeros((2 * 8000, 255), np.float32), 8000, format="OGG", subtype="VORBIS")
    assert path.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    decoding._end_all()
    refused(path, f"255 channels: give at most {MAX_CHANNELS}", max_seconds=60)
    decoding._end_all()  # so that the process that read it is counted
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 10


@pytest.mark.parametrize("rate", [100, 1_000_000])
def test_rates_that_nobody_records_at(tmp_path: Path, rate: int) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1.0), rate))
    refused(tmp_path / "a.wav", f"sample rate of {rate} Hz")


@pytest.mark.parametrize("seed", range(8))
def test_mutated_recordings_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    """`make fuzz` tries more of them. None takes 10 s of work or 1 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(seed)
    encode_with_av(tmp_path / "s.m4a", "aac", 44100, tone(0.6, 44100))
    encode_with_av(tmp_path / "s.webm", "libopus", 48000, tone(0.6, 48000))
    for name in ("s.wav", "s.flac", "s.ogg", "s.mp3"):
        soundfile.write(str(tmp_path / name), tone(0.6), RATE)
    for number in range(int(os.environ.get("TRESSE_FUZZ_RECORDINGS", "104")) // 8):
        source = sorted(tmp_path.glob("s.*"))[number % 6]
        data = bytearray(source.read_bytes())
        for _ in range(int(rng.integers(1, 12))):
            kind, at = rng.integers(4), int(rng.integers(min(len(data), 400 if rng.random() < 0.7 else len(data))))
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                data[at : at + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 50))]
            else:
                data[at:at] = rng.integers(0, 256, int(rng.integers(1, 50)), dtype=np.uint8).tobytes()
            if not data:
                data = bytearray(b"x")
        path = tmp_path / f"mutated{source.suffix}"
        path.write_bytes(data)
        began = time.process_time()
        read_or_refused(path)
        assert time.process_time() - began < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
