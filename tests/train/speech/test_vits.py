"""VITS checkpoints as voices: real transformers code on small random weights, chosen in a voices file beside espeak-ng."""

from __future__ import annotations

import dataclasses
import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

from slm.errors import TresseError
from train.speech.vits import VitsSpeaker, VitsVoice
from train.speech.voices import LOUDNESS, SAMPLE_RATE, Speaker, Unspeakable, Voices, speak, speak_with_phonemes

TEXT = "the little dog ran away."


def make_checkpoint(folder: Path, seed: int = 0, speakers: int = 1, rate: int = 16000) -> Path:
    folder.mkdir(parents=True)
    letters = {letter: i for i, letter in enumerate(["<pad>", " ", *string.ascii_lowercase, "é", "<unk>"])}
    (folder / "vocab.json").write_text(json.dumps(letters), encoding="utf-8")
    tokenizer = VitsTokenizer(str(folder / "vocab.json"), phonemize=False)
    torch.manual_seed(seed)
    config = VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=8,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        duration_predictor_filter_channels=16,
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        sampling_rate=rate,
    )
    model = VitsModel(config)
    with torch.no_grad():  # random weights hardly depend on who speaks: make them
        for name, parameter in model.named_parameters():
            if "embed_speaker" in name or "cond" in name:
                parameter.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vits")
    return {
        "one": make_checkpoint(folder / "one"),
        "other": make_checkpoint(folder / "other", seed=1, rate=22050),
        "many": make_checkpoint(folder / "many", speakers=3),
    }


@pytest.fixture(scope="module")
def voices(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Voices:
    """A user's file that mixes both back ends."""
    path = tmp_path_factory.mktemp("voices") / "voices.yaml"
    path.write_text(f"""
languages: {{en: en-us, fr: fr}}
reference: basile
training:
  basile: {{variant: "", rate: 160, pitch: 50}}
  marie: {{vits: {{en: {checkpoints["one"]}, fr: {checkpoints["other"]}}}}}
  deep: {{vits: {{en: {checkpoints["one"]}}}, semitones: -3}}
  quick: {{vits: {{en: {checkpoints["one"]}}}, rate: 1.5}}
held_out:
  nils: {{vits: {{en: {{model: {checkpoints["many"]}, speaker_id: 0}}}}}}
  olga: {{vits: {{en: {{model: {checkpoints["many"]}, speaker_id: 2}}}}}}
""")
    return Voices.load(path)


def test_the_same_request_gives_the_same_speech_whatever_was_drawn_before(voices: Voices) -> None:
    for name, language in [("marie", "en"), ("marie", "fr"), ("nils", "en"), ("deep", "en")]:
        first = speak(TEXT, language, voices.speaker(name), voices)
        torch.rand(3)
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        assert np.array_equal(first, speak(TEXT, language, voices.speaker(name), voices))
        assert torch.equal(state, torch.get_rng_state())  # others' random numbers are left alone
        assert torch.get_num_threads() == threads


def test_speech_has_the_form_that_every_back_end_gives(voices: Voices) -> None:
    for language in ("en", "fr"):
        waveform = speak(TEXT, language, voices.speaker("marie"), voices)
        assert waveform.dtype == np.float32
        assert 0.3 < len(waveform) / SAMPLE_RATE < 20
        assert np.abs(waveform).max() <= 0.95 + 1e-6
        assert 0.3 * LOUDNESS < np.sqrt(np.mean(waveform**2)) < 1.1 * LOUDNESS


def test_models_speakers_pitch_and_texts_are_heard(voices: Voices) -> None:
    spoken = {
        (name, language, text): speak(text, language, voices.speaker(name), voices).tobytes()
        for name, language in [("marie", "en"), ("marie", "fr"), ("deep", "en"), ("nils", "en"), ("olga", "en")]
        for text in (TEXT, "the ball was gone.")
    }
    assert len(set(spoken.values())) == len(spoken)


def test_rate_is_a_factor_of_the_models_own(voices: Voices) -> None:
    long = TEXT * 4
    usual, quick = (len(speak(long, "en", voices.speaker(name), voices)) for name in ("marie", "quick"))
    assert usual / quick == pytest.approx(1.5, rel=0.25)


def test_provenance_names_the_weights_not_the_place(
    checkpoints: dict[str, Path], voices: Voices, tmp_path: Path
) -> None:
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    for folder, seed in ((moved, 0), (changed, 5)):
        make_checkpoint(folder, seed)
    prints = {}
    for folder in (checkpoints["one"], moved, changed):
        speaker = VitsSpeaker("x", {"en": VitsVoice(str(folder))})
        prints[folder] = voices.synthesiser(speaker).fingerprint(speaker)
    assert prints[checkpoints["one"]] == prints[moved] != prints[changed]
    quicker = dataclasses.replace(speaker, rate=1.1)
    assert voices.synthesiser(quicker).fingerprint(quicker) != prints[changed]


def test_a_model_that_was_replaced_is_read_anew(voices: Voices, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    speaker = VitsSpeaker("x", {"en": VitsVoice(str(folder))})
    spoken = []
    for seed in (0, 1):
        shutil.rmtree(folder, ignore_errors=True)
        make_checkpoint(folder, seed)
        spoken.append(speak(TEXT, "en", speaker, voices).tobytes())
    assert spoken[0] != spoken[1]


def test_what_is_wrong_is_said_in_one_line(checkpoints: dict[str, Path], voices: Voices, tmp_path: Path) -> None:
    def speaker(model: object, number: int | None = None) -> Speaker:
        return VitsSpeaker("lise", {"en": VitsVoice(str(model), number)})

    (tmp_path / "empty").mkdir()
    cases: list[tuple[Speaker, str, str]] = [
        (voices.speaker("deep"), "fr", "deep does not speak 'fr'"),
        (speaker(tmp_path / "nowhere"), "en", "no folder"),
        (speaker("nobody/has-this"), "en", "the hub does not give it"),
        (speaker(tmp_path / "empty"), "en", "no VITS checkpoint"),
        (speaker(checkpoints["many"], 3), "en", r"3 speakers: speaker_id is 0\.\.2"),
        (speaker(checkpoints["many"]), "en", "give a speaker_id"),
    ]
    for who, language, message in cases:
        with pytest.raises(TresseError, match=message) as caught:
            voices.synthesiser(who).check(language, who)
        assert "\n" not in str(caught.value)
    with pytest.raises(Unspeakable, match="nothing to speak"):
        speak("123 ...", "en", voices.speaker("marie"), voices)
    with pytest.raises(TresseError, match="no phoneme times"):
        speak_with_phonemes(TEXT, "en", voices.speaker("marie"), voices)
    voices.check(["basile", "marie"], ["en", "fr"])
