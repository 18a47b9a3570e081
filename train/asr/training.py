"""Training the speech recogniser: a small Whisper from nothing, on synthetic speech, read by faster-whisper.

Trades: the features have 50 frames a second instead of 100 (half the encoder's work); a batch is as long as its longest
clip instead of a whole chunk. Auxiliary losses, dropped at the end, teach what transcripts alone teach slowly: the
encoder tells the phone of every mel frame, where the synthesiser gives it; CTC over letters needs no times (Watanabe et
al. 2017); and one head of each decoder layer looks where its token is about to be heard (Tachibana et al. 2018). State
is weights + optimiser + step; a killed run goes on bit for bit. Sync points: the device is waited for only where a line
is logged.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from slm.bundle import choose_device
from slm.errors import TresseError
from train.asr.clips import ClipBatch, Clips, ClipSettings
from train.asr.model import SPECIAL, ASRModel, build_model, convert, encode, train_tokenizer
from train.asr.plan import PoolSettings, plan_pool
from train.asr.pool import UNKNOWN, Renderer, make_pool
from train.speech.voices import SAMPLE_RATE, Voices
from train.tools.checkpoints import load_checkpoint, save_checkpoint, write_json
from train.tools.hardware import bf16_pays
from train.tools.progress import Log, Progress
from train.tools.texts import plain
from train.tools.trainer import Schedule, Updates, train

LETTERS = "abcdefghijklmnopqrstuvwxyzàâäæçéèêëîïôöœùûüÿ'0123456789 "
"""What the auxiliary loss spells in any language, and first; what its texts have beside these: `letters_of`."""
IGNORE = -100
FOCUS = 0.3
"""s around the place of a token at which the attention that is led there counts e^-1/2."""


@dataclass(frozen=True)
class ASRTraining:
    """How the recogniser is trained. The defaults suit the default ASRModel on two CPU cores (an hour on one).

    floor: last learning rate as a share of the peak. ramp: shares of the steps between which the augmentation grows from
    none to its full strength. phones, ctc, focus: weights of the auxiliary losses. precision: `auto`, `bf16` or `no`.
    device: `auto`, `cpu`, `cuda`.
    """

    steps: int = 18_000
    model: ASRModel = field(default_factory=ASRModel)
    pool: PoolSettings = field(default_factory=PoolSettings)
    clips: ClipSettings = field(default_factory=ClipSettings)
    learning_rate: float = 2e-3
    warmup: int = 300
    floor: float = 0.02
    weight_decay: float = 0.01
    clip: float = 3.0
    smoothing: float = 0.1
    phones: float = 1.0
    ctc: float = 0.0
    focus: float = 0.3
    ramp: tuple[float, float] = (0.1, 0.5)
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    precision: str = "auto"
    device: str = "auto"


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def letters_of(texts: Iterable[str]) -> str:
    """LETTERS, and the other letters of these texts in lower case."""
    others = {letter for text in texts for letter in text.lower() if letter.isalpha()}
    return LETTERS + "".join(sorted(others - set(LETTERS)))


class _Speller:
    """Texts as tensors: decoder inputs and targets, and letters for the auxiliary loss."""

    def __init__(self, tokenizer: Tokenizer, letters: str) -> None:
        self.tokenizer = tokenizer
        self.end = _id(tokenizer, SPECIAL[0])
        self.prompt = [_id(tokenizer, token) for token in (SPECIAL[1], "<|transcribe|>", "<|notimestamps|>")]
        self.letters = {letter: index for index, letter in enumerate(letters, 1)}  # 0 is the blank

    def tokens(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and targets int64 [B, N]; a target that the prompt gives away is IGNORE. Places float32 [B, N]: the mel
        frame at which a target is about to be heard; NaN for those that are not."""
        start, task, plain = self.prompt
        encodings = self.tokenizer.encode_batch([" " + text for text in batch.texts], add_special_tokens=False)
        inputs, targets, places = [], [], []
        for language, encoded, (letters, frames) in zip(batch.languages, encodings, batch.knots, strict=True):
            middles = [(first + last) / 2 for first, last in encoded.offsets]
            places.append([math.nan] * 3 + np.interp(middles, letters, frames).tolist())
            tag = _id(self.tokenizer, f"<|{language}|>")
            inputs.append([start, tag, task, plain, *encoded.ids])
            targets.append([tag, IGNORE, IGNORE, *encoded.ids, self.end])

        longest = max(map(len, inputs))

        def padded(rows: list[list[Any]], filling: float) -> Tensor:
            return torch.tensor([row + [filling] * (longest - len(row)) for row in rows])

        return padded(inputs, self.end), padded(targets, IGNORE), padded(places, math.nan)

    def spell(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Letters end to end int64 [sum] and their numbers int64 [B]."""
        rows = [[self.letters[letter] for letter in text.lower() if letter in self.letters] for text in texts]
        return torch.tensor([index for row in rows for index in row]), torch.tensor([len(row) for row in rows])


class _Learner(nn.Module):
    """The Whisper and the heads of the auxiliary losses, which tell two mel frames from each frame of the encoder."""

    def __init__(self, model: Any, width: int, phones: list[str], letters: str) -> None:
        super().__init__()
        self.model = model
        self.phones = phones
        self.naming = nn.Linear(width, 2 * len(phones))
        self.letters = letters
        self.spelling = nn.Linear(width, 2 * (len(letters) + 1))

    def losses(self, batch: ClipBatch, tokens: tuple, letters: tuple, training: ASRTraining) -> Tensor:
        """[6]: the loss, and of it in nats: cross-entropy of tokens and of phones, CTC a letter, focus; and the share of
        wrong tokens."""
        inputs_BN, targets_BN, places_BN = tokens
        heard_BTW, half_BTW = encode(self.model, batch.mels_BMT)
        led = training.focus > 0
        states = self.model.model.decoder(
            input_ids=inputs_BN, encoder_hidden_states=heard_BTW, use_cache=False, output_attentions=led
        )
        logits = self.model.proj_out(states.last_hidden_state).float().flatten(0, 1)
        targets = targets_BN.flatten()
        spoken = F.cross_entropy(logits, targets, ignore_index=IGNORE, label_smoothing=training.smoothing)
        none = spoken.new_zeros(())
        named = spelt = focus = none
        if training.phones:
            names = self.naming(half_BTW).float().view(-1, len(self.phones))
            labels = batch.labels_BT.flatten()
            named = F.cross_entropy(names, labels, ignore_index=UNKNOWN, reduction="sum")
            named = named / (labels != UNKNOWN).sum().clamp_min(1)
        if training.ctc:
            spelt_BTC = self.spelling(heard_BTW).float().view(len(heard_BTW), -1, len(self.letters) + 1).log_softmax(-1)
            frames_B = batch.frames_B.clamp_max(spelt_BTC.shape[1])
            spelt = F.ctc_loss(spelt_BTC.transpose(0, 1), letters[0], frames_B, letters[1], zero_infinity=True)
        if led:
            focus = self._focus([layer[:, 0] for layer in states.cross_attentions], places_BN, training)
        loss = spoken + training.phones * named + training.ctc * spelt + training.focus * focus
        real = targets != IGNORE
        wrong = ((logits.argmax(-1) != targets) & real).sum() / real.sum()
        return torch.stack([loss, *(part.detach() for part in (spoken, named, spelt, focus)), wrong])

    @staticmethod
    def _focus(looks: list[Tensor], places_BN: Tensor, training: ASRTraining) -> Tensor:
        """Mean -log of the attention [B, N, T] that falls near the place of a token."""
        features = training.model.features
        width = FOCUS * SAMPLE_RATE / features.hop_length
        middles_T = 2.0 * torch.arange(looks[0].shape[-1], device=places_BN.device) + 0.5
        known_BN = ~places_BN.isnan()
        near_BNT = torch.exp(-0.5 * ((middles_T - places_BN.nan_to_num()[:, :, None]) / width) ** 2)
        there = [-((look.float() * near_BNT).sum(-1) + 1e-6).log()[known_BN].mean() for look in looks]
        return torch.stack(there).mean()


def train_asr(
    training: ASRTraining,
    sentences: list[tuple[str, str]],
    voices: Voices,
    folder: Path,
    workers: int = 2,
    *,
    bundle: Path | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train on (language, text) sentences spoken by the training voices; returns folder/asr, a faster-whisper model.

    folder: receives pool/, checkpoint.pt, log.jsonl and, when done, asr/ and summary.json. Called again it goes on where
    it stopped; a finished training is not repeated. bundle: whose vocoder speaks a share of the pool. progress: takes
    each logged record. Raises TresseError.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(_lasting(training)))
    if training.precision not in ("auto", "bf16", "no"):
        raise TresseError(f"precision must be auto, bf16 or no, not {training.precision}")
    if not sentences:
        raise TresseError("there are no sentences to train the recogniser on")
    state = load_checkpoint(folder / "checkpoint.pt")
    if state is not None and state["settings"] != settings:
        raise TresseError(f"{folder} holds a recogniser of other settings: choose another folder, or delete it")
    languages = list(dict.fromkeys(language for language, _ in sentences))
    tokenizer = train_tokenizer(sentences, training.model.vocabulary)
    device = torch.device(choose_device(training.device))
    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays(device))
    start = 0 if state is None else int(state["step"])
    clips = None
    phones = [] if state is None else state["phones"]
    if start < training.steps:
        plan = plan_pool(training.pool, sentences, list(voices.training), bundle is not None)
        features = training.model.features
        renderer = Renderer(features, voices, training.pool.augmentation, bundle)
        clips = Clips(make_pool(plan, renderer, folder / "pool", workers), features, training.clips, training.seed)
        phones = clips.pool.phones
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        letters = letters_of(text for _, text in sentences)
        learner = _Learner(build_model(training.model, tokenizer, languages), training.model.width, phones, letters)
    learner.to(device).train()
    optimiser = _optimiser(learner, training, device)
    if state is not None:
        learner.load_state_dict(state["learner"])
        optimiser.load_state_dict(state["optimiser"])
        del state
    if clips is not None:
        run = _Run(learner, optimiser, clips, tokenizer, training, folder, start, device, bf16)

        def save(done: int) -> None:
            save_checkpoint(folder / "checkpoint.pt", {"step": done, "settings": settings, **run.state()})

        def report(done: int) -> None:
            record = run.report(done)
            if progress is not None:
                progress(record)

        actions = [(training.log_every, report), (training.checkpoint_every, save)]
        schedule = Schedule(training.steps, training.warmup, training.floor)
        train(run.step, schedule, actions, start=start)
    made = convert(learner.model.eval().cpu(), tokenizer, training.model.features, folder / "asr")
    facts = {
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        "megabytes": round(sum(file.stat().st_size for file in made.iterdir()) / 1e6, 2),
        "languages": languages,
        "sentences": len(sentences),
        "voices": list(voices.training),
        "utterances": training.pool.utterances,
        "clips": training.steps * training.clips.batch,
        "settings": settings,
    }
    write_json(folder / "summary.json", facts)
    return made


class _Run:
    """The state of a run: the learner, its optimiser, and losses summed since the last log line."""

    def __init__(
        self,
        learner: _Learner,
        optimiser: torch.optim.Optimizer,
        clips: Clips,
        tokenizer: Tokenizer,
        training: ASRTraining,
        folder: Path,
        start: int,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self.learner, self.optimiser, self.clips, self.training = learner, optimiser, clips, training
        self.device, self.bf16, self.speller = device, bf16, _Speller(tokenizer, learner.letters)
        self.updates = Updates(learner.parameters(), [optimiser], training.learning_rate, training.clip)
        self.line, self.log = Progress("asr", training.steps, start), Log(folder / "log.jsonl", start)
        self.sums, self.norm = torch.zeros(6, device=device), torch.zeros(())
        self.logged, self.logged_at = start, time.perf_counter()

    def step(self, number: int, factor: float) -> Tensor:
        """One step (train.tools.trainer): the loss and the gradients' norm."""
        training = self.training
        first, last = (share * training.steps for share in training.ramp)
        strength = min(1.0, max(0.0, (number - first) / max(1.0, last - first)))
        batch = self.clips.batch(number, strength, self.device)
        tokens = tuple(part.to(self.device) for part in self.speller.tokens(batch))
        letters = self.speller.spell(batch.texts)
        torch.manual_seed(training.seed * 1_000_003 + number)  # dropout
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.learner.losses(batch, tokens, letters, training)
        losses[0].backward()
        self.norm = self.updates.apply(factor)
        self.sums += losses.detach()
        return losses[0].detach() + self.norm

    def report(self, done: int) -> dict[str, Any]:
        """A line of text and one of the log, on the steps since the last; returns the latter."""
        since, now = done - self.logged, time.perf_counter()
        _, loss, phones, ctc, focus, wrong = (self.sums / since).tolist()  # waits for the device
        record = {
            "step": done,
            "loss": loss,
            "phones": phones,
            "ctc": ctc,
            "focus": focus,
            "wrong_tokens": wrong,
            "gradient_norm": float(self.norm),
            "clips_per_second": round(since * self.training.clips.batch / (now - self.logged_at), 1),
        }
        self.log.write(record)
        self.line.update(done, **{name: value for name, value in record.items() if name != "step"})
        self.sums.zero_()
        self.logged, self.logged_at = done, now
        return record

    def state(self) -> dict[str, Any]:
        """Tensors, and the phones that the learner's head tells."""
        return {
            "phones": self.learner.phones,
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }


def _optimiser(learner: nn.Module, training: ASRTraining, device: torch.device) -> torch.optim.AdamW:
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98), fused=True)


def _lasting(training: ASRTraining) -> dict[str, Any]:
    """The settings that a run must keep when it is resumed; how often it reports may change."""
    plain = ASRTraining()
    return asdict(replace(training, log_every=plain.log_every, checkpoint_every=plain.checkpoint_every))


def spoken_words(text: str) -> list[str]:
    """The words of a text as word error counts them: lower case, without punctuation; l'arbre is two."""
    return re.findall(r"\w+", plain(text).lower())
