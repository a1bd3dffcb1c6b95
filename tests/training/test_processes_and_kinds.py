"""Whatever is trained, and however batches are cut: several processes make the steps of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ddpm.training.evaluate
from conftest import TINY
from ddpm.config import merge
from ddpm.errors import ConfigError
from ddpm.model_file import ADAPTER_NAME, MODEL_NAME
from ddpm.processes import Group
from ddpm.training.distill import make_distillation_plan
from ddpm.training.events import Finished
from ddpm.training.fine_tune import make_fine_tuning_plan
from ddpm.training.image_adapter import make_image_adapter_plan
from ddpm.training.loop import StepReport
from ddpm.training.plan import Plan, make_plan
from ddpm.training.run import check_processes, run
from groups import alone, together
from shards import write_shards
from tiny_runs import only, tensors

STEPS = 4
"""Of which the last two add up their gradients during the backward pass."""

SHORT: dict[str, Any] = {
    "training": {
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 3,
        "preview_every": 1000,
        "evaluate_every": 1000,
        "checkpoint_every": 1000,
        "previews": 1,
        "milestones": 0,
        "ema_decay": 0.9,
    },
    "sampling": {"steps": 1},
    "seed": 3,
}
ATTENDING = merge(merge(TINY, SHORT), {"network": {"dropout": 0.1, "head_channels": None}, "data": {"flip": True}})
DISTILLED = {"training": SHORT["training"] | {"precision": "float32", "learning_rate": 1e-3}}
ADAPTED = {"training": SHORT["training"] | {"learning_rate": 2e-3, "decay": "constant", "warmup_steps": 0}}


def trained(folder: Path, out: Path, **sections: Any) -> Plan:
    return make_plan("digits", merge(ATTENDING, sections), preset="digits", out=out)


def distilled(folder: Path, out: Path, method: str, **training: Any) -> Plan:
    tree = merge(DISTILLED, {"training": training})
    return make_distillation_plan(folder / "base", tree, steps=3, method=method, teacher_steps=2, out=out)


def adapted(folder: Path, out: Path, **sections: Any) -> Plan:
    return make_fine_tuning_plan(folder / "base", "digits", merge(ADAPTED, sections), out=out)


def prompted(folder: Path, out: Path) -> Plan:
    return make_image_adapter_plan(folder / "base", "digits", ADAPTED, out=out, cache_dir=folder / "cache")


def streamed(folder: Path, out: Path) -> Plan:
    tree = merge(ATTENDING, {"data": {"shards_at_once": 1}})
    return make_plan(str(folder / "shards" / "*.tar"), tree, preset="auto", out=out, cache_dir=folder / "cache")


def captioned(folder: Path, out: Path) -> Plan:
    text = {"conditions": {"text": "own", "dropout": 0.5}, "network": {"text_width": 16, "text_layers": 1}}
    tree = merge(merge(ATTENDING, text), {"data": {"flip": False}})
    return make_plan(folder / "captioned", tree, preset="auto", out=out, cache_dir=folder / "cache")


CASES: dict[str, Callable[[Path, Path], Plan]] = {
    "uneven": lambda folder, out: trained(folder, out, training={"batch_size": 7, "micro_batch_size": 2}),
    "importance": lambda folder, out: trained(
        folder,
        out,
        schedule={"num_timesteps": 3},
        objective={"timesteps": "importance", "loss": "hybrid", "variance": "learned"},
        training={"steps": 10, "checkpoint_every": 3},
    ),
    "self-conditioning": lambda folder, out: trained(folder, out, network={"self_conditioning": True}),
    "labels": lambda folder, out: trained(
        folder,
        out,
        conditions={"label": True, "dropout": 0.5, "balanced": True},
        training={"gradient_checkpointing": True},
    ),
    "text": captioned,
    "shards": streamed,
    "lora": lambda folder, out: adapted(folder, out, lora={"rank": 2, "layers": "all"}),
    "image adapter": prompted,
    "progressive": lambda folder, out: distilled(folder, out, "progressive"),
    "consistency": lambda folder, out: distilled(folder, out, "consistency"),
}

SLOW = ("self-conditioning", "text", "image adapter", "consistency")


def make_data(folder: Path) -> None:
    """Write a trained base with labels, shards, and pictures with captions."""
    write_shards(folder / "shards", [12, 9, 14])
    (folder / "captioned").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "captioned" / f"{number:02}.png")
    captions = [f"{number:02}.png,{'a red square' if number % 3 else 'blue'}" for number in range(12)]
    (folder / "captioned" / "metadata.csv").write_text("\n".join(["file_name,text", *captions]) + "\n")
    list(run(trained(folder, folder / "base", conditions={"label": True})))
    for case in ("text", "shards", "image adapter"):  # fill the cache, as the first process of a machine does
        CASES[case](folder, folder / "unused")


def steps_of(group: Group, folder: Path, outs: Path, cases: list[str]) -> dict[str, list[Any]]:
    """Train every case; return loss, gradient norm, learning rate, losses and times of each picture of every step."""
    ddpm.training.evaluate._MOST = 16  # looks cost more than these steps
    found = {}
    for case in cases:
        events = list(run(CASES[case](folder, outs / case), None, group))
        assert only(events, Finished)[0].complete
        found[case] = [
            (report.loss, report.gradient_norm, report.learning_rate, report.losses.tolist(), report.t.tolist())
            for report in only(events, StepReport)
        ]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpm.training.evaluate, "_MOST", 16)
        make_data(folder)
        yield folder


Runs = Callable[[str], tuple[list[Any], list[list[Any]]]]


@pytest.fixture(scope="module")
def runs(data: Path) -> Runs:
    """The steps of a case, by one process, and by each of two; cases that are run as often share their processes."""
    found: dict[str, tuple[list[Any], list[list[Any]]]] = {}

    def of(case: str) -> tuple[list[Any], list[list[Any]]]:
        if case not in found:
            cases = [each for each in CASES if (each in SLOW) == (case in SLOW)]
            one = alone(steps_of, data, data / "one", cases)
            two = together(steps_of, data, data / "two", cases)
            found.update({each: (one[each], [steps[each] for steps in two]) for each in cases})
        return found[case]

    return of


def averaged(folder: Path) -> Tensor:
    """Return all averaged weights that a run has trained, in a row."""
    (file,) = (folder / name for name in (MODEL_NAME, ADAPTER_NAME) if (folder / name).exists())
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(tensors(file).items())])


def apart(one: Path, other: Path) -> float:
    """Return |a - b| / |a| of the averages of two runs.

    Of all weights together: Adam divides by the size of a gradient, so where that is zero but for rounding, as that of
    a key's bias, the weight moves by what rounding says, and nothing depends on it.
    """
    a, b = averaged(one), averaged(other)
    return float((a - b).norm() / a.norm())


def assert_same_steps(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) >= STEPS
    for (loss, norm, rate, each, t), (a, b, c, of_each, times) in zip(found, expected, strict=True):
        assert (loss, norm, rate) == (pytest.approx(a, rel=1e-5), pytest.approx(b, rel=1e-5), c)
        assert each == pytest.approx(of_each, rel=1e-5)
        assert t == times


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_two_processes_make_the_steps_of_one(case: str, data: Path, runs: Runs) -> None:
    expected, (first, second) = runs(case)
    assert first == second
    assert_same_steps(first, expected)
    assert apart(data / "one" / case, data / "two" / case) < 1e-5


@pytest.mark.slow
def test_a_batch_of_seven_is_shared_by_three(data: Path, runs: Runs) -> None:
    expected, _ = runs("uneven")
    found = together(steps_of, data, data / "three", ["uneven"], size=3)
    assert found[0] == found[1] == found[2]
    assert_same_steps(found[0]["uneven"], expected)
    assert apart(data / "one" / "uneven", data / "three" / "uneven") < 1e-5


def until(group: Group, folder: Path, out: Path, case: str, stop: int) -> list[list[float]]:
    """Train until a step was made, and go without saving; return the weights of the losses of each step."""
    events = run(CASES[case](folder, out), None, group)
    weights = []
    for event in events:
        if isinstance(event, StepReport):
            weights.append(event.weights.tolist())
            if event.step == stop:
                break
    events.close()  # type: ignore[attr-defined]
    return weights


@pytest.mark.slow
def test_importance_sampled_times_go_on_with_another_number_of_processes(
    data: Path, runs: Runs, tmp_path: Path
) -> None:
    runs("importance")  # the one that was never stopped
    out = tmp_path / "run"
    alone(until, data, out, "importance", 4)
    first, second = together(until, data, out, "importance", 8)  # from step 3 on
    assert first == second
    assert set(first[0]) == {1.0}  # times are uniform at first
    assert len(set(first[-1])) > 1
    alone(until, data, out, "importance", 0)  # from step 6 on, to the end
    assert apart(data / "one" / "importance", out) < 1e-5
    kept, expected = (tensors(folder / "checkpoint.safetensors") for folder in (out, data / "one" / "importance"))
    assert torch.equal(kept["history.counts"], expected["history.counts"])
    torch.testing.assert_close(kept["history.losses"], expected["history.losses"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda data, out, pieces: adapted(data, out, training=pieces, lora={"rank": 2}), "an adapter"),
        (
            lambda data, out, pieces: trained(data, out, training={**pieces, "gradient_checkpointing": True}),
            "training.gradient_checkpointing",
        ),
        (lambda data, out, pieces: distilled(data, out, "consistency", **pieces), "a distillation"),
    ],
)
def test_what_goes_without_pieces_says_so(data: Path, tmp_path: Path, made: Callable[..., Plan], words: str) -> None:
    plan = made(data, tmp_path / "run", {"sharding": "full"})
    with pytest.raises(ConfigError, match=f"training.sharding is 'full', which goes without {words}"):
        check_processes(plan, Group(0, 2))
