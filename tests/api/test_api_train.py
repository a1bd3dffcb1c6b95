from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ddpm
from tiny_runs import TINY


def test_train_returns_a_model_that_samples(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    overrides = {**TINY, "training": {key: value for key, value in TINY["training"].items() if key != "steps"}}
    model = ddpm.train("digits", steps=2, seed=5, out=out, overrides=overrides, quiet=True)
    assert capfd.readouterr() == ("", "")
    assert isinstance(model, ddpm.Model)
    assert (model.provenance["step"], model.provenance["config"]["seed"]) == (2, 5)
    pictures = model.sample(3, steps=2, seed=1)
    assert (pictures.shape, pictures.dtype) == ((3, 8, 8, 1), np.uint8)
    assert pictures.max() <= 16
    assert np.array_equal(pictures, ddpm.Model.load(out).sample(3, steps=2, seed=1))
