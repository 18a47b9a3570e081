"""Much speech at once: shards are atomic, named after what is in them, and go on where they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slm.errors import TresseError
from train.speech import pool
from train.speech.pool import Request, read_pool, speak_pool
from train.speech.voices import Voices, speak


def requests(voices: Voices, count: int) -> list[Request]:
    """Sentences in turn of two voices and languages; the third says nothing."""
    texts = [f"Chapter number {number}." for number in range(count)]
    texts[2:3] = ["..."]
    names = ["basile", "zoe"]
    return [(text, ["en", "fr"][n % 2], voices.speaker(names[n % 2])) for n, text in enumerate(texts)]


def test_every_clip_is_what_speak_gives(voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SHARD", 4)
    asked = requests(voices, 10)
    clips = speak_pool(asked, voices, tmp_path)
    spoken = [request for request in asked if request[0] != "..."]
    assert [(clip.text, clip.language, clip.speaker) for clip in clips] == [(t, g, s.name) for t, g, s in spoken]
    for clip, (text, language, speaker) in zip(clips, spoken, strict=True):
        waveform = clip.read(tmp_path)
        assert clip.family == "espeak"
        assert np.abs(waveform - speak(text, language, speaker, voices, clip.sample_rate)).max() < 2**-14
        assert clip.phones is not None
        assert clip.phones[-1][2] == pytest.approx(len(waveform) / clip.sample_rate, abs=1e-4)
    assert read_pool(tmp_path) == clips
    assert "nothing to speak" in (tmp_path / "index.jsonl").read_text()


def test_a_pool_goes_on_and_grows(voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SHARD", 4)
    asked = requests(voices, 12)
    whole = speak_pool(asked, voices, tmp_path / "whole")
    speak_pool(asked[:8], voices, tmp_path / "grown")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "grown").glob("*.flac")}
    (tmp_path / "grown" / "index.jsonl").unlink()
    assert len(read_pool(tmp_path / "grown")) == 7  # without its index: the shards that are there
    assert speak_pool(asked, voices, tmp_path / "grown") == whole
    assert written.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "grown").glob("*.flac")}.items()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "grown" / path.name).read_bytes()


def test_the_number_of_workers_changes_nothing(voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SHARD", 4)
    asked = requests(voices, 8)
    assert speak_pool(asked, voices, tmp_path / "one") == speak_pool(asked, voices, tmp_path / "two", workers=2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_cannot_work_is_said_before_the_work(voices: Voices, tmp_path: Path) -> None:
    with pytest.raises(TresseError, match="no espeak-ng voice speaks 'xx'"):
        speak_pool([("a", "xx", voices.speaker("zoe"))], voices, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(TresseError, match="no speech in"):
        read_pool(tmp_path)
    clips = speak_pool(requests(voices, 2), voices, tmp_path)
    next(tmp_path.glob("*.flac")).unlink()
    with pytest.raises(TresseError, match="cannot read"):
        clips[0].read(tmp_path)
