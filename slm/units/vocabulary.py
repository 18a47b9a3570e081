"""The unit vocabulary: collapsed units <-> tokens, and the language tags.

Units are written as one character each (from U+4E00 on) and merged by byte-pair encoding, which makes token sequences
about four times shorter than unit sequences. One `tokenizer.json` holds units, merges, `<bos>`, `<eos>` and one tag per
language, so that `AutoTokenizer.from_pretrained(bundle/slm)` is all another program needs. Price: one embedding table
of `vocab_size` rows. BPE can be turned off (`vocab_size=None`): then a token is a unit. So can the run-length collapse, in
the unit encoder (`collapse` in its config.json): then a unit is a frame. Both off give the paper's raw units. Whether the
model was trained with language tags is written beside the tokenizer (`tags` in tokenizer_config.json): who puts tokens
together asks the vocabulary for the `head` of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers

from slm.errors import TresseError
from slm.schema import TokenizerSettings, parse, read_json, regular

FIRST_CHARACTER = 0x4E00
"""Unit k is the character U+4E00 + k: 20,992 letters without case, combining marks or spaces."""
MAX_CODEBOOK = 0x9FFF - FIRST_CHARACTER + 1
BOS, EOS = "<bos>", "<eos>"


def tag(language: str) -> str:
    """The token that opens a sentence of this language."""
    return f"<{language}>"


def to_text(ids: np.ndarray | Sequence[int]) -> str:
    """Unit ids [N] -> a string of N characters."""
    return (np.asarray(ids, dtype=np.int64) + FIRST_CHARACTER).astype("<u2").tobytes().decode("utf-16-le")


def check_names(languages: Sequence[str]) -> None:
    """Raise TresseError for names of languages that cannot be tags."""
    for language in languages:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language) or tag(language) in (BOS, EOS):
            raise TresseError(f"{language!r} cannot be a language's name: use a code such as en, pt-BR or fra")
    if len(set(languages)) < len(languages):
        raise TresseError(f"languages must be named once each, not {', '.join(languages)}")


class UnitVocabulary:
    """Encodes unit ids as tokens and back, losslessly.

    `tag_ids` maps a language to the token that opens its sentences; `bos_id` opens and `eos_id` ends a story. tags: whether
    sentences are opened so; where not, the tags are tokens that the model was never trained on.
    """

    def __init__(
        self, tokenizer: Tokenizer, languages: Sequence[str], codebook_size: int, *, tags: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.tags = tags
        self.languages = list(languages)
        self.codebook_size = codebook_size
        ids = {name: tokenizer.token_to_id(name) for name in [BOS, EOS, *map(tag, languages)]}
        known: dict[str, int] = {name: index for name, index in ids.items() if index is not None}
        if len(known) < len(ids):
            missing = next(name for name in ids if name not in known)
            raise TresseError(f"the tokenizer has no token {missing}: rebuild the vocabulary with this language")
        self.bos_id, self.eos_id = known[BOS], known[EOS]
        self.tag_ids = {language: known[tag(language)] for language in languages}
        self.language_of_tag = {index: language for language, index in self.tag_ids.items()}
        specials = {self.bos_id, self.eos_id, *self.tag_ids.values()}
        self._units_of: list[tuple[int, ...]] = []
        for index in range(len(self)):
            text = "" if index in specials else (tokenizer.id_to_token(index) or "")
            self._units_of.append(tuple(ord(character) - FIRST_CHARACTER for character in text))

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    @classmethod
    def train(
        cls,
        unit_sequences: Iterable[np.ndarray],
        *,
        codebook_size: int,
        languages: Sequence[str],
        vocab_size: int | None,
        max_units_per_token: int = 16,
    ) -> UnitVocabulary:
        """Learn BPE merges from unit sequences. `vocab_size`: units and merges; None: no merges, every unit is a token.

        Raises TresseError for a codebook, a vocabulary or languages that cannot be.
        """
        if not 0 < codebook_size <= MAX_CODEBOOK:
            raise TresseError(f"codebook_size must lie between 1 and {MAX_CODEBOOK}, not {codebook_size}")
        if vocab_size is not None and vocab_size < codebook_size:
            raise TresseError(
                f"a vocabulary of {vocab_size} cannot hold {codebook_size} units: make it larger, or turn BPE off (null)"
            )
        check_names(languages)
        alphabet = [chr(FIRST_CHARACTER + unit) for unit in range(codebook_size)]
        if vocab_size is None:
            tokenizer = Tokenizer(models.BPE(vocab={letter: k for k, letter in enumerate(alphabet)}, merges=[]))
        else:
            tokenizer = Tokenizer(models.BPE())
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                initial_alphabet=alphabet,
                max_token_length=max_units_per_token,
                show_progress=False,
            )
            tokenizer.train_from_iterator((to_text(ids) for ids in unit_sequences), trainer)
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in [BOS, EOS, *map(tag, languages)]])
        return cls(tokenizer, languages, codebook_size)

    def add_languages(self, languages: Sequence[str]) -> UnitVocabulary:
        """A vocabulary with further language tags at the end; all earlier token ids stay. Those it has are left out.

        The model's embedding must then be resized: `model.resize_token_embeddings(len(vocabulary))`.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        new = [language for language in dict.fromkeys(languages) if language not in self.tag_ids]
        check_names(new)
        tokenizer.add_special_tokens([AddedToken(tag(language), special=True) for language in new])
        return UnitVocabulary(tokenizer, [*self.languages, *new], self.codebook_size, tags=self.tags)

    def with_tags(self, tags: bool) -> UnitVocabulary:
        """The same tokens, for a model that is trained with language tags or without them."""
        return UnitVocabulary(self.tokenizer, self.languages, self.codebook_size, tags=tags)

    def head(self, language: str) -> list[int]:
        """What stands before a sentence: the tag of its language, or nothing. Raises TresseError for an unknown one."""
        if not self.tags:
            return []
        if language not in self.tag_ids:
            raise TresseError(f"unknown language {language!r}: this model knows {', '.join(self.languages)}")
        return [self.tag_ids[language]]

    def encode(self, ids: np.ndarray | Sequence[int]) -> list[int]:
        """Unit ids [N] -> token ids [M], M <= N. Raises ValueError for ids that are no units."""
        self._check(ids)
        return list(self.tokenizer.encode(to_text(ids), add_special_tokens=False).ids)

    def encode_batch(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Many unit sequences at once (in parallel): list of int32 [M]."""
        for ids in sequences:
            self._check(ids)
        encodings = self.tokenizer.encode_batch_fast([to_text(ids) for ids in sequences], add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, tokens: Iterable[int]) -> np.ndarray:
        """Token ids -> unit ids int64 [N]; tags, `<bos>` and `<eos>` stand for no unit. IndexError for no token's id."""
        return np.asarray([unit for token in tokens for unit in self.token_units(token)], dtype=np.int64)

    def token_units(self, token: int) -> tuple[int, ...]:
        """The units one token stands for (none for tags, `<bos>`, `<eos>`). IndexError for no token's id."""
        if token < 0:
            raise IndexError(f"there is no token {token}")
        return self._units_of[token]

    def sequence(self, sentences: Iterable[tuple[str, np.ndarray]], *, end: bool = False) -> list[int]:
        """(language, unit ids) sentences -> `<bos> <en> ... <fr> ...` (and `<eos>` with `end`); no tags without `tags`."""
        tokens = [self.bos_id]
        for language, ids in sentences:
            tokens += [*self.head(language), *self.encode(ids)]
        return [*tokens, self.eos_id] if end else tokens

    def tokens_as_text(self, tokens: Iterable[int]) -> list[str]:
        """Token ids -> token strings, as CTranslate2 wants them."""
        return [self.tokenizer.id_to_token(int(token)) or "" for token in tokens]

    def _check(self, ids: np.ndarray | Sequence[int]) -> None:
        values = np.asarray(ids)
        if len(values) and (values.min() < 0 or values.max() >= self.codebook_size):
            raise ValueError(f"unit ids must lie in 0..{self.codebook_size - 1}")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json for AutoTokenizer."""
        from transformers import PreTrainedTokenizerFast

        fast = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self.tokenizer.to_str()),
            bos_token=BOS,
            eos_token=EOS,
            pad_token=EOS,
            languages=self.languages,
            codebook_size=self.codebook_size,
            tags=self.tags,
        )
        fast.save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path) -> UnitVocabulary:
        """Read what `save` wrote. Raises TresseError where files are missing or damaged."""
        path = folder / "tokenizer_config.json"
        settings = parse(TokenizerSettings, read_json(path), path)
        try:
            tokenizer = Tokenizer.from_file(str(regular(folder / "tokenizer.json")))
            vocabulary = cls(tokenizer, settings.languages, settings.codebook_size, tags=settings.tags)
            vocabulary._check(vocabulary.decode(range(len(vocabulary))))
            if max(vocabulary.bos_id, vocabulary.eos_id, *vocabulary.tag_ids.values()) >= len(vocabulary):
                raise ValueError("a token's number is larger than there are tokens")
            return vocabulary
        except TresseError:
            raise
        except Exception as error:  # tokenizers raises bare Exception on damaged files
            raise TresseError(f"cannot read the unit vocabulary in {folder}: restore the bundle's files") from error
