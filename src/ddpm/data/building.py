"""Building a store: look at the headers, decide, decode everything once, and keep it."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.config import DataConfig
from ddpm.data import cache
from ddpm.data.cache import Columns, FileSink, Kept, MemorySink
from ddpm.data.decide import Survey, choose_transform
from ddpm.data.progress import ProgressFactory
from ddpm.data.reading import FEW_THREADS, Bad, Picture, count_words, look, read, worker_count
from ddpm.data.report import LoadReport, enforce_policy, list_bad
from ddpm.data.sources.base import Example, Source, by_nature
from ddpm.data.sources.layout import EXTENSIONS
from ddpm.data.transform import Transform, full_scale
from ddpm.errors import DataError
from ddpm.words import counted

NO_SPLIT, TRAIN, HELD_OUT = 0, 1, 2
MEMORY_LIMIT = 2**30
"""Largest data, in bytes, that are kept in memory where no cache can be written."""

THREADS_PAY = 128 * 128
"""Pixels of a mean picture from which on threads decode faster than one (2 cores, JPEG and PNG)."""

MOST_SIZES = 12
FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
LEVELS: dict[str, int | None] = {"uint8": 256, "uint16": 65536, "float32": None}


@dataclass(slots=True)
class Gathered:
    """What is collected of the pictures, one after the other."""

    names: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    numbers: list[tuple[float, ...]] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    content: Any = field(default_factory=hashlib.sha256)
    low: float = np.inf
    high: float = -np.inf
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))

    def add(self, example: Example, picture: Picture) -> None:
        """Take one picture's columns, and its content into the hash."""
        self.names.append(example.name)
        self.labels.append(example.label)
        self.captions.append(example.caption)
        self.splits.append({None: NO_SPLIT, "train": TRAIN, "held_out": HELD_OUT}[example.split])
        self.numbers.append(example.numbers)
        self.conversions.update(picture.conversions)
        self.dtype = picture.values.dtype
        if self.dtype.kind == "f":
            self.low = min(self.low, float(picture.values.min()))
            self.high = max(self.high, float(picture.values.max()))
        self.content.update(picture.digest)
        beside = (example.label, example.caption, example.split, example.numbers)
        self.content.update(repr(beside).encode("utf-8", "surrogateescape"))


def build(
    source: Source, config: DataConfig, target: Path | None, work: Path, progress: ProgressFactory, notice: str | None
) -> Kept:
    """Read every picture of a source.

    Args:
        source: where they come from.
        config: how they are read.
        target: the name of the store in the cache; None keeps the pictures in memory.
        work: an empty temporary folder, beside `target` where that is given.
        progress: told of every picture.
        notice: a sentence for the report, where there should be a cache but cannot be.

    Raises:
        DataError: if there is no picture, too many are bad, or neither the disk nor memory has the space.
    """
    scratch = work / "scratch"
    scratch.mkdir()
    source.prepare(scratch)
    if len(source) + len(source.facts.bad) == 0:
        raise DataError(_nothing(source))
    plan = _plan(source, config, progress)
    notice = _check_space(plan, work, on_disk=target is not None) or notice
    target = None if notice else target
    memory = MemorySink()
    sink = FileSink(work / "pictures.npy") if target else memory
    try:
        gathered = _gather(source, plan, config, progress, sink)
        sink.complete()
    finally:
        sink.close()
    columns, classes, notes = _columns(gathered, source)
    notes = [*source.facts.notes, *plan.notes, *notes, *([notice] if notice else [])]
    record = _record(gathered, source, plan, classes, notes)
    if target is None:
        return Kept(memory.stacked(), columns, record)
    source.close()
    shutil.rmtree(scratch, ignore_errors=True)
    return cache.save(target, work, columns, record)


@dataclass(slots=True)
class Plan:
    """What was decided after the first pass.

    Attributes:
        count: pictures to be read.
        transform: what is done to each; None where the numbers are taken as they are.
        size_rule: how the size was decided, in words.
        notes: the other decisions, in words.
        survey: counts over the headers.
        skip: positions of examples that are known to be bad.
        bad: names and reasons of bad files, so far.
    """

    count: int
    transform: Transform | None
    size_rule: str
    notes: list[str]
    survey: Survey
    skip: set[int]
    bad: Bad

    @property
    def nbytes(self) -> int:
        """Size of all pictures together, in bytes."""
        if self.transform is None:
            return self.count * 8
        return self.count * math.prod(self.transform.shape) * np.dtype(self.transform.depth).itemsize


def _plan(source: Source, config: DataConfig, progress: ProgressFactory) -> Plan:
    """Look at every header and decide channels, depth and size."""
    if source.facts.as_is:
        return Plan(len(source), None, "none: points are taken as they are", [], Survey(), set(), source.facts.bad)
    seen = look(source, progress)
    bad = source.facts.bad + seen.bad
    if seen.survey.count == 0:
        raise DataError(f"none of the {len(bad):,} {source.noun} in '{source.name}' is readable: {list_bad(bad)}")
    enforce_policy(bad, len(source) + len(source.facts.bad), config)
    transform, size_rule, notes = choose_transform(seen.survey, config)
    return Plan(seen.survey.count, transform, size_rule, notes, seen.survey, seen.skip, bad)


