from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.diffusion.bits import BitsPerDim, Estimate, NoiseLevel
from ddpm.errors import ConfigError
from ddpm.figures import bound_shares, rate_distortion

pytest.importorskip("matplotlib")


def level(first: int, last: int, bits: float, distortion: float) -> NoiseLevel:
    return NoiseLevel(first, last, Estimate(bits, 0.1), Estimate(distortion, 0.2))


BITS = BitsPerDim(
    Estimate(3.5, 0.1),
    Estimate(0.5, 0.0),
    (level(0, 0, 1.0, 2.0), level(1, 1, 0.5, 4.0), level(2, 5, 1.5, 20.0)),
    {},
)


def test_the_cost_of_a_step_is_drawn_on_both_axes(tmp_path: Path) -> None:
    figure = bound_shares(BITS)
    linear, logarithmic = figure.axes
    stairs = linear.patches[0].get_data()  # type: ignore[attr-defined]
    np.testing.assert_allclose(stairs.values, [1.0, 0.5, 0.375])
    assert stairs.edges.tolist() == [1, 2, 3, 7]
    assert (logarithmic.get_xscale(), logarithmic.get_yscale()) == ("log", "log")
    assert logarithmic.patches[0].get_data().edges.tolist() == [1, 2, 3, 7]  # type: ignore[attr-defined]
    figure.savefig(tmp_path / "shares.png")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_rate_and_distortion_are_drawn_against_each_other() -> None:
    over_t, rate, curve = rate_distortion(BITS).axes
    assert over_t.lines[0].get_xydata().tolist() == [[1, 2], [2, 4], [4.5, 20]]  # type: ignore[union-attr]
    rates = BITS.rates()
    assert rate.lines[0].get_ydata().tolist() == list(rates)  # type: ignore[union-attr]
    assert curve.lines[0].get_xydata().tolist() == [[rates[0], 2], [rates[1], 4], [rates[2], 20]]  # type: ignore[union-attr]


def test_matplotlib_is_imported_by_a_drawing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, ddpm.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddpm\[figures\]'"):
        bound_shares(BITS)
