from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.config.conditions import TextSpec
from ddpm.errors import ConfigError, TextError
from ddpm.text.encoding import MOST_CAPTIONS, caption_tokens, encode_texts, text_spec
from ddpm.text.frozen import load_encoder

CAPTIONS = ["red heart", "blue heart", "", "red square", "red heart"]
TRAIN = np.asarray([0, 1, 3])


def test_the_tokenizer_is_learned_from_training_captions_alone() -> None:
    captions = [*CAPTIONS, "zzzz", "zzzz"]
    assert text_spec("own", captions, TRAIN).merges == text_spec("own", CAPTIONS, TRAIN).merges


def test_there_is_room_for_half_more_than_the_longest_caption() -> None:
    caption = " ".join("abcdefghijklmnopqrstuvwxyz")  # in which no pair of bytes occurs twice
    spec = text_spec("own", [caption], np.arange(1))
    longest = int((encode_texts(spec, [caption]) != 0).sum())
    assert longest == 52
    assert text_spec("own", ["a"], np.arange(1)).tokens == 31
    assert 1.5 * longest <= spec.tokens <= 1.5 * longest + 8
    assert (spec.tokens + 1) % 8 == 0


def test_ids_are_padded_with_zeros_and_a_blank_text_is_none() -> None:
    spec = text_spec("own", CAPTIONS, TRAIN)
    ids = encode_texts(spec, ["red heart", ""])
    assert ids.shape == (2, spec.tokens)
    assert ids.dtype == torch.int64
    assert not ids[1].any()
    assert int(ids.max()) < (spec.vocabulary or 0)


def test_a_prompt_that_is_too_long_is_refused_with_the_limit() -> None:
    spec = text_spec("own", CAPTIONS * 2, np.arange(10), tokens=2)  # in which every word is one token
    with pytest.raises(TextError, match=r"'red heart red' is 3 tokens long; expected at most 2"):
        encode_texts(spec, ["red heart red"])


def test_a_caption_that_is_too_long_is_refused() -> None:
    with pytest.raises(TextError, match=r"expected at most 1.*conditions\.text_tokens"):
        text_spec("own", CAPTIONS, TRAIN, tokens=1)


def test_rows_get_the_tokens_of_their_captions(tmp_path: Path) -> None:
    spec = text_spec("own", CAPTIONS, TRAIN)
    rows = caption_tokens(spec, CAPTIONS, tmp_path)
    assert torch.equal(rows.of(np.asarray([4, 2, 3])), encode_texts(spec, [CAPTIONS[i] for i in (4, 2, 3)]))


def test_few_captions_are_kept_to_draw_from() -> None:
    captions = [f"number {i}" for i in range(MOST_CAPTIONS + 500)]
    kept = text_spec("own", captions, np.arange(len(captions))).captions
    assert len(kept) == MOST_CAPTIONS == len(set(kept))


@pytest.mark.parametrize("merges", [((0, 5),), ((5, 257),)])
def test_a_tokenizer_that_is_none_is_refused(merges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="merge 0"):
        TextSpec(tokens=7, merges=merges)


def test_a_frozen_encoder_without_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddpm\[transformers\]'"):
        load_encoder("openai/clip-vit-base-patch32")
