"""A run: the training loop with its folder: checkpoints, previews, held-out losses, status, resume and stop."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import torch

from ddpm.config import TrainingConfig
from ddpm.engine import Engine
from ddpm.errors import ConfigError, DataError, TrainingError
from ddpm.files import write_text
from ddpm.processes import ALONE, Group
from ddpm.processes.sharding import require_sharding
from ddpm.training.batches import prefetched
from ddpm.training.events import Event, Finished, Notice, Started
from ddpm.training.interrupts import Interrupts, name_of
from ddpm.training.loop import StepReport, train_steps
from ddpm.training.metrics import LossWindow
from ddpm.training.plan import Plan, config_tree
from ddpm.training.run_folder import (
    Metrics,
    MetricsFile,
    NoMetrics,
    RunFolder,
    board_writer,
    explained_disk_errors,
    take_back,
)
from ddpm.training.scoring import Scorer
from ddpm.training.session import Session


def run(plan: Plan, scorer: Scorer | None = None, group: Group = ALONE) -> Iterator[Event]:
    """Train according to a plan, yielding what happens; an existing run folder is resumed.

    Ctrl-C and SIGTERM end it after the step at hand, with everything saved. Closing the iterator saves nothing.

    Args:
        plan: what to do.
        scorer: of samples, where the plan chooses the best model by them; else none.
        group: the processes that train together, each of which calls this. The first one writes and scores; only its
            events tell of it, the others yield little but their steps.

    Raises:
        ConfigError: if the plan asks for a score and there is no scorer; or for one GPU, and there are more processes.
        RunError: if the folder holds another run, cannot be written, or is in use; or if processes differ.
        TrainingError: if training cannot go on; what was reached is saved, unless weights are not finite.
    """
    if scorer is None and plan.config.training.score != "loss" and group.is_first:
        raise ConfigError(f"training.score is '{plan.config.training.score}', but no scorer is given to the run")
    check_processes(plan, group)
    folder = RunFolder(plan.out, plan.result)
    with ExitStack() as stack:
        group.first(folder.check_usable)
        group.only_first(lambda: stack.enter_context(folder.claimed()))
        interrupts = stack.enter_context(Interrupts())
        session = Session.open(plan, folder, scorer, group)
        _use_threads_of(session.engine, stack)
        yield from map(Notice, [*([group.words] if group.words else []), *session.notices])
        if scorer is not None:
            yield Notice(f"the best model is chosen by {scorer.words}")
        yield group.first(lambda: _started(session))
        if session.state.step >= plan.config.training.steps:
            yield _finished(session, None)
            return
        metrics = _metrics_of(session, stack)
        if session.state.step == 0:  # proves that the folder can be written, before any work is done
            yield from session.led(_save_at_once(session, metrics))
        yield from _train(session, metrics, interrupts)


def check_processes(plan: Plan, group: Group) -> None:
    """Refuse what several processes cannot do.

    Raises:
        ConfigError: naming it.
    """
    if group.is_alone:
        return
    training = plan.config.training
    if training.device.startswith("cuda:") or training.device == "mps":
        raise ConfigError(
            f"training.device is '{training.device}' with {group.size} processes, each of which takes a GPU of its "
            "own; use 'auto', 'cuda' or 'cpu'"
        )
    if training.sharding == "none":
        return
    require_sharding()
    if training.batch_size % group.size:
        raise ConfigError(
            f"training.sharding is 'full' with a batch of {training.batch_size} and {group.size} processes, which must "
            "all make the same passes; expected a batch_size that they divide"
        )
    beside = {
        f"training.score={training.score}": training.score != "loss",
        f"training.snapshots={training.snapshots}": training.snapshots > 0,
        "training.gradient_checkpointing": training.gradient_checkpointing,  # other pieces are gathered
        "network.self_conditioning": plan.config.network.self_conditioning,
        "a distillation": plan.config.distillation is not None,
        "an adapter": bool(plan.config.lora.rank) or plan.config.image_adapter is not None,
    }
    for name in (name for name, asked in beside.items() if asked):
        raise ConfigError(f"training.sharding is 'full', which goes without {name}; use training.sharding=none")


def _train(session: Session, metrics: Metrics, interrupts: Interrupts) -> Iterator[Event]:
    training, group = session.plan.config.training, session.group
    window = LossWindow(len(session.objective.schedule))
    stopped: str | None = None
    clock = time.monotonic() - session.seconds
    part = group.part(training.batch_size)
    source = session.plan.batches(len(session.objective.schedule), part)
    first = session.state.step
    with closing(source), closing(prefetched(source.batch, first, training.steps)) as batches:
        try:
            for report in train_steps(session.state, batches, session.objective, training, group):
                session.seconds = time.monotonic() - clock
                window.add(report)
                yield report
                yield from map(Notice, report.notices)
                number = group.most(interrupts.number)  # all stop after the same step, whoever was asked
                asked = f"asked to stop ({name_of(number)})" if number else None
                if asked or _is_due(report, training):
                    stopped = yield from session.led(_write_what_is_due(session, report, window, metrics, asked))
                if stopped:
                    break
        except (TrainingError, DataError) as error:
            if isinstance(error, DataError) and not group.is_alone:  # which the others do not know of
                raise
            yield from session.led(_save_what_was_reached(session, window, metrics))
            raise
    yield _finished(session, stopped)


def _is_due(report: StepReport, training: TrainingConfig) -> bool:
    """Whether the first process may have something to write after this step."""
    intervals = (
        training.log_every,
        training.evaluate_every,
        training.score_every,
        training.preview_every,
        training.checkpoint_every,
    )
    step = report.step
    return report.skipped or step == training.steps or any(step % interval == 0 for interval in intervals)


def _write_what_is_due(
    session: Session, report: StepReport, window: LossWindow, metrics: Metrics, asked: str | None
) -> Generator[Event, None, str | None]:
    """Write metrics, evaluation, preview and checkpoint of this step, if any; return why to stop, if so.

    The checkpoint comes last, so that no kill can lose what belongs to its step.
    """
    training, step = session.plan.config.training, report.step
    last, stopped = step == training.steps, asked
    with explained_disk_errors(session.folder.path, session.saved_step):
        if report.skipped:
            yield session.explain_skip(report)
        if step % training.log_every == 0:
            _write_line(session, window, metrics)
        if last or step % training.evaluate_every == 0:
            evaluated = session.evaluate(metrics)
            yield evaluated
            if evaluated.status.stop and training.stop == "auto" and not last:
                stopped = evaluated.status.sentence
        if session.scorer is not None and (last or step % training.score_every == 0):
            yield session.score(session.scorer, metrics)
        if last or step % training.preview_every == 0:
            yield session.preview()
        if last or stopped or step % training.checkpoint_every == 0:
            _write_line(session, window, metrics)  # a checkpoint closes the window, so that resuming repeats no line
            yield from session.save(metrics)
    return stopped


def _save_what_was_reached(session: Session, window: LossWindow, metrics: Metrics) -> Generator[Event, None, None]:
    with explained_disk_errors(session.folder.path, session.saved_step):
        _write_line(session, window, metrics)
        yield from session.save(metrics)


def _save_at_once(session: Session, metrics: Metrics) -> Generator[Event, None, None]:
    with explained_disk_errors(session.folder.path, 0):
        yield from session.save(metrics)


def _write_line(session: Session, window: LossWindow, metrics: Metrics) -> None:
    if not window.empty:
        metrics.write({**window.take(), "seconds": round(session.seconds, 3)})


def _use_threads_of(engine: Engine, stack: ExitStack) -> None:
    """Use as many threads as the run began with: sums in another order would differ in their last bits."""
    before = torch.get_num_threads()
    if before != engine.threads:
        torch.set_num_threads(engine.threads)
        stack.callback(torch.set_num_threads, before)


def _metrics_of(session: Session, stack: ExitStack) -> Metrics:
    """Return the metrics, for as long as the run goes on; the first process writes them."""
    written = session.group.only_first(lambda: stack.enter_context(closing(_first_files(session))))
    return NoMetrics() if written is None else written


def _first_files(session: Session) -> MetricsFile:
    tensorboard = session.plan.config.training.tensorboard
    if tensorboard:
        board_writer()  # that it is missing is said before anything is written
    with explained_disk_errors(session.folder.path, session.saved_step):
        write_text(session.folder.config, json.dumps(config_tree(session.plan), indent=2) + "\n")
        if session.folder.skipped.exists():
            take_back(session.folder.skipped, session.state.step)
        events = session.folder.events if tensorboard else None
        return MetricsFile(session.folder.metrics, session.state.step, events=events)


def _started(session: Session) -> Started:
    return Started(
        folder=session.folder.path,
        step=session.state.step,
        num_steps=session.plan.config.training.steps,
        num_parameters=session.model().num_parameters,
        num_trained=session.num_trained,
        engine=session.engine,
        forecast_bytes=session.forecast_bytes(),
        memory=session.memory,
    )


def _finished(session: Session, stopped: str | None) -> Finished:
    step, steps = session.state.step, session.plan.config.training.steps
    if step >= steps:
        return Finished(step, f"budget spent: all {steps:,} steps were made", complete=True)
    return Finished(step, stopped or "stopped", complete=False)
