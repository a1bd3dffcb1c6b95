"""A report as one HTML file: numbers, pictures, nearest training pictures, colours. It loads nothing from anywhere."""

from __future__ import annotations

import base64
import json
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.codec import Pictures
from ddpm.data import render_grid, to_image
from ddpm.errors import ConfigError
from ddpm.evaluation.metrics import Score
from ddpm.evaluation.report.exhibits import Exhibits, Pair
from ddpm.evaluation.report.report import Report, at_floor_of, floor_of, shown
from ddpm.evaluation.report.style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANNELS = {1: ("brightness",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
_WIDTH, _HEIGHT = 320, 120  # of a histogram


def page(report: Report) -> str:
    """Return the page."""
    exhibits = report.exhibits
    parts = [
        _header(report),
        _notes(report),
        _scores(report),
        _pictures(exhibits),
        _pairs(exhibits),
        _histograms(report),
        _bits(exhibits),
        _recipe(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}: evaluation</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    against, beside = (escape(line) for line in report.header())
    return f"<header>\n<h1>{escape(report.title)}</h1>\n<p>{against}.<br>{beside}.</p>\n</header>"


def _notes(report: Report) -> str:
    notes = [f"<p>{escape(note)}.</p>" for note in report.notes]
    missing = [f"<p>Left out: <b>{escape(name)}</b>: {escape(why)}.</p>" for name, why in report.left_out.items()]
    return f"<aside>\n{''.join([*notes, *missing])}\n</aside>" if notes or missing else ""


def _scores(report: Report) -> str:
    rows = "\n".join(_row(score) for score in report.scores)
    return (
        "<section>\n<h2>Scores</h2>\n<div class=wide><table>\n"
        "<thead><tr><th>score<th>samples<th>held-out<th class=words>meaning</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n</section>"
    )


def _row(score: Score) -> str:
    same = at_floor_of(score)
    floor, _, of = floor_of(score).partition(" of ")
    return (
        f"<tr><th scope=row>{escape(score.label)}"
        f"<td><b>{shown(score.value, score.error)}</b>{f'<small>{same}</small>' if same else ''}"
        f"<td>{floor}{f'<small>of {of}</small>' if of else ''}<td class=words>{escape(score.meaning)}</tr>"
    )


def _pictures(exhibits: Exhibits) -> str:
    if not len(exhibits.samples):
        return ""
    sides = "".join(
        f"<figure>\n<figcaption>{words}</figcaption>\n{_grid(exhibits, pictures)}\n</figure>\n"
        for words, pictures in (("Samples", exhibits.samples), ("Held-out pictures", exhibits.real))
    )
    return f'<section>\n<h2>Pictures</h2>\n<div class="sides">\n{sides}</div>\n</section>'


def _grid(exhibits: Exhibits, pictures: Pictures) -> str:
    if exhibits.are_points:
        plot = render_grid(pictures, levels=exhibits.levels, value_range=exhibits.value_range)
        return f'<img class="plot" src="{_source(plot)}" alt="points in the plane">'
    cells = "".join(_image(exhibits, picture, f"number {index}") for index, picture in enumerate(pictures))
    columns = int(np.ceil(np.sqrt(len(pictures))))
    return f'<div class="grid" style="--columns:{columns}">{cells}</div>'


def _pairs(exhibits: Exhibits) -> str:
    shown = {measure: pairs for measure, pairs in exhibits.pairs.items() if pairs}
    if not shown or exhibits.are_points:
        return ""
    rows = "".join(
        f'<h3>By {escape(measure)}</h3>\n<div class="pairs">{"".join(_pair(exhibits, pair) for pair in pairs)}</div>\n'
        for measure, pairs in shown.items()
    )
    return (
        "<section>\n<h2>Nearest training pictures</h2>\n<p>Above, the samples that come nearest to a training picture; "
        "below, that picture. The number is the distance, over that to the second nearest: below a third counts as a "
        f"near-copy.</p>\n{rows}</section>"
    )


def _pair(exhibits: Exhibits, pair: Pair) -> str:
    mark = ' class="copy"' if pair.is_near_copy else ""
    return (
        f"<figure{mark}>{_image(exhibits, pair.sample, f'sample {pair.number}')}"
        f"{_image(exhibits, pair.nearest, pair.name)}<figcaption>{pair.ratio:.2f}</figcaption></figure>"
    )


def _histograms(report: Report) -> str:
    exhibits = report.exhibits
    if exhibits.histograms is None:
        return ""
    verdict = escape(str(report.details["colour"]["verdict"]))
    channels = len(exhibits.histograms)
    names = _CHANNELS.get(channels, tuple(f"channel {number}" for number in range(channels)))
    plots = "".join(
        f'<figure class="{name}">{_histogram(counts)}<figcaption>{name}</figcaption></figure>'
        for name, counts in zip(names, exhibits.histograms, strict=True)
    )
    real, line = ('<span class="key real"></span>', '<span class="key line"></span>')
    return (
        f"<section>\n<h2>Colours</h2>\n<p>{verdict} Shares of pixel values, dark to bright: {real} training pictures, "
        f"{line} samples. The height is the square root of the share.</p>\n"
        f'<div class="plots">{plots}</div>\n</section>'
    )


def _histogram(shares: NDArray[np.float64]) -> str:
    """Return the shares of samples as a line over those of training pictures as an area, as SVG."""
    samples, real = (np.sqrt(side) for side in shares)  # small shares are seen beside a background's large one
    top = max(samples.max(), real.max())
    outline = [_steps(side / top) for side in (real, samples)]
    return (
        f'<svg viewBox="0 -4 {_WIDTH} {_HEIGHT + 8}" role="img" aria-label="histogram">'
        f'<path class="area" d="M0 {_HEIGHT} {outline[0]} L{_WIDTH} {_HEIGHT} Z"/>'
        f'<path class="curve" d="M0 {_HEIGHT} {outline[1]} L{_WIDTH} {_HEIGHT}"/></svg>'
    )


def _steps(heights: NDArray[np.float64]) -> str:
    width = _WIDTH / len(heights)
    corners = [
        f"L{number * width:.1f} {y:.1f} L{(number + 1) * width:.1f} {y:.1f}"
        for number, y in enumerate(_HEIGHT * (1 - heights))
    ]
    return " ".join(corners)


def _bits(exhibits: Exhibits) -> str:
    if exhibits.bits is None:
        return ""
    from ddpm.figures.likelihood import bound_shares, rate_distortion

    try:
        figures = [draw(exhibits.bits) for draw in (bound_shares, rate_distortion)]
    except ConfigError as error:  # matplotlib is not installed
        return f"<section>\n<h2>Bound by noise level</h2>\n<p>{escape(str(error))}.</p>\n</section>"
    plots = "".join(f'<figure><img src="{_drawn(figure)}" alt="the bound"></figure>' for figure in figures)
    return (
        f'<section>\n<h2>Bound by noise level, rate and distortion</h2>\n<div class="drawn">{plots}</div>\n</section>'
    )


def _drawn(figure: Figure) -> str:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _recipe(report: Report) -> str:
    text = escape(json.dumps(report.recipe, indent=2))
    return f"<section>\n<details><summary>Recipe of these scores</summary>\n<pre>{text}</pre>\n</details>\n</section>"


def _image(exhibits: Exhibits, picture: NDArray[np.generic], words: str) -> str:
    image = to_image(picture, levels=exhibits.levels, value_range=exhibits.value_range)
    return f'<img src="{_source(image)}" alt="{escape(words)}" title="{escape(words)}">'


def _source(image: Image.Image) -> str:
    stream = BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
