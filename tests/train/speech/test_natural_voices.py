"""train/voices-natural.yaml; and where TRESSE_MODELS names the models' folder, its voices as they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import train
from slm.errors import TresseError
from train.speech.flite import FliteSpeaker
from train.speech.kokoro import KokoroSpeaker
from train.speech.kokoro_network import load_runner
from train.speech.piper import token_ids
from train.speech.voices import SAMPLE_RATE, Voices, render, speak

MODELS = Path(os.environ.get("TRESSE_MODELS", "nowhere"))
SENTENCES = {"en": "The old farmer lost his hat.", "fr": "Le vieux fermier a perdu son chapeau."}


@pytest.fixture(scope="module")
def natural() -> Voices:
    return Voices.load(Path(train.__file__).with_name("voices-natural.yaml"))


def timbres(speakers: object) -> set[str]:
    assert isinstance(speakers, dict)
    return {
        voice
        for speaker in speakers.values()
        if isinstance(speaker, KokoroSpeaker)
        for style in speaker.kokoro.values()
        for mixture in (style.timbre, style.prosody or {})
        for voice in mixture
    }


def test_families_and_voices_are_held_out(natural: Voices) -> None:
    families = {speaker.family for speaker in natural.training.values()}
    assert families == {"kokoro", "pico", "espeak"}
    assert {speaker.family for speaker in natural.held_out.values()} >= {"piper", "flite", "kokoro"}
    assert not families & set(natural.held_out_families)
    # Held-out French is of half a French voice's timbre and its prosody, which training hears: it is the only one there is.
    assert timbres(natural.training) & timbres(natural.held_out) == {"ff_siwis"}
    assert sum(isinstance(speaker, KokoroSpeaker) for speaker in natural.training.values()) == 16


def test_training_speakers_speak_both_languages(natural: Voices) -> None:
    for speaker in natural.training.values():
        if isinstance(speaker, KokoroSpeaker):
            assert set(speaker.kokoro) == set(natural.languages)
            assert all(sum(style.timbre.values()) == pytest.approx(1) for style in speaker.kokoro.values())


def test_pipers_ids_have_a_pad_behind_each() -> None:
    ids = {"^": [1], "_": [0], "$": [2], "a": [5], "\N{COMBINING TILDE}": [6]}
    assert token_ids("ãx", ids) == [1, 0, 5, 0, 6, 0, 2]


@pytest.mark.skipif(not (MODELS / "kokoro").is_dir(), reason="needs Kokoro in TRESSE_MODELS: train/speech/README.md")
def test_kokoro_is_deterministic_and_synchronous(natural: Voices) -> None:
    michel, george = natural.speaker("michel"), natural.speaker("george")
    first = render(SENTENCES["fr"], "fr", michel, natural)
    speak(SENTENCES["en"], "en", george, natural)
    assert np.array_equal(first.waveform, speak(SENTENCES["fr"], "fr", michel, natural))
    other = render(SENTENCES["fr"], "fr", george, natural)
    assert first.phonemes is not None
    assert other.phonemes is not None
    times = [[p.start + spoken.offset for p in spoken.phonemes or []] for spoken in (first, other)]
    assert times[0] == pytest.approx(times[1], abs=1e-6)
    assert first.phonemes[-1].start == pytest.approx(len(first.waveform) / SAMPLE_RATE, abs=0.4)


@pytest.mark.skipif(not (MODELS / "kokoro").is_dir(), reason="needs Kokoro in TRESSE_MODELS: train/speech/README.md")
def test_both_runtimes_say_the_same(natural: Voices) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'tresse[voices]'")
    folder = natural.model_folder("kokoro")
    tokens = np.array([0, 50, 83, 54, 156, 57, 135, 4, 0])
    style = np.fromfile(folder / "voices" / "af_heart.bin", np.float32).reshape(-1, 256)[len(tokens) - 2]
    kinds = ("openvino f32", "openvino bf16", "onnxruntime")
    one, half, two = (load_runner(folder, kind)(tokens, style, 1.0, 1.0) for kind in kinds)
    assert np.array_equal(one[1], two[1])
    assert np.array_equal(one[1], half[1])
    assert np.std(one[0]) == pytest.approx(np.std(half[0]), rel=0.02)
    assert len(one[0]) == len(two[0]) == 600 * one[1].sum()
    assert np.std(one[0]) == pytest.approx(np.std(two[0]), rel=0.1)  # its zeros are not exact


@pytest.mark.skipif(not (MODELS / "pico").is_dir(), reason="needs Pico in TRESSE_MODELS: train/speech/README.md")
def test_a_sentence_of_pico_does_not_depend_on_what_was_spoken_before(natural: Voices) -> None:
    first = {
        (name, language): speak(SENTENCES[language], language, natural.speaker(name), natural)
        for name in ("pia", "paul", "prudence")
        for language in SENTENCES
    }
    assert len({waveform.tobytes() for waveform in first.values()}) == 6
    blocks = [np.full(300_000, 7.0) for _ in range(40)]  # memory that was used
    del blocks
    for (name, language), waveform in reversed(first.items()):
        assert np.array_equal(waveform, speak(SENTENCES[language], language, natural.speaker(name), natural))


@pytest.mark.skipif(not (MODELS / "piper").is_dir(), reason="needs Piper in TRESSE_MODELS: train/speech/README.md")
def test_piper_is_deterministic(natural: Voices) -> None:
    first, _, again = (
        speak(text, "en", natural.speaker("joe"), natural) for text in (SENTENCES["en"], "No.", SENTENCES["en"])
    )
    assert np.array_equal(first, again)
    with pytest.raises(TresseError, match="joe does not speak 'fr'"):
        natural.check(["joe"], ["fr"])


def test_flite_speaks_or_says_what_to_install(natural: Voices) -> None:
    if shutil.which("flite") is None:
        with pytest.raises(TresseError, match="install your system's package flite"):
            natural.check(["slt"], ["en"])
        return
    natural.check(["slt"], ["en"])
    spoken = [speak(SENTENCES["en"], "en", natural.speaker("slt"), natural) for _ in range(2)]
    assert np.array_equal(*spoken)
    slow = FliteSpeaker("slow", {"en": "slt"}, speed=0.5)
    assert len(speak(SENTENCES["en"], "en", slow, natural)) > 1.5 * len(spoken[0])
    with pytest.raises(TresseError, match="no voice nobody"):
        natural.synthesiser(slow).check("en", FliteSpeaker("x", {"en": "nobody"}))


def test_a_bundle_is_measured_by_voices_that_have_its_speakers(natural: Voices) -> None:
    info = {"provenance": {"voices_file": "voices-natural.yaml"}}
    own = Voices.load()
    assert Voices.of(info, ["en", "fr"]).vocoder == own.vocoder
    assert Voices.of(info, ["en", "fr"], own.vocoder).vocoder == own.vocoder
    assert Voices.of(info, ["en", "fr"], natural.vocoder).vocoder == natural.vocoder
    assert "slt" in Voices.of(info, ["en", "fr"], ["slt"]).held_out
    assert Voices.of(info, ["en", "fr"], ["zoe"]).held_out == own.held_out
    assert Voices.of({}, ["en", "fr"], natural.vocoder).vocoder == own.vocoder
