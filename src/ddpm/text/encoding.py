"""From texts to the tokens that a network reads: ids of a tokenizer of our own, or features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.config.conditions import OWN_TEXT, TextSpec
from ddpm.data.progress import ProgressFactory, silent
from ddpm.errors import ConfigError
from ddpm.text.frozen import FrozenEncoder, kept_features, load_encoder, refuse_long
from ddpm.text.tokenizer import Tokenizer, learn

MOST_MERGES = 4000
MOST_CAPTIONS = 2000
"""Captions that a model keeps, to draw conditions from."""

_LEARNED_FROM = 200_000  # captions, evenly spread: more would teach the tokenizer nothing new
_ROOM = 1.5  # longest text in units of the longest caption
_STEP = 8  # a first token and the text make a multiple of it, as matrix products like
_LEAST = 31  # words that no caption has are spelled in bytes, and want room


def text_spec(
    encoder: str, captions: Sequence[str], train: NDArray[np.int64], tokens: int | None = None, device: str = "cpu"
) -> TextSpec:
    """Return how a model will read texts: the tokenizer is learned here, or the frozen encoder looked up.

    Args:
        encoder: "own", or folder or name of a frozen one.
        captions: of all rows.
        train: rows to learn from, int64.
        tokens: the most that a text may have; none: half more than the longest caption has, at least 31.
        device: of the frozen encoder.

    Raises:
        ConfigError: if the encoder cannot be had, or reads fewer tokens than asked for.
        TextError: if a caption is too long.
    """
    rows = [captions[int(row)] for row in train]
    few = min(len(rows), MOST_CAPTIONS)
    kept = tuple(rows[i * len(rows) // few] for i in range(few))
    if encoder == OWN_TEXT:
        part = rows[:: max(1, -(-len(rows) // _LEARNED_FROM))]
        tokenizer = learn(part, MOST_MERGES)
        lengths = [len(tokenizer.encode(text)) for text in captions]
        spec = TextSpec(tokens=tokens or _with_room(lengths), captions=kept, merges=tokenizer.merges)
    else:
        frozen = _frozen(encoder, device)
        lengths = frozen.lengths(captions)
        if tokens is not None and tokens > frozen.limit:
            raise ConfigError(f"conditions.text_tokens is {tokens}, but '{encoder}' reads at most {frozen.limit}")
        limit = tokens or min(frozen.limit, _with_room(lengths))
        spec = TextSpec(tokens=limit, captions=kept, encoder=encoder, sha256=frozen.sha256, features=frozen.features)
    advice = "shorten it" if tokens is None else "shorten it, or set a larger conditions.text_tokens"
    for text, length in zip(captions, lengths, strict=True):
        refuse_long(text, length, spec.tokens, advice)
    return spec


def check_texts(spec: TextSpec, texts: Sequence[str]) -> None:
    """Refuse texts that a model cannot read.

    Raises:
        TextError: if one is too long.
        ConfigError: if the model's frozen encoder cannot be had, or is another one.
    """
    if spec.encoder is None:
        tokenizer = Tokenizer(spec.merges)
        lengths = [len(tokenizer.encode(text)) for text in texts]
    else:
        lengths = _of_spec(spec, "cpu").lengths(texts)
    for text, length in zip(texts, lengths, strict=True):
        refuse_long(text, length, spec.tokens)


def encode_texts(spec: TextSpec, texts: Sequence[str], device: str = "cpu") -> Tensor:
    """Return the tokens of texts: int64 [B, L] ids, or float32 [B, L, D] features; zeros are padding.

    Raises:
        TextError: if a text is too long.
        ConfigError: if the model's frozen encoder cannot be had, or is another one.
    """
    if spec.encoder is not None:
        return _of_spec(spec, device).encode(texts, spec.tokens)
    tokenizer = Tokenizer(spec.merges)
    ids = torch.zeros(len(texts), spec.tokens, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        encoded = tokenizer.encode(text)
        refuse_long(text, len(encoded), spec.tokens)
        row[: len(encoded)] = torch.tensor(encoded, dtype=torch.int64)
    return ids


@dataclass(frozen=True, eq=False)
class CaptionTokens:
    """The tokens of a data set's captions, each different caption once.

    Attributes:
        tokens: int64 [U, L], or float16 [U, L, D] mapped from the disk.
        places: int64 [N], which of them belongs to a row.
    """

    tokens: NDArray[Any]
    places: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the tokens of rows, as `Condition.tokens`."""
        tokens = torch.from_numpy(np.asarray(self.tokens[self.places[rows]]))
        return tokens.float() if tokens.is_floating_point() else tokens


def caption_tokens(
    spec: TextSpec, captions: Sequence[str], root: Path, *, device: str = "cpu", progress: ProgressFactory = silent
) -> CaptionTokens:
    """Return the tokens of all captions; features of a frozen encoder are computed once and kept under `root`.

    Raises:
        TextError: if a caption is too long.
        ConfigError: if the frozen encoder cannot be had, or is another one.
    """
    place = {text: number for number, text in enumerate(dict.fromkeys(captions))}
    places = np.asarray([place[text] for text in captions], dtype=np.int64)
    if spec.encoder is None:
        return CaptionTokens(encode_texts(spec, list(place)).numpy(), places)
    frozen = _of_spec(spec, device)
    return CaptionTokens(kept_features(frozen, list(place), spec.tokens, root, progress), places)


def _with_room(lengths: Sequence[int]) -> int:
    """Return a limit for texts beside captions of these lengths."""
    longest = 1 + int(_ROOM * max(lengths, default=0))
    return max(_LEAST, -(-longest // _STEP) * _STEP - 1)


def _of_spec(spec: TextSpec, device: str) -> FrozenEncoder:
    """Return the frozen encoder of a model, refusing other files than it was trained with."""
    assert spec.encoder is not None  # TextSpec sees to it that all of its facts are there
    frozen = _frozen(spec.encoder, device)
    if frozen.sha256 != spec.sha256:
        raise ConfigError(
            f"the text encoder '{spec.encoder}' has SHA-256 {frozen.sha256[:12]}..., but the model was trained with "
            f"{str(spec.sha256)[:12]}...; use the same files"
        )
    return frozen


@lru_cache(maxsize=1)
def _frozen(name: str, device: str) -> FrozenEncoder:
    """Return a frozen encoder, loaded once: it is asked for by the data and by every preview."""
    return load_encoder(name, device=device)
