"""How every figure looks: paper, ink, colours and type, light or dark, in one place.

No pyplot and no rcParams: a figure is styled as an object, so figures drawn side by side do not disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ddpm.errors import ConfigError, RunError, nearest
from ddpm.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = Literal["light", "dark"]
FileFormat = Literal["png", "svg"]
Colour = Any
"""What matplotlib takes as a colour."""

WIDTH = 7.2
"""Inches: the text of a page; at 100 dots an inch the column of a web page."""

_TEXT, _SMALL = 9, 8  # points


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one style.

    Attributes:
        paper: the background.
        ink: text and axes.
        faint: grids, reference lines, and data behind what matters.
        series: for lines; after Okabe & Ito 2008, told apart with any colour vision.
        ramp_range: the part of the map "viridis" that is seen on the paper.
    """

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]
    ramp_range: tuple[float, float]

    @property
    def right(self) -> str:
        """What holds."""
        return self.series[0]

    @property
    def wrong(self) -> str:
        """What does not."""
        return self.series[1]

    def ramp(self, count: int) -> list[Colour]:
        """Return `count` colours in order, for things that are in order."""
        from matplotlib import colormaps

        low, high = self.ramp_range
        return [colormaps["viridis"](low + (high - low) * i / max(count - 1, 1)) for i in range(count)]


PALETTES: dict[Style, Palette] = {
    "light": Palette(
        paper="#ffffff",
        ink="#1f2328",
        faint="#b5bac1",
        series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
        ramp_range=(0.0, 0.86),
    ),
    "dark": Palette(
        paper="#14171c",
        ink="#e4e7eb",
        faint="#59616c",
        series=("#56b4e9", "#ff8a4c", "#2fd0a0", "#e79ac6", "#f0c04a", "#b9a6ff"),
        ramp_range=(0.42, 1.0),
    ),
}
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
"""Dashes that go with `Palette.series`: colour is never the only difference."""


def blank(style: Style, height: float, width: float = WIDTH) -> tuple[Figure, Palette]:
    """Return an empty figure (inches) and the colours to draw it in.

    Raises:
        ConfigError: for an unknown style, or if matplotlib is not installed.
    """
    if style not in PALETTES:
        known = get_args(Style)
        raise ConfigError(f"unknown style '{style}'{nearest(style, known)}; known are {', '.join(known)}")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(
            "figures need matplotlib, which is not installed; run: pip install 'ddpm[figures]'"
        ) from error
    palette = PALETTES[style]
    return Figure(figsize=(width, height), layout="constrained", facecolor=palette.paper), palette


def panels(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """Return the axes of a regular grid, row by row."""
    return list(figure.subplots(rows, columns, squeeze=False).ravel())


def finished(figure: Figure, palette: Palette) -> Figure:
    """Give everything in a drawn figure its colours and sizes, and return it."""
    for axes in figure.axes:
        _finish(axes, palette)
    for text in figure.texts:
        text.set(color=palette.ink, fontsize=_TEXT)
    return figure


def _finish(axes: Axes, palette: Palette) -> None:
    axes.set_facecolor(palette.paper)
    for side, spine in axes.spines.items():
        spine.set(color=palette.ink, linewidth=0.7, visible=spine.get_visible() and side in ("left", "bottom"))
    axes.tick_params(which="both", colors=palette.ink, labelsize=_SMALL, width=0.7)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set(color=palette.ink, fontsize=_TEXT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(color=palette.ink, fontsize=_SMALL)
    for text in axes.texts:
        text.set(color=palette.ink, fontsize=_SMALL)
    legend = axes.get_legend()
    if legend is not None:
        legend.get_frame().set(facecolor=palette.paper, edgecolor="none", alpha=0.8)
        for text in legend.get_texts():
            text.set(color=palette.ink, fontsize=_SMALL)


def reference(axes: Axes, palette: Palette, y: float, label: str = "") -> None:
    """Draw a faint horizontal line behind the data, a value to compare with; its label stands on it at the right."""
    axes.axhline(y, color=palette.faint, linewidth=0.9, zorder=0)
    axes.text(1.0, y, label, transform=axes.get_yaxis_transform(), ha="right", va="bottom")


def legend_below(axes: Axes, columns: int = 1) -> None:
    """Put the legend under the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns, handlelength=2.4, labelspacing=0.2)


def room_above(axes: Axes, share: float) -> None:
    """Leave this share of the axes free above the data, for a legend."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(low, low * (high / low) ** (1 / (1 - share)))
    else:
        axes.set_ylim(low, low + (high - low) / (1 - share))


def save_figure(figure: Figure, path: Path, format: FileFormat, dots_per_inch: int = 200) -> None:
    """Write a figure; the file is complete or not there, and the same figure gives the same bytes.

    Raises:
        RunError: if it cannot be written.
    """
    from matplotlib import rc_context

    metadata = {"Date": None} if format == "svg" else {"Software": "ddpm"}

    def write(part: Path) -> None:
        with rc_context({"svg.hashsalt": "ddpm"}):  # names inside an SVG are random without it
            figure.savefig(part, format=format, dpi=dots_per_inch, facecolor=figure.get_facecolor(), metadata=metadata)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}; use another --out") from error
