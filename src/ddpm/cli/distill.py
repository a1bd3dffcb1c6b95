"""`ddpm distill`: a model that samples in few steps, from one that needs many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ddpm.cli.options import AnyValues, ManyProcesses
from ddpm.config import merge, parse_assignments, to_tree


def distill(
    model: Annotated[
        Positional[Path], arg(metavar="MODEL|RUN", help="the teacher: a model file, or the run folder that holds one")
    ],
    /,
    *,
    steps: Annotated[int, arg(metavar="N", help="sampling steps of the distilled model")] = 4,
    method: Annotated[
        Literal["progressive", "consistency"], arg(metavar="M", help="progressive or consistency")
    ] = "progressive",
    teacher_steps: Annotated[
        int | None, arg(metavar="K", help="of the teacher in one step of the distilled model; by default 5, or 8")
    ] = None,
    teacher_solver: Annotated[
        Literal["unipc", "dpm_solver_pp", "ddim"],
        arg(metavar="NAME", help="of those steps: unipc, dpm_solver_pp or ddim"),
    ] = "unipc",
    train_steps: Annotated[
        int | None, arg(metavar="N", help="optimizer steps; by default as long as the teacher was trained")
    ] = None,
    batch_size: Annotated[
        int | None, arg(metavar="B", help="pictures an optimizer step; by default the teacher's")
    ] = None,
    seed: Annotated[int | None, arg(metavar="S", help="of every random number; by default the teacher's")] = None,
    data: Annotated[str | None, arg(metavar="DATA", help="to train on; by default what the teacher saw")] = None,
    out: Annotated[
        Path | None, arg(metavar="RUN", help="the run folder; by default RUN-N-steps. An existing one is resumed")
    ] = None,
    set: AnyValues = (),
    processes: ManyProcesses = 1,
    dry_run: Annotated[bool, arg(help="print the resolved configuration, and train nothing")] = False,
) -> None:
    """Distill a trained model into one that samples in few steps; the same command resumes.

    The result is a model like any other: `ddpm sample` needs no flag to sample it right.

    Args:
        model: where the teacher is.
        steps: of the student.
        method: what the student is trained towards.
        teacher_steps: in one of the student's.
        teacher_solver: of those steps.
        train_steps: the budget.
        batch_size: of an optimizer step.
        seed: of the run.
        data: what to train on.
        out: the run folder.
        set: single values.
        processes: that share the work.
        dry_run: only show.
    """
    asked = {key: value for key, value in locals().items() if key not in ("model", "processes", "dry_run")}
    training = {"steps": train_steps, "batch_size": batch_size}
    given = {"training": {key: value for key, value in training.items() if value is not None}}
    tree = merge(given, {} if seed is None else {"seed": seed})
    tree = merge(tree, parse_assignments(set))

    from ddpm.evaluation.scorer import extractor_for, scorer_for
    from ddpm.processes import joined, launch
    from ddpm.terminal import bar
    from ddpm.training.display import show_run
    from ddpm.training.distill import DistillationPlan, make_distillation_plan

    def plan_of() -> DistillationPlan:
        return make_distillation_plan(
            model,
            tree,
            steps=steps,
            method=method,
            teacher_steps=teacher_steps,
            teacher_solver=teacher_solver,
            data=data,
            out=out,
            progress=bar,
        )

    if dry_run:
        plan = plan_of()
        extractor_for(plan)
        print(json.dumps({"out": str(plan.out), **to_tree(plan.config)}, indent=2))
    elif processes != 1:
        plan_of()  # what is wrong is said once
        launch(distill, model, processes=processes, **asked)
    else:
        with joined() as group:
            plan = group.host_by_host(plan_of)
            show_run(plan, group.only_first(lambda: scorer_for(plan, progress=bar)), group)