def _workers(source: Source, plan: Plan) -> int:
    """Return the threads that pay: for small pictures the interpreter's lock costs more than they gain."""
    pixels = sum(height * width * count for (height, width), count in plan.survey.sizes.items())
    if pixels >= plan.count * THREADS_PAY and plan.transform is not None:
        return worker_count()
    return min(FEW_THREADS, worker_count()) if source.waits_for_disk else 1


def _gather(
    source: Source, plan: Plan, config: DataConfig, progress: ProgressFactory, sink: FileSink | MemorySink
) -> Gathered:
    """Decode every picture into the sink."""
    gathered = Gathered()
    total = len(source) + len(source.facts.bad)
    for example, picture in read(source, plan.transform, plan.skip, _workers(source, plan), progress):
        if isinstance(picture, str):
            plan.bad.append((example.name, picture))
            if len(plan.bad) < total:
                enforce_policy(plan.bad, total, config)
        else:
            sink.append(picture.values)
            gathered.add(example, picture)
    if not gathered.names:
        raise DataError(f"none of the {total:,} {source.noun} in '{source.name}' is readable: {list_bad(plan.bad)}")
    return gathered


def _check_space(plan: Plan, work: Path, on_disk: bool) -> str | None:
    """Return why the pictures go to memory though a cache was wanted, or None.

    Raises:
        DataError: if they are too large for that.
    """
    size = f"{plan.nbytes / 2**20:,.0f} MiB"
    if on_disk:
        free = cache.free_bytes(work)
        if free > plan.nbytes * 1.01 + 2**20:
            return None
        reason = f"the disk of the picture cache '{work.parent}' has {free / 2**20:,.0f} MiB left"
    elif plan.nbytes <= MEMORY_LIMIT:
        return None
    else:
        reason = f"the picture cache '{work.parent}' cannot be written"
    if plan.nbytes > MEMORY_LIMIT:
        raise DataError(f"{reason}, but the pictures need {size}; set DDPM_CACHE to a folder with more space")
    return f"{reason} and the pictures need {size}: they are kept in memory, and decoded again next time"


def _columns(gathered: Gathered, source: Source) -> tuple[Columns, tuple[str, ...], list[str]]:
    """Return the columns, the names of the classes, and notes on what was left out."""
    notes: list[str] = []
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    known = {label for label in gathered.labels if label is not None}
    missing = gathered.labels.count(None)
    if known and missing:
        notes.append(f"{counted(missing, 'picture has', 'pictures have')} no label, so none is used")
    elif known:
        classes = source.facts.classes or by_nature(known)
        index = {name: i for i, name in enumerate(classes)}
        labels = np.asarray([index[label] for label in gathered.labels if label is not None], dtype=np.int64)
    captions = [caption or "" for caption in gathered.captions] if any(gathered.captions) else None
    splits = np.asarray(gathered.splits, dtype=np.uint8) if any(gathered.splits) else None
    table = np.asarray(gathered.numbers, dtype=np.float64)
    numbers = {name: table[:, i] for i, name in enumerate(source.facts.number_names)}
    return Columns(gathered.names, labels, captions, splits, numbers), classes, notes


def _record(
    gathered: Gathered, source: Source, plan: Plan, classes: tuple[str, ...], notes: list[str]
) -> dict[str, Any]:
    """Return what is kept of a store beside its columns, as JSON values."""
    content = gathered.content.copy()
    content.update(json.dumps(classes).encode())
    settings = json.dumps(asdict(plan.transform) if plan.transform else None, sort_keys=True)
    report = LoadReport(
        seen=source.facts.seen,
        used=len(gathered.names),
        ignored=source.facts.ignored,
        bad=tuple(plan.bad),
        conversions=count_words(gathered.conversions),
        size_rule=plan.size_rule,
        notes=tuple(notes),
        modes=dict(plan.survey.modes.most_common()),
        sizes={f"{h}x{w}": count for (h, w), count in plan.survey.sizes.most_common(MOST_SIZES)},
    )
    return {
        "content": content.hexdigest(),
        "fingerprint": hashlib.sha256(content.digest() + settings.encode()).hexdigest(),
        "classes": list(classes),
        "levels": source.facts.levels or LEVELS[gathered.dtype.name],
        "value_range": list(_value_range(gathered, source)),
        "report": report.to_tree(),
    }


def _value_range(gathered: Gathered, source: Source) -> tuple[float, float]:
    """Return the range of whole numbers by their depth; of float the first usual one that holds all, else their own."""
    if source.facts.value_range is not None:
        return source.facts.value_range
    if gathered.dtype.kind == "u":
        return 0.0, float(full_scale(gathered.dtype))
    for low, high in FLOAT_RANGES:
        if low <= gathered.low and gathered.high <= high:
            return low, high
    return gathered.low, gathered.high


def _nothing(source: Source) -> str:
    """Say that a source holds no picture, and what it holds instead."""
    facts = source.facts
    ignored = ", ".join(
        f"{count:,} {what.replace(' files', ' file') if count == 1 else what}" for what, count in facts.ignored.items()
    )
    hint = facts.hint or f"expected files such as {', '.join(sorted(EXTENSIONS)[:6])} ..."
    return (
        f"no {source.noun} in '{source.name}': {counted(facts.seen, 'file')} seen, ignored {ignored or 'none'}; {hint}"
    )
