"""The torture folder does not only load: it trains, and samples come out in its own form."""

from pathlib import Path

import numpy as np
from torture_folder import make_torture_folder

import ddpm


def test_torture_folder_trains(tmp_path: Path):
    folder = tmp_path / "torture"
    make_torture_folder(folder)
    overrides = {
        "data": {"max_bad_share": 0.9},
        "network": {
            "base_channels": 8,
            "channel_multipliers": [1, 2],
            "attention_levels": [1],
            "num_groups": 4,
            "head_channels": 8,
        },
        "training": {"previews": 1, "warmup_steps": 0},
    }
    model = ddpm.train(folder, size=16, steps=2, batch_size=4, out=tmp_path / "run", overrides=overrides, quiet=True)
    pictures = model.sample(2, steps=2)
    assert pictures.shape == (2, 16, 16, 3)
    assert pictures.dtype == np.uint8
