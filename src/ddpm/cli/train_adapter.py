"""`ddpm train-adapter`: an IP-Adapter, by which a picture can be the prompt of a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.cli.options import AnyValues, ManyProcesses
from ddpm.config import merge, parse_assignments, to_tree


def train_adapter(
    model: Annotated[Positional[Path], arg(metavar="MODEL|RUN", help="the base: a model file, or a run folder")],
    data: Annotated[Positional[str], arg(metavar="DATA", help="pictures to train on, such as the base's own")],
    /,
    *,
    encoder: Annotated[
        str,
        arg(
            metavar="base|FILE|NAME",
            help="what reads the prompt: base, the frozen model itself; a classifier; or a CLIP vision encoder",
        ),
    ] = "base",
    tokens: Annotated[
        int | None, arg(metavar="P", help="tokens of a prompt, of an encoder that gives one vector; by default 4")
    ] = None,
    steps: Annotated[int | None, arg(metavar="N", help="optimizer steps in all")] = None,
    batch_size: Annotated[int | None, arg(metavar="B", help="pictures a step; by default the base's")] = None,
    seed: Annotated[int | None, arg(metavar="S", help="of every random number; by default the base's")] = None,
    out: Annotated[Path | None, arg(metavar="RUN", help="the run folder; an existing one is resumed")] = None,
    set: AnyValues = (),
    processes: ManyProcesses = 1,
    dry_run: Annotated[bool, arg(help="print the resolved configuration, and train nothing")] = False,
) -> None:
    """Train an image adapter (IP-Adapter) on top of a frozen model; the same command resumes.

    Then `ddpm sample MODEL --adapter RUN --prompt-image PICTURE.png` makes pictures like another one.

    Args:
        model: the base.
        data: pictures.
        encoder: of the prompts.
        tokens: of a prompt.
        steps: the budget.
        batch_size: of an optimizer step.
        seed: of the run.
        out: the run folder.
        set: single values.
        processes: that share the work.
        dry_run: only show.
    """
    asked = {key: value for key, value in locals().items() if key not in ("model", "data", "processes", "dry_run")}
    given = {key: value for key, value in (("steps", steps), ("batch_size", batch_size)) if value is not None}
    tree = merge({"training": given}, {} if seed is None else {"seed": seed})
    tree = merge(tree, parse_assignments(set))

    from ddpm.evaluation.scorer import scorer_for
    from ddpm.processes import joined, launch
    from ddpm.terminal import bar
    from ddpm.training.display import show_run
    from ddpm.training.image_adapter import ImageAdapterPlan, make_image_adapter_plan

    def plan_of() -> ImageAdapterPlan:
        return make_image_adapter_plan(model, data, tree, encoder=encoder, tokens=tokens, out=out, progress=bar)

    if dry_run:
        plan = plan_of()
        print(json.dumps({"out": str(plan.out), **to_tree(plan.config)}, indent=2))
    elif processes != 1:
        plan_of()  # what is wrong is said once, and prompts are read once
        launch(train_adapter, model, data, processes=processes, **asked)
    else:
        with joined() as group:
            plan = group.host_by_host(plan_of)
            show_run(plan, group.only_first(lambda: scorer_for(plan, progress=bar)), group)
