"""No float64 reaches the device that trains: Apple's GPUs have none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import MakePlan
from ddpm.engine import choose_engine


class NoFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses float64 on the meta device, which stands for one that has none."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                assert tensor.dtype != torch.float64, func
        return result


def test_the_guard_sees_float64() -> None:
    with pytest.raises(AssertionError), NoFloat64():  # type: ignore[no-untyped-call]
        torch.zeros(2, device="meta").double()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"objective": {"parameterization": "v", "weighting": "min_snr"}},
        {"objective": {"loss": "hybrid", "variance": "learned"}},
        {"network": {"self_conditioning": True}, "conditions": {"label": True}},
    ],
)
def test_a_training_step_has_no_float64_on_the_device(
    plan: MakePlan, sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *about, **more: nullcontext())  # which the meta device does not have
    made = plan(**sections)
    engine = replace(choose_engine("cpu", "float32"), device="meta", native=False, channels_last=False)
    network, objective = made.start(engine)
    batch = made.batches(50).batch(0)
    with NoFloat64():  # type: ignore[no-untyped-call]
        objective.losses(network, batch).total.sum().backward()  # type: ignore[no-untyped-call]
