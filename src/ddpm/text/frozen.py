"""Any Hugging Face text encoder (CLIP, T5), frozen: its features are computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data.progress import ProgressFactory, silent
from ddpm.errors import ConfigError, TextError
from ddpm.files import write_atomically
from ddpm.hub import first_line, folder_of, hash_of

_LONGEST = 512  # tokens, where neither tokenizer nor network states a limit
_BATCH = 64


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """A text encoder that is used as it is.

    Attributes:
        name: of a folder, or on the Hub.
        sha256: of its files.
        features: D, the width of its features.
        limit: the longest text, in tokens.
        network: ids and mask -> features.
        tokenizer: texts -> ids and mask.
    """

    name: str
    sha256: str
    features: int
    limit: int
    network: Any
    tokenizer: Any

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has; a blank one has none."""
        ids = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        return [len(row) if text.strip() else 0 for row, text in zip(ids, texts, strict=True)]

    @torch.no_grad()
    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return features float32 [B, length, D]; rows of zeros are padding, and all that a blank text has.

        Raises:
            TextError: if a text is longer than `length` tokens.
        """
        for text, tokens in zip(texts, self.lengths(texts), strict=True):
            refuse_long(text, tokens, length)
        inputs = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        device = next(self.network.parameters()).device
        ids, mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
        features: Tensor = self.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # [B, L, D]
        said = torch.tensor([bool(text.strip()) for text in texts], device=device)
        there = mask.bool() & said[:, None]
        return torch.where(there[:, :, None], features, torch.zeros_like(features)).cpu()


def load_encoder(name: str, *, device: str = "cpu") -> FrozenEncoder:
    """Load a text encoder from a folder, or by its name on the Hugging Face Hub.

    Args:
        name: the folder, or the name.
        device: where it runs.

    Raises:
        ConfigError: if `transformers` is not installed, or the encoder cannot be had, or is none.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the text encoder '{name}' needs transformers: pip install 'ddpm[transformers]'; or use 'own', an encoder "
            "that is trained along"
        ) from error
    folder = folder_of(name, "text encoder", "'own'")
    found = hash_of(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        config = transformers.AutoConfig.from_pretrained(folder)
        is_clip = config.model_type in ("clip", "clip_text_model")
        kind = transformers.CLIPTextModel if is_clip else transformers.AutoModelForTextEncoding
        network = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"'{name}' is no text encoder that transformers can load: {first_line(error)}") from error
    network.to(device).eval().requires_grad_(False)
    stated = getattr(network.config, "max_position_embeddings", None) or _LONGEST
    limit = min(int(tokenizer.model_max_length), int(stated))  # an unstated one is a huge number
    return FrozenEncoder(name, found, int(network.config.hidden_size), limit, network, tokenizer)


def kept_features(
    encoder: FrozenEncoder, texts: Sequence[str], length: int, root: Path, progress: ProgressFactory = silent
) -> NDArray[np.float16]:
    """Return the features of texts [N, length, D], computed the first time and mapped from the disk later.

    They take 2 D bytes a token; float16 keeps 3 digits of features that a layer norm has brought near 1.

    Args:
        encoder: what makes them.
        texts: each once.
        length: of each, in tokens.
        root: folder of all kept features.
        progress: shows the computation.

    Raises:
        TextError: if a text is longer than `length` tokens.
    """
    key = hashlib.sha256(json.dumps([encoder.sha256, length, list(texts)]).encode("utf-8", "surrogatepass"))
    path = root / f"{key.hexdigest()[:32]}.npy"
    if not path.is_file():
        write_atomically(path, lambda part: _write_features(part, encoder, texts, length, progress))
    kept: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return kept


def _write_features(
    path: Path, encoder: FrozenEncoder, texts: Sequence[str], length: int, progress: ProgressFactory
) -> None:
    shape = (len(texts), length, encoder.features)
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    largest = float(np.finfo(np.float16).max)
    with progress(len(texts), "encoding texts") as shown:
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            made[start : start + len(part)] = encoder.encode(part, length).clamp(-largest, largest).numpy()
            shown.update(len(part))
    made.flush()


def refuse_long(text: str, tokens: int, limit: int, advice: str = "shorten it") -> None:
    """Refuse a text of more tokens than there may be.

    Raises:
        TextError: with the beginning of the text, its length, the limit and the advice.
    """
    if tokens > limit:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise TextError(f"the text '{shown}' is {tokens} tokens long; expected at most {limit}: {advice}")
