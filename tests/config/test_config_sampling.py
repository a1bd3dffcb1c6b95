from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ddpm.config import from_tree
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import ConfigError


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"sampler": "unipc", "churn": 40}, "sampler 'unipc' takes no option 'churn'; it takes order, variant"),
        ({"churn": 40}, "sampler 'unipc' takes no option 'churn'; it takes order, variant"),
        ({"sampler": "ddpm", "eta": 0.5}, "sampler 'ddpm' takes no option 'eta'; it takes variance"),
        ({"sampler": "heun", "churn": -1.0}, "sampling.churn"),
        ({"sampler": "heun", "churn": "much"}, "sampling.churn"),
        ({"sampler": "unipc", "variant": "bh3"}, "sampling.variant"),
    ],
)
def test_what_a_sampler_does_not_take_is_refused(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_tree({"sampling": choices})


def test_the_tree_holds_what_is_set_and_comes_back() -> None:
    config = SamplingConfig(sampler="heun", steps=9, churn=40.0, churn_range=(0.05, 50.0))
    tree = config.as_tree()
    assert tree == {"sampler": "heun", "steps": 9, "clip": True, "churn": 40.0, "churn_range": [0.05, 50.0]}
    assert from_tree({"sampling": tree}).sampling == config


def test_times_must_decrease_and_be_as_many_as_the_steps() -> None:
    for steps, times in ((2, (5.0,)), (2, (5.0, 5.0)), (2, (3.0, 5.0))):
        with pytest.raises(ValidationError, match="timesteps"):
            SamplingConfig(steps=steps, timesteps=times)
