"""Decoding engines: tokens in, sampled tokens out, one at a time, reproducible from a seed.

CTranslate2 (int8) decodes several times faster than transformers' `generate` on a CPU and is the default there. PyTorch
serves GPUs and architectures that CTranslate2 does not know.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slm.errors import MachineError, TresseError, cannot_write
from slm.model import check_architecture, read_model, reading_model
from slm.schema import regular
from slm.settings import TEMPERATURE, TOP_P, ReplySettings
from slm.token_steps import TokenSteps, cache_length, has_fixed_shapes
from slm.units.vocabulary import UnitVocabulary

if TYPE_CHECKING:
    import ctranslate2
    from transformers import PreTrainedModel

AHEAD = 8
"""Tokens drawn before somebody takes them: more would take the processor from other replies."""
SPARES = 8
"""Static caches, with their CUDA graphs, that wait for the next reply."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_p: the nucleus that is kept, of the `top_k` likeliest tokens
    (sorting all of them costs time); min_tokens before an end."""

    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    top_k: int = 256
    max_tokens: int = 256
    min_tokens: int = 4
    seed: int = 0
    banned: tuple[int, ...] = ()

    @classmethod
    def for_reply(cls, settings: ReplySettings, max_tokens: int) -> Sampling:
        """What the settings of a reply say about drawing, for so many tokens at most."""
        return cls(settings.temperature, settings.top_p, seed=settings.seed, max_tokens=max_tokens)


@dataclass(frozen=True)
class Proposal:
    """Tokens that go on with others. likelihood: natural log-likelihood of all of them, at temperature 1 and with nothing
    banned: what `Engine.score` gives them, but for rounding (int8)."""

    tokens: list[int]
    likelihood: float


class Engine(Protocol):
    """A language model that can go on with tokens and score them."""

    def generate(self, tokens: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield token ids up to (not including) `<eos>`. Closing the iterator ends the generation."""
        ...

    def propose(self, tokens: Sequence[int], sampling: Sampling, count: int, ends: Sequence[int]) -> list[Proposal]:
        """`count` continuations of the same tokens, drawn side by side: each up to and including the first of `ends`, among
        which `<eos>` may be, or `sampling.max_tokens` long. The tokens before are read once, whatever the count."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Natural log-likelihood of every token after the first: float64 [N - 1] each."""
        ...


APART = 1_000_003
"""Between the seeds of candidates, so that neighbouring seeds of replies share none."""


