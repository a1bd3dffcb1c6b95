"""`ddpm train`: from data to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from ddpm.cli.options import AnyValues, ManyProcesses
from ddpm.config import merge, parse_assignments, read_file, to_tree
from ddpm.config.conditions import conditions_tree
from ddpm.errors import ConfigError

if TYPE_CHECKING:
    from ddpm.training.plan import Plan


def train(
    data: Annotated[
        Positional[str],
        arg(
            metavar="DATA",
            help="a folder, archive, table or array file; an embedded name (digits); or a Hub data set (hf:OWNER/NAME)",
        ),
    ],
    /,
    *,
    preset: Annotated[
        str | None,
        arg(metavar="P", help="digits, mnist, emoji, cifar10, cifar10-paper or auto; by default chosen by DATA"),
    ] = None,
    size: Annotated[str | None, arg(metavar="S|HxW", help="side in pixels, or height x width")] = None,
    steps: Annotated[int | None, arg(metavar="N", help="optimizer steps in all")] = None,
    minutes: Annotated[
        float | None, arg(metavar="M", help="in place of --steps: as many as fit into this time, measured first")
    ] = None,
    batch_size: Annotated[int | None, arg(metavar="B", help="pictures an optimizer step")] = None,
    condition: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(
            metavar="WHAT",
            help="tell the network of a picture's label, numbers=COLUMN,..., text (text=ENCODER: frozen), or "
            "picture=gray|low_resolution|mask|paired; may be repeated",
        ),
    ] = (),
    seed: Annotated[int | None, arg(metavar="S", help="of every random number")] = None,
    out: Annotated[
        Path | None, arg(metavar="RUN", help="the run folder; by default runs/NAME. An existing one is resumed")
    ] = None,
    init: Annotated[
        Path | None,
        arg(metavar="MODEL|RUN", help="begin with the weights of this model: fine-tuning; its network stays as it is"),
    ] = None,
    lora: Annotated[
        int | None,
        arg(metavar="RANK", help="with --init: train low-rank updates of its weights alone, into a small adapter file"),
    ] = None,
    config: Annotated[
        Path | None, arg(metavar="FILE", help="a .json or .toml file of configuration values, over the preset's")
    ] = None,
    set: AnyValues = (),
    processes: ManyProcesses = 1,
    dry_run: Annotated[
        bool, arg(help="print the resolved configuration and what a run would take, and train nothing")
    ] = False,
) -> None:
    """Train a model on pictures, or go on with a run: the same command resumes.

    Writes a run folder with the model, a checkpoint, preview grids and metrics. Ctrl-C saves and stops.

    Args:
        data: what to train on.
        preset: the recipe.
        size: of the pictures.
        steps: the budget.
        minutes: the budget in time.
        batch_size: of an optimizer step.
        condition: what the network is told.
        seed: of the run.
        out: the run folder.
        init: a model to begin with.
        lora: rank of low-rank updates.
        config: a file of values.
        set: single values.
        processes: that share the work.
        dry_run: only show.
    """
    if minutes is not None and steps is not None:
        raise ConfigError(f"--minutes {minutes:g} beside --steps {steps}; the budget is one of them")
    asked = {key: value for key, value in locals().items() if key not in ("data", "processes", "dry_run")}
    tree = read_file(config) if config is not None else {}
    of_dry_run = {key: tree.pop(key) for key in ("preset", "out") if isinstance(tree.get(key), str)}
    preset, out = preset or of_dry_run.get("preset"), out or of_dry_run.get("out")
    tree = merge(tree, _flags(size=size, steps=steps, batch_size=batch_size, seed=seed))
    tree = merge(tree, {} if lora is None else {"lora": {"rank": lora}})
    tree = merge(tree, {"conditions": conditions_tree(condition)} if condition else {})
    tree = merge(tree, parse_assignments(set))

    from ddpm.evaluation.scorer import extractor_for, scorer_for
    from ddpm.processes import ALONE, Group, joined, launch
    from ddpm.terminal import bar, say
    from ddpm.training.budget import within
    from ddpm.training.display import show_run
    from ddpm.training.fine_tune import make_fine_tuning_plan
    from ddpm.training.forecast import foretell
    from ddpm.training.plan import make_plan

    def plan_of() -> Plan:
        if init is not None:
            return make_fine_tuning_plan(init, data, tree, preset=preset, out=out, progress=bar)
        return make_plan(data, tree, preset=preset, out=out, progress=bar)

    def budgeted(plan: Plan, group: Group = ALONE) -> Plan:
        if minutes is None:
            return plan
        plan, told = within(plan, minutes, group)
        if group.is_first:
            say(told)
        return plan

    if dry_run:
        plan = budgeted(plan_of())
        extractor_for(plan)
        for line in foretell(plan):
            say(line)
        print(json.dumps({"preset": plan.preset, "out": str(plan.out), **to_tree(plan.config)}, indent=2))
    elif processes != 1:
        plan_of()  # what is wrong is said once, and pictures are decoded once
        launch(train, data, processes=processes, **asked)
    else:
        with joined() as group:
            plan = budgeted(group.host_by_host(plan_of), group)
            show_run(plan, group.only_first(lambda: scorer_for(plan, progress=bar)), group)


def _flags(*, size: str | None, steps: int | None, batch_size: int | None, seed: int | None) -> dict[str, Any]:
    """Return the tree of the flags that were given."""
    tree: dict[str, Any] = {}
    if size is not None:
        tree["data"] = {"size": parse_size(size)}
    training = {"steps": steps, "batch_size": batch_size}
    given = {key: value for key, value in training.items() if value is not None}
    if given:
        tree["training"] = given
    if seed is not None:
        tree["seed"] = seed
    return tree


def parse_size(text: str) -> list[int]:
    """Return [height, width] of "64" or "48x64".

    Raises:
        ConfigError: if it is neither.
    """
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise ConfigError(f"size '{text}'; expected a side in pixels, such as 64, or height x width, such as 48x64")
    return sides * 2 if len(sides) == 1 else sides
