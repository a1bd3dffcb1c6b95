"""What happened while data were read: counts, bad files, conversions, rules, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ddpm.config import DataConfig
from ddpm.errors import DataError
from ddpm.words import counted


@dataclass(frozen=True)
class LoadReport:
    """What was seen, used, left aside, and done to the pictures.

    Attributes:
        seen: number of files or rows met.
        used: number of pictures in the store.
        ignored: how many were left aside, by extension or reason.
        bad: (name, reason) of everything that should be a picture and is none.
        conversions: what was done to how many pictures, such as ``12 with alpha composited on white``.
        size_rule: how the size was decided, in words.
        notes: further decisions, in words.
        modes: number of pictures by mode of their file.
        sizes: number of pictures by ``HxW`` of their file, the most frequent sizes.
        from_cache: whether the pictures were read from the cache rather than decoded.
    """

    seen: int
    used: int
    ignored: dict[str, int]
    bad: tuple[tuple[str, str], ...]
    conversions: tuple[str, ...]
    size_rule: str
    notes: tuple[str, ...] = ()
    modes: dict[str, int] | None = None
    sizes: dict[str, int] | None = None
    from_cache: bool = False

    def lines(self) -> list[str]:
        """Return the report as sentences, for a terminal."""
        lines = [f"{counted(self.used, 'picture')} of {counted(self.seen, 'file or row', 'files or rows')} seen"]
        if self.ignored:
            lines.append("ignored: " + ", ".join(f"{count:,} {what}" for what, count in self.ignored.items()))
        if self.bad:
            lines.append(f"{len(self.bad):,} bad: {list_bad(self.bad)}")
        return [*lines, f"size {self.size_rule}", *self.conversions, *self.notes]

    def to_tree(self) -> dict[str, Any]:
        """Return plain JSON values; `report_from_tree` inverts it."""
        return asdict(self)


def report_from_tree(tree: dict[str, Any]) -> LoadReport:
    """Rebuild a report from plain JSON values."""
    pairs = tuple((str(name), str(reason)) for name, reason in tree["bad"])
    sequences = {"conversions": tuple(tree["conversions"]), "notes": tuple(tree["notes"])}
    return LoadReport(**{**tree, **sequences, "bad": pairs})


def list_bad(bad: tuple[tuple[str, str], ...] | list[tuple[str, str]], most: int = 5) -> str:
    """Return the first few bad files with their reasons."""
    listed = "; ".join(f"{name} ({reason})" for name, reason in bad[:most])
    return listed + (f"; and {len(bad) - most:,} more" if len(bad) > most else "")


def enforce_policy(bad: tuple[tuple[str, str], ...] | list[tuple[str, str]], total: int, config: DataConfig) -> None:
    """Stop if the bad files are more than the configuration allows.

    Raises:
        DataError: naming the first of them and what to change.
    """
    if not bad:
        return
    if config.on_bad_file == "fail":
        raise DataError(
            f"{list_bad(bad)}: not readable as a picture; remove it, or set data.on_bad_file=skip "
            "to leave such files out"
        )
    if len(bad) > config.max_bad_share * total:
        raise DataError(
            f"{len(bad):,} of {total:,} pictures cannot be read, more than data.max_bad_share "
            f"({config.max_bad_share:.0%}) allows: {list_bad(bad)}; remove or repair them, or raise data.max_bad_share"
        )
