"""The run folder: what is in it, how much it may take, and that nobody else writes to it."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ddpm.errors import ConfigError, RunError
from ddpm.files import remove_parts, write_text
from ddpm.model.averaging import FOLDER as AVERAGES
from ddpm.model.averaging import KEPT_WIDTHS
from ddpm.model_file import MODEL_NAME
from ddpm.terminal import in_bytes
from ddpm.training.checkpoint import CHECKPOINT_NAME

GIB = 2**30
LOCK_NAME = ".lock"
CHECKPOINT_MODELS = 4
"""A checkpoint is as large as this many models, without averages kept for later: weights, average, two moments."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of the files of a run.

    Attributes:
        path: the folder.
        result: name of what is trained: a model, or an adapter.
    """

    path: Path
    result: str = MODEL_NAME

    @property
    def checkpoint(self) -> Path:
        """All that resuming needs."""
        return self.path / CHECKPOINT_NAME

    @property
    def model(self) -> Path:
        """The model, or adapter, with averaged weights, as of the last checkpoint."""
        return self.path / self.result

    @property
    def best_model(self) -> Path:
        """The model with the best score so far: the lowest held-out loss, or what `training.score` says."""
        return self.path / "best.safetensors"

    @property
    def config(self) -> Path:
        """The resolved configuration; ``--config`` reads it."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: losses, learning rate, speed, held-out losses, scores, status."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """TensorBoard events, where they are asked for."""
        return self.path / "tensorboard"

    @property
    def skipped(self) -> Path:
        """One JSON object a step that was skipped, with the pictures it saw."""
        return self.path / "skipped.jsonl"

    @property
    def previews(self) -> Path:
        """Grids sampled from the same noise at different steps."""
        return self.path / "previews"

    @property
    def milestones(self) -> Path:
        """Models kept on the way."""
        return self.path / "milestones"

    def milestone(self, step: int) -> Path:
        """The model kept at a step."""
        return self.milestones / f"{step:08d}.safetensors"

    def average(self, step: int, width: float) -> Path:
        """The average of a width kept at a step."""
        return self.path / AVERAGES / f"{step:08d}-{width:g}.safetensors"

    def preview(self, step: int) -> Path:
        """The preview grid of a step."""
        return self.previews / f"{step:08d}.png"

    def check_usable(self) -> None:
        """Refuse a path that is neither free nor a run folder; nothing is written.

        Raises:
            RunError: if it is a file, holds other files, or cannot be read.
        """
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise RunError(f"'{self.path}' is a file; expected the name of a run folder, see --out")
        if not os.path.isdir(self.path) or self.checkpoint.exists() or self.config.exists():
            return
        try:
            foreign = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        except OSError as error:
            raise RunError(
                f"the run folder '{self.path}' cannot be read ({error.strerror}); use another --out"
            ) from error
        if foreign:
            raise RunError(f"'{self.path}' holds other files ({', '.join(foreign[:3])}); use another --out")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder, and keep every other process from training in it.

        A folder that was made here goes again, if an error ends the work before anything is written into it.

        Raises:
            RunError: if it cannot be created or written, or another process trains there.
        """
        import filelock

        made = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / LOCK_NAME, timeout=0)
            lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"another process is training in '{self.path}'; wait for it, or use another --out"
            ) from error
        except OSError as error:
            raise RunError(
                f"the run folder '{self.path}' cannot be written ({error.strerror}); use another --out"
            ) from error
        try:
            for folder in (self.path, self.milestones, self.previews, self.path / AVERAGES):
                remove_parts(folder)
            yield
        except BaseException:
            lock.release()
            if made and [entry.name for entry in self.path.iterdir()] in ([], [LOCK_NAME]):
                _remove_empty(self.path, made)
            raise
        finally:
            lock.release()

    def size(self) -> int:
        """Return the bytes that the folder takes."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def make_room(self, limit_gib: float | None, coming: int) -> list[Path]:
        """Remove milestones, oldest first, until `coming` more bytes stay within the limit; return what was removed."""
        removed: list[Path] = []
        kept = sorted(self.milestones.glob("*.safetensors"))
        while kept and not self.has_room(limit_gib, coming):
            removed.append(kept.pop(0))
            removed[-1].unlink()
        return removed

    def has_room(self, limit_gib: float | None, coming: int) -> bool:
        """Whether `coming` more bytes stay within the limit."""
        return limit_gib is None or self.size() + coming <= limit_gib * GIB


