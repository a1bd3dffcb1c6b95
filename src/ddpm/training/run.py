"""A run: the training loop with its folder: checkpoints, previews, held-out losses, status, resume and stop."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import torch

from ddpm.errors import RunError, TrainingError
from ddpm.files import write_text
from ddpm.training.batches import prefetched
from ddpm.training.engine import Engine
from ddpm.training.events import Event, Finished, Notice, Started
from ddpm.training.interrupts import Interrupts
from ddpm.training.loop import StepReport, train_steps
from ddpm.training.metrics import LossWindow
from ddpm.training.plan import Plan, config_tree
from ddpm.training.run_folder import MetricsFile, RunFolder, explained_disk_errors
from ddpm.training.session import Session


def run(plan: Plan) -> Iterator[Event]:
    """Train according to a plan, yielding what happens; an existing run folder is resumed.

    Ctrl-C and SIGTERM end it after the step at hand, with everything saved. Closing the iterator saves nothing.

    Raises:
        RunError: if the folder holds another run, cannot be written, or is in use.
        TrainingError: if training cannot go on; what was reached is saved.
    """
    folder = RunFolder(plan.out)
    _check_is_run_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(folder.claimed())
        interrupts = stack.enter_context(Interrupts())
        session = Session.open(plan, folder)
        _use_threads_of(session.engine, stack)
        yield from map(Notice, session.notices)
        yield _started(session)
        if session.state.step >= plan.config.training.steps:
            yield _finished(session, None)
            return
        metrics = stack.enter_context(closing(_first_files(session)))
        if session.state.step == 0:  # proves that the folder can be written, before any work is done
            with explained_disk_errors(folder.path, 0):
                yield from session.save(metrics)
        yield from _train(session, metrics, interrupts)


def _train(session: Session, metrics: MetricsFile, interrupts: Interrupts) -> Iterator[Event]:
    training = session.plan.config.training
    window = LossWindow(len(session.objective.schedule))
    stopped: str | None = None
    clock = time.monotonic() - session.seconds
    with closing(prefetched(session.batches().batch, session.state.step, training.steps)) as batches:
        try:
            for report in train_steps(session.state, batches, session.objective, training):
                session.seconds = time.monotonic() - clock
                window.add(report)
                yield report
                yield from map(Notice, report.notices)
                with explained_disk_errors(session.folder.path, session.saved_step):
                    if report.skipped:
                        yield session.explain_skip(report)
                    if interrupts.requested:
                        stopped = f"asked to stop ({interrupts.requested})"
                    stopped = (yield from _write_what_is_due(session, report, window, metrics)) or stopped
                    if stopped and session.saved_step != report.step:
                        yield from session.save(metrics)
                if stopped:
                    break
        except TrainingError:
            with explained_disk_errors(session.folder.path, session.saved_step):
                yield from session.save(metrics)
            raise
    yield _finished(session, stopped)


def _write_what_is_due(
    session: Session, report: StepReport, window: LossWindow, metrics: MetricsFile
) -> Generator[Event, None, str | None]:
    """Write metrics, evaluation, checkpoint and preview of this step, if any; return why to stop, if so."""
    training, step = session.plan.config.training, report.step
    last = step == training.steps
    saving = last or step % training.checkpoint_every == 0
    stopped: str | None = None
    if saving or step % training.log_every == 0:  # a checkpoint closes the window, so that resuming repeats no line
        metrics.write({**window.take(), "seconds": round(session.seconds, 3)})
    if last or step % training.evaluate_every == 0:
        evaluated = session.evaluate(metrics)
        yield evaluated
        if evaluated.status.stop and training.stop == "auto" and not last:
            stopped = evaluated.status.sentence
    if saving:
        yield from session.save(metrics)
    if last or step % training.preview_every == 0:
        yield session.preview()
    return stopped


def _check_is_run_folder(folder: RunFolder) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise RunError(f"'{folder.path}' is a file; expected the name of a run folder, see --out")
    if folder.path.is_dir() and not folder.checkpoint.exists() and not folder.config.exists():
        foreign = sorted(entry.name for entry in folder.path.iterdir() if not entry.name.startswith("."))
        if foreign:
            raise RunError(f"'{folder.path}' holds other files ({', '.join(foreign[:3])}); use another --out")


def _use_threads_of(engine: Engine, stack: ExitStack) -> None:
    """Use as many threads as the run began with: sums in another order would differ in their last bits."""
    before = torch.get_num_threads()
    if before != engine.threads:
        torch.set_num_threads(engine.threads)
        stack.callback(torch.set_num_threads, before)


def _first_files(session: Session) -> MetricsFile:
    with explained_disk_errors(session.folder.path, session.saved_step):
        write_text(session.folder.config, json.dumps(config_tree(session.plan), indent=2) + "\n")
        events = session.folder.events if session.plan.config.training.tensorboard else None
        return MetricsFile(session.folder.metrics, session.state.step, events=events)


def _started(session: Session) -> Started:
    return Started(
        folder=session.folder.path,
        step=session.state.step,
        num_steps=session.plan.config.training.steps,
        num_parameters=session.model().num_parameters,
        engine=session.engine,
        forecast_bytes=session.forecast_bytes(),
    )


def _finished(session: Session, stopped: str | None) -> Finished:
    step, steps = session.state.step, session.plan.config.training.steps
    if step >= steps:
        return Finished(step, f"budget spent: all {steps:,} steps were made", complete=True)
    return Finished(step, stopped or "stopped", complete=False)
