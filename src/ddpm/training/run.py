"""A run: the training loop with its folder: checkpoints, previews, held-out losses, status, resume and stop."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import torch

from ddpm.engine import Engine
from ddpm.errors import ConfigError, TrainingError
from ddpm.files import write_text
from ddpm.training.batches import prefetched
from ddpm.training.events import Event, Finished, Notice, Started
from ddpm.training.interrupts import Interrupts
from ddpm.training.loop import StepReport, train_steps
from ddpm.training.metrics import LossWindow
from ddpm.training.plan import Plan, config_tree
from ddpm.training.run_folder import MetricsFile, RunFolder, board_writer, explained_disk_errors, take_back
from ddpm.training.scoring import Scorer
from ddpm.training.session import Session


def run(plan: Plan, scorer: Scorer | None = None) -> Iterator[Event]:
    """Train according to a plan, yielding what happens; an existing run folder is resumed.

    Ctrl-C and SIGTERM end it after the step at hand, with everything saved. Closing the iterator saves nothing.

    Args:
        plan: what to do.
        scorer: of samples, where the plan chooses the best model by them; else none.

    Raises:
        ConfigError: if the plan asks for a score and there is no scorer.
        RunError: if the folder holds another run, cannot be written, or is in use.
        TrainingError: if training cannot go on; what was reached is saved, unless weights are not finite.
    """
    if scorer is None and plan.config.training.score != "loss":
        raise ConfigError(f"training.score is '{plan.config.training.score}', but no scorer is given to the run")
    folder = RunFolder(plan.out, plan.result)
    folder.check_usable()
    with ExitStack() as stack:
        stack.enter_context(folder.claimed())
        interrupts = stack.enter_context(Interrupts())
        session = Session.open(plan, folder, scorer)
        _use_threads_of(session.engine, stack)
        yield from map(Notice, session.notices)
        if scorer is not None:
            yield Notice(f"the best model is chosen by {scorer.words}")
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
                asked = f"asked to stop ({interrupts.requested})" if interrupts.requested else None
                with explained_disk_errors(session.folder.path, session.saved_step):
                    if report.skipped:
                        yield session.explain_skip(report)
                    stopped = yield from _write_what_is_due(session, report, window, metrics, asked)
                if stopped:
                    break
        except TrainingError:
            with explained_disk_errors(session.folder.path, session.saved_step):
                _write_line(session, window, metrics)
                yield from session.save(metrics)
            raise
    yield _finished(session, stopped)


def _write_what_is_due(
    session: Session, report: StepReport, window: LossWindow, metrics: MetricsFile, asked: str | None
) -> Generator[Event, None, str | None]:
    """Write metrics, evaluation, preview and checkpoint of this step, if any; return why to stop, if so.

    The checkpoint comes last, so that no kill can lose what belongs to its step.
    """
    training, step = session.plan.config.training, report.step
    last, stopped = step == training.steps, asked
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


def _write_line(session: Session, window: LossWindow, metrics: MetricsFile) -> None:
    if not window.empty:
        metrics.write({**window.take(), "seconds": round(session.seconds, 3)})


def _use_threads_of(engine: Engine, stack: ExitStack) -> None:
    """Use as many threads as the run began with: sums in another order would differ in their last bits."""
    before = torch.get_num_threads()
    if before != engine.threads:
        torch.set_num_threads(engine.threads)
        stack.callback(torch.set_num_threads, before)


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
    )


def _finished(session: Session, stopped: str | None) -> Finished:
    step, steps = session.state.step, session.plan.config.training.steps
    if step >= steps:
        return Finished(step, f"budget spent: all {steps:,} steps were made", complete=True)
    return Finished(step, stopped or "stopped", complete=False)