class CTranslate2Engine:
    """int8 decoding on the CPU. Converts the transformers folder once and caches the result by the hash of its weights."""

    _seeding = threading.Lock()

    def __init__(self, folder: Path, vocabulary: UnitVocabulary, threads: int = 1) -> None:
        import ctranslate2

        self.vocabulary, self.threads = vocabulary, threads
        converted = _converted(folder)
        self._files = {path.name: path.read_bytes() for path in converted.iterdir()}
        self._library = ctranslate2
        self._scorer = self._generator()
        self._spares = [self._generator()]

    def _generator(self) -> ctranslate2.Generator:
        return self._library.Generator(
            "bundle", device="cpu", compute_type="int8", inter_threads=1, intra_threads=self.threads, files=self._files
        )

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[tuple[ctranslate2.Generator, Callable[[], None]]]:
        """A generator that draws by this seed, and what must be called once it has drawn a token.

        Each generation has a generator of its own, because CTranslate2 seeds a thread's random numbers when the thread first
        draws one. Making it takes a few ms: one is kept ready. The lock is held until the first token is drawn: the seed is
        global to the process.
        """
        try:
            generator = self._spares.pop()
        except IndexError:
            generator = self._generator()
        self._seeding.acquire()
        locked = True

        def drawn() -> None:
            nonlocal locked
            if locked:
                locked = False
                self._seeding.release()

        try:
            self._library.set_random_seed(seed % 2**31 + 1)
            yield generator, drawn
        finally:
            drawn()
            if not self._spares:
                self._spares.append(self._generator())

    def generate(self, tokens: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """See `Engine`."""
        ahead = threading.Semaphore(AHEAD)
        with self._seeded(sampling.seed) as (generator, drawn):
            try:
                steps = generator.generate_tokens(
                    self.vocabulary.tokens_as_text(tokens),
                    end_token=self.vocabulary.tokens_as_text([self.vocabulary.eos_id]),
                    callback=lambda step: not ahead.acquire(),
                    **self._drawing(sampling),
                )
                for step in steps:
                    drawn()
                    if step.token_id == self.vocabulary.eos_id:
                        return
                    yield step.token_id
                    ahead.release()
            finally:
                ahead.release(sampling.max_tokens)

    def propose(self, tokens: Sequence[int], sampling: Sampling, count: int, ends: Sequence[int]) -> list[Proposal]:
        """See `Engine`."""
        with self._seeded(sampling.seed) as (generator, drawn):
            (result,) = generator.generate_batch(
                [self.vocabulary.tokens_as_text(tokens)],
                num_hypotheses=count,
                end_token=self.vocabulary.tokens_as_text(ends),
                return_end_token=True,
                include_prompt_in_result=False,
                return_logits_vocab=True,
                callback=lambda step: bool(drawn()),  # type: ignore[func-returns-value]
                **self._drawing(sampling),
            )
        return [
            Proposal(list(ids), _likelihood(ids, np.array([np.asarray(step).ravel() for step in logits])))
            for ids, logits in zip(result.sequences_ids, result.logits, strict=True)
        ]

    def _drawing(self, sampling: Sampling) -> dict[str, Any]:
        """What both ways of drawing are told."""
        greedy = sampling.temperature == 0
        return {
            "max_length": sampling.max_tokens,
            "min_length": sampling.min_tokens,
            "sampling_topk": 1 if greedy else min(sampling.top_k, len(self.vocabulary)),
            "sampling_topp": 1.0 if greedy else sampling.top_p,
            "sampling_temperature": 1.0 if greedy else sampling.temperature,
            "suppress_sequences": [[text] for text in self.vocabulary.tokens_as_text(sampling.banned)] or None,
        }

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Engine`."""
        texts = [self.vocabulary.tokens_as_text(tokens) for tokens in sequences]
        return [np.asarray(result.log_probs, dtype=np.float64) for result in self._scorer.score_batch(texts)]


class TorchEngine:
    """PyTorch decoding with a key-value cache, on any device.

    On a GPU the cache is static, a step is a replayed CUDA graph, and the host waits once every AHEAD tokens (see
    `slm.token_steps`). On a CPU the cache grows and each token is given as it is drawn. The tokens are the same, but for the
    rounding of the device.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: UnitVocabulary, static: bool | None = None, ahead: int | None = None
    ) -> None:
        """static: whether all steps have the same shapes, where the model can (`has_fixed_shapes`); None: on a GPU. ahead:
        tokens drawn before the host looks at them; None: AHEAD on a GPU, one at a time on a CPU."""
        self.model, self.vocabulary = model.eval(), vocabulary
        gpu = next(model.parameters()).is_cuda
        self.static = (gpu if static is None else static) and has_fixed_shapes(model)
        self.ahead = (AHEAD if gpu else 1) if ahead is None else ahead
        self._spares: list[TokenSteps] = []
        self._lock = threading.Lock()

    def generate(self, tokens: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """See `Engine`. Random numbers are drawn on the CPU: one seed, one continuation, whatever the device."""
        for ((token, _),) in self._draw(tokens, sampling, [self.vocabulary.eos_id]):
            if token != self.vocabulary.eos_id:
                yield token

    def propose(self, tokens: Sequence[int], sampling: Sampling, count: int, ends: Sequence[int]) -> list[Proposal]:
        """See `Engine`. A forward pass a step for all of them; each is drawn by a seed of its own, as `generate` draws."""
        drawn = [Proposal([], 0.0) for _ in range(count)]
        for step in self._draw(tokens, sampling, ends, count):
            for row, (token, log) in enumerate(step):
                before = drawn[row]
                if not before.tokens or before.tokens[-1] not in ends:
                    drawn[row] = Proposal([*before.tokens, token], before.likelihood + log)
        return drawn

    def _draw(
        self, tokens: Sequence[int], sampling: Sampling, ends: Sequence[int], count: int = 1
    ) -> Iterator[list[tuple[int, float]]]:
        """The next token of each of `count` continuations, with its log-likelihood, until all have met one of `ends`.

        What a continuation is given after its own means nothing. The number of rows stays the same.
        """
        import torch

        if not count or not sampling.max_tokens:
            return
        generators = [torch.Generator().manual_seed(sampling.seed + APART * number) for number in range(count)]
        open_rows = set(range(count))
        with self._steps(count, sampling, len(tokens)) as steps:
            steps.start(tokens, sampling, ends)
            for done in range(0, sampling.max_tokens, self.ahead):
                for drawn in steps.next(min(self.ahead, sampling.max_tokens - done), generators):
                    yield drawn
                    open_rows -= {row for row in open_rows if drawn[row][0] in ends}
                    if not open_rows:
                        return

    @contextmanager
    def _steps(self, rows: int, sampling: Sampling, prompt: int) -> Iterator[TokenSteps]:
        """Steps that nobody else uses; those with a static cache are kept for the next one, SPARES of them."""
        kept = 0 if sampling.temperature == 0 else min(sampling.top_k, self.model.config.get_text_config().vocab_size)
        if not self.static:
            yield TokenSteps(self.model, rows, kept, self.ahead)
            return
        length = cache_length(prompt + sampling.max_tokens)
        with self._lock:
            fitting = [
                steps for steps in self._spares if (steps.rows, steps.kept, steps.length) == (rows, kept, length)
            ]
            if fitting:
                self._spares.remove(fitting[0])
        steps = fitting[0] if fitting else TokenSteps(self.model, rows, kept, self.ahead, length)
        try:
            yield steps
        finally:
            with self._lock:
                self._spares = [steps, *self._spares][:SPARES]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Engine`."""
        import torch

        device = next(self.model.parameters()).device
        scores = []
        for tokens in sequences:
            ids = torch.tensor([list(tokens)], device=device)
            with torch.inference_mode():
                logs = self.model(ids).logits[0, :-1].float().log_softmax(-1)
            scores.append(logs.gather(1, ids[0, 1:, None])[:, 0].double().cpu().numpy())
        return scores


def _likelihood(ids: Sequence[int], logits_NV: np.ndarray) -> float:
    """Natural log-likelihood of tokens [N], by the logits that they were drawn from."""
    if not len(ids):
        return 0.0
    logits = logits_NV.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(ids)), np.asarray(ids)]
    return float((chosen - np.log(np.exp(logits).sum(1))).sum())


def _converted(folder: Path) -> Path:
    """The CTranslate2 form of a transformers folder, made once per content."""
    digest = hashlib.sha256(b"int8 1")
    with reading_model(folder):
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            digest.update(regular(folder / name).read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tresse"
    try:
        home.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    except OSError:
        home = Path(tempfile.gettempdir()) / f"tresse-{os.getuid()}"
        home.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    target = home / digest.hexdigest()[:32]
    try:
        if not (target / "model.bin").exists():
            _convert(folder, made)
            made.chmod(0o755)
            try:
                made.rename(target)
            except OSError:  # another process was faster: its files are the same
                if not (target / "model.bin").exists():
                    raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _convert(folder: Path, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter
    from transformers.utils import logging

    class Converter(TransformersConverter):
        def load_model(self, model_class: Any, model_name_or_path: str, **options: Any) -> Any:
            """The model as this project loads it: checked."""
            return read_model(folder)[0]

    logging.disable_progress_bar()
    check_architecture(folder, local_files_only=True)
    try:
        Converter(str(folder)).convert(str(target), quantization="int8", force=True)
    except TresseError:
        raise
    except Exception as error:  # the converter raises whatever transformers, safetensors or itself run into
        if isinstance(fault := cannot_write(target, error), MachineError):
            raise fault from error
        raise TresseError(f"cannot convert the language model in {folder} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
