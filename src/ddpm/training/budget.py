"""How many steps fit into the time that somebody has."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace

from ddpm.errors import ConfigError
from ddpm.processes import ALONE, Group
from ddpm.terminal import in_time
from ddpm.training.checkpoint import read_notes
from ddpm.training.loop import train_steps
from ddpm.training.plan import Plan
from ddpm.training.run_folder import RunFolder
from ddpm.training.session import Session
from ddpm.words import counted

MOST_MINUTES = 60 * 24 * 365
_WARM_UP = 3  # the first steps compile kernels, and touch memory for the first time
_LEAST_TIMED = 5
_SECONDS_TIMED = 8.0
_SHARE = 0.95  # evaluations, previews and checkpoints take the rest


def within(plan: Plan, minutes: float, group: Group = ALONE) -> tuple[Plan, str]:
    """Return a plan whose steps take about so long, and a sentence about it.

    A few steps are made and forgotten, to time them: no file is written, and no random number of the run is touched. A
    run that is there already keeps the number of steps that it began with: the learning rate has been falling towards
    their end.

    Args:
        plan: what will be trained.
        minutes: of this machine, as it is now; a machine that gets other work meanwhile takes longer.
        group: the processes that will train together.

    Raises:
        ConfigError: if `minutes` is not a positive number, at most a year.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise ConfigError(f"minutes is {minutes:g}; expected a positive number, at most {MOST_MINUTES:,} (a year)")
    checkpoint = RunFolder(plan.out, plan.result).checkpoint
    begun = group.first(lambda: read_notes(checkpoint)["config"]["training"]["steps"] if checkpoint.exists() else None)
    if begun is not None:
        return _with_steps(plan, begun), f"the run keeps the {counted(begun, 'step')} that it began with"
    seconds = _seconds_a_step(plan, group)
    steps = max(1, math.floor(60 * minutes * _SHARE / seconds))
    told = f"{counted(steps, 'step')} of {seconds:.2g} s fit into {in_time(60 * minutes)}"
    return _with_steps(plan, steps), told


def _with_steps(plan: Plan, steps: int) -> Plan:
    training = plan.config.training.model_copy(update={"steps": steps})
    return replace(plan, config=plan.config.model_copy(update={"training": training}))


def _seconds_a_step(plan: Plan, group: Group) -> float:
    """Return the median of a few optimizer steps; the slowest process counts."""
    session = Session.open(plan, RunFolder(plan.out, plan.result), group=group)
    training = plan.config.training
    source = plan.batches(len(session.objective.schedule), group.part(training.batch_size))
    times: list[float] = []
    with closing(source):
        since = time.perf_counter()
        batches = (source.batch(step) for step in range(training.steps))
        for report in train_steps(session.state, batches, session.objective, training, group):
            now = time.perf_counter()
            times.append(now - since)
            since = now
            timed = times[_WARM_UP:]
            enough = len(timed) >= _LEAST_TIMED and sum(times) > _SECONDS_TIMED
            if group.any(enough) or report.step == training.steps:
                break
    timed = sorted(times[_WARM_UP:] or times)
    return group.most(math.ceil(1e6 * timed[len(timed) // 2])) / 1e6
