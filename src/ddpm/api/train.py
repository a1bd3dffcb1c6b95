"""`ddpm.train`: the command's work as one Python call."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.config import merge
from ddpm.config.conditions import conditions_tree
from ddpm.data.progress import silent
from ddpm.errors import ConfigError
from ddpm.evaluation.scorer import scorer_for
from ddpm.model import Model
from ddpm.model_file import ADAPTER_NAME
from ddpm.processes import joined, launch
from ddpm.terminal import bar
from ddpm.training.budget import within
from ddpm.training.display import show_run
from ddpm.training.fine_tune import make_fine_tuning_plan
from ddpm.training.plan import Plan, make_plan
from ddpm.training.run import run
from ddpm.training.run_folder import RunFolder


def train(
    data: str | Path,
    *,
    preset: str | None = None,
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    condition: str | Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    init: str | Path | None = None,
    lora: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    processes: int = 1,
    quiet: bool = False,
) -> Model:
    """Train on pictures, or go on with the run in `out`, and return the model with averaged weights.

    Args:
        data: a folder, archive, table or array file; an embedded name; or a Hub data set.
        preset: "digits", "mnist", "emoji", "cifar10", "cifar10-paper" or "auto"; none: chosen by the data.
        size: side, or (height, width), in pixels; none: decided from the data.
        steps: optimizer steps in all; none: the preset's.
        minutes: in place of `steps`, as many as fit into this time, measured first.
        batch_size: pictures an optimizer step; none: the preset's.
        condition: what the network is told of a picture: "label", "numbers=COLUMN,...", "text" (or
            "text=ENCODER", frozen), "picture=gray" (or low_resolution, mask, paired); one of them, or several.
        seed: of every random number.
        out: the run folder; none: ``runs/NAME``, or ``runs/NAME-from-BASE`` with a base.
        init: a model, or the run folder of one, whose weights to begin with: fine-tuning.
        lora: with `init`, the rank of low-rank updates to train in place of the weights.
        overrides: a tree of any other configuration values, for example ``{"network": {"dropout": 0.1}}``.
        processes: of this machine, one for each GPU, that share every batch.
        quiet: show no progress.

    Raises:
        ConfigError: for a value that is not valid, or contradicts the base.
        ModelFileError: if there is no base.
        DataError: if the data cannot be used.
        RunError: if the folder holds another run, or cannot be written.
        TrainingError: if training cannot go on; what was reached is saved.
    """
    sides = [size, size] if isinstance(size, int) else size
    named = {
        "data": {"size": None if sides is None else list(sides)},
        "training": {"steps": steps, "batch_size": batch_size},
        "lora": {"rank": lora},
        "conditions": conditions_tree([condition] if isinstance(condition, str) else condition),
        "seed": seed,
    }
    tree = merge(_given(named), overrides or {})
    if minutes is not None and steps is not None:
        raise ConfigError(f"minutes={minutes:g} beside steps={steps}; the budget is one of them")
    work = _Work(data, tree, preset, out, init, minutes, quiet)
    if processes == 1:
        plan = _train(work)
    else:
        plan = work.plan()  # what is wrong is said once, and pictures are decoded once
        launch(_train, work, processes=processes)
    result = RunFolder(plan.out, plan.result).model
    if init is not None and plan.result == ADAPTER_NAME:
        return Model.load(init).with_adapter(result)
    return Model.load(result)


@dataclass(frozen=True)
class _Work:
    """What was asked for, in a form that other processes can be given."""

    data: str | Path
    tree: dict[str, Any]
    preset: str | None
    out: str | Path | None
    init: str | Path | None
    minutes: float | None
    quiet: bool

    def plan(self) -> Plan:
        progress = None if self.quiet else bar
        if self.init is not None:
            return make_fine_tuning_plan(
                self.init, self.data, self.tree, preset=self.preset, out=self.out, progress=progress
            )
        return make_plan(self.data, self.tree, preset=self.preset, out=self.out, progress=progress)


def _train(work: _Work) -> Plan:
    """Train in this process, or in this one of several."""
    with joined() as group:
        plan = group.host_by_host(work.plan)
        if work.minutes is not None:
            plan, _ = within(plan, work.minutes, group)
        scorer = group.only_first(lambda: scorer_for(plan, progress=silent if work.quiet else bar))
        if work.quiet:
            deque(run(plan, scorer, group), maxlen=0)
        else:
            show_run(plan, scorer, group)
    return plan


def _given(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree without the values that nobody gave."""
    pruned = {key: _given(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if value is not None}