def forecast_bytes(model_bytes: int, milestones: int, snapshots: int = 0) -> int:
    """Return what a run takes at most: two checkpoints (one being written), models, and averages that are kept."""
    averages = len(KEPT_WIDTHS) if snapshots else 0
    checkpoint = (CHECKPOINT_MODELS + averages) * model_bytes
    return 2 * checkpoint + (2 + max(0, milestones - 1) + averages * snapshots) * model_bytes


def check_space(
    folder: RunFolder, model_bytes: int, milestones: int, limit_gib: float | None, snapshots: int = 0
) -> int:
    """Return the forecast in bytes.

    Raises:
        RunError: if not even checkpoint, models and averages fit into the free space or the limit.
    """
    least, most = (forecast_bytes(model_bytes, count, snapshots) for count in (0, milestones))
    existing = folder.path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free + (folder.size() if folder.path.exists() else 0)
    if least > free:
        raise RunError(
            f"the run needs {in_bytes(least)} and '{existing}' has {in_bytes(free)} free; "
            "free some, or use another --out"
        )
    if limit_gib is not None and least > limit_gib * GIB:
        raise RunError(
            f"training.disk_limit_gib is {limit_gib:g}, but checkpoint and models alone take {in_bytes(least)}; "
            "raise it, or use a smaller network" + (", or fewer training.snapshots" if snapshots else "")
        )
    return most


@contextmanager
def explained_disk_errors(folder: Path, saved_step: int) -> Iterator[None]:
    """Turn a full disk or a folder that has become unwritable into one sentence.

    Raises:
        RunError: naming the folder and the step that is safe.
    """
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise RunError(_unwritten(folder, reason, saved_step)) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # its I/O errors are not OSErrors
            raise
        reason = "the disk is full" if "No space" in str(error) else str(error)
        raise RunError(_unwritten(folder, reason, saved_step)) from error


def _unwritten(folder: Path, reason: str, saved_step: int) -> str:
    return (
        f"cannot write to '{folder}': {reason}. The checkpoint of step {saved_step} is safe; "
        "mend this and run the same command again"
    )


class MetricsFile:
    """Lines of JSON, appended as they come; on resume, those after the checkpoint are taken back."""

    def __init__(self, path: Path, last_step: int, *, events: Path | None = None) -> None:
        """Keep the lines up to `last_step`, and open the file for more.

        Args:
            path: of the file.
            last_step: the checkpoint's.
            events: folder for TensorBoard events of the same values; none: no events.
        """
        self._board = board_writer()(str(events), purge_step=last_step + 1) if events is not None else None
        take_back(path, last_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append one object."""
        self._file.write(json_line(values))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, values["step"])

    def sync(self) -> None:
        """Make sure that the lines so far survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        with suppress(OSError):  # a full disk was reported by `write`, and what is pending now is lost anyway
            self._file.close()
        if self._board is not None:
            self._board.close()


class NoMetrics:
    """The metrics of a process that writes none, because another one does."""

    def write(self, values: dict[str, Any]) -> None:
        """Append nothing."""

    def sync(self) -> None:
        """Have nothing to make sure of."""

    def close(self) -> None:
        """Have nothing to close."""


Metrics: TypeAlias = MetricsFile | NoMetrics
"""Where a process's metrics go."""


def board_writer() -> Any:
    """Return the class that writes TensorBoard events.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "training.tensorboard is true, but TensorBoard is not installed; run: pip install 'ddpm[tensorboard]'"
        ) from error
    return SummaryWriter


def take_back(path: Path, last_step: int) -> None:
    """Leave in a file of JSON lines only those up to a step: what follows a checkpoint is done again on resume."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    steps = [_step_of(line) for line in lines]
    kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step <= last_step]
    write_text(path, "".join(f"{line}\n" for line in kept))


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append values to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(values))


def json_line(values: dict[str, Any]) -> str:
    """Return values as one line of JSON; numbers that are not finite, which JSON cannot hold, become null."""
    return json.dumps(_finite(values)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove_empty(folder: Path, made: list[Path]) -> None:
    (folder / LOCK_NAME).unlink(missing_ok=True)
    with suppress(OSError):  # somebody else has put something there meanwhile
        for each in made:
            each.rmdir()


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # the line that a kill cut in half
