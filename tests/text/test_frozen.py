from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data.progress import silent
from ddpm.errors import ConfigError, TextError
from ddpm.text.encoding import caption_tokens, encode_texts, text_spec
from ddpm.text.frozen import FrozenEncoder, kept_features, load_encoder

pytest.importorskip("transformers", reason="frozen text encoders need the extra 'transformers'")

from text import frozen_encoders

TEXTS = ["red heart", "", "blue"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {"clip": frozen_encoders.clip(root / "clip"), "t5": frozen_encoders.t5(root / "t5")}


@pytest.fixture(params=["clip", "t5"])
def encoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FrozenEncoder:
    return load_encoder(str(folders[request.param]))


def test_features_are_those_of_the_text_alone(encoder: FrozenEncoder) -> None:
    """Oracle: the network on the ids of one text without any padding."""
    features = encoder.encode(TEXTS, 7)
    ids = torch.tensor(encoder.tokenizer("red heart")["input_ids"])[None]
    with torch.no_grad():
        alone = encoder.network(input_ids=ids).last_hidden_state[0]
    assert float((features[0, : len(alone)] - alone).abs().max()) < 1e-6
    assert not features[0, len(alone) :].any()


def test_a_blank_text_is_none(encoder: FrozenEncoder) -> None:
    assert not encoder.encode(TEXTS, 7)[1].any()
    assert encoder.lengths(["", " \n", "red"])[:2] == [0, 0]


def test_longer_padding_and_other_texts_change_nothing(encoder: FrozenEncoder) -> None:
    assert float((encoder.encode(TEXTS, 7)[:, :5] - encoder.encode(TEXTS, 5)).abs().max()) < 1e-6
    assert float((encoder.encode(TEXTS, 7)[2:] - encoder.encode(TEXTS[2:], 7)).abs().max()) < 1e-6


def test_a_text_that_is_too_long_is_refused_with_the_limit(encoder: FrozenEncoder) -> None:
    with pytest.raises(TextError, match="expected at most 3"):
        encoder.encode(["red heart blue square"], 3)


def test_features_are_computed_once(encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept_features(encoder, TEXTS, 7, tmp_path, silent)
    assert first.shape == (3, 7, 16)
    assert float(np.abs(first - encoder.encode(TEXTS, 7).numpy()).max()) < 2e-3  # float16
    monkeypatch.setattr(FrozenEncoder, "encode", lambda *given: pytest.fail("encoded again"))
    assert np.array_equal(kept_features(encoder, TEXTS, 7, tmp_path, silent), first)


def test_other_texts_and_other_weights_are_kept_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    other = load_encoder(str(frozen_encoders.clip(tmp_path / "clip", seed=1)))
    kept_features(load_encoder(str(folders["clip"])), TEXTS, 7, tmp_path, silent)
    kept_features(other, TEXTS, 7, tmp_path, silent)
    kept_features(other, TEXTS[:2], 7, tmp_path, silent)
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_rows_get_the_features_of_their_captions(folders: dict[str, Path], tmp_path: Path) -> None:
    captions = ["red heart", "blue", "red heart"]
    spec = text_spec(str(folders["t5"]), captions, np.arange(3))
    rows = caption_tokens(spec, captions, tmp_path)
    assert rows.tokens.shape[0] == 2
    expected = encode_texts(spec, captions)
    assert float((rows.of(np.asarray([2, 1])) - expected[[2, 1]]).abs().max()) < 2e-3


def test_other_files_than_those_of_the_training_are_refused(tmp_path: Path) -> None:
    folder = frozen_encoders.clip(tmp_path / "clip")
    spec = text_spec(str(folder), ["red"], np.arange(1))
    wrong = spec.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ConfigError, match="use the same files"):
        encode_texts(wrong, ["red"])


def test_more_tokens_than_the_encoder_reads_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="reads at most 8"):
        text_spec(str(folders["clip"]), ["red"], np.arange(1), tokens=9)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no text encoder"):
        load_encoder(str(tmp_path))


def test_a_name_that_cannot_be_fetched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ConfigError, match="cannot be fetched from the Hub \\(no network\\)"):
        load_encoder("openai/no-such-encoder")
