from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ddpm.cli.main import main
from ddpm.errors import ConfigError
from ddpm.figures import FIGURES, Request, entry_of, save_figure
from ddpm.figures.schedules import schedules_compared
from ddpm.figures.style import PALETTES, Style

pytest.importorskip("matplotlib")
Capture = pytest.CaptureFixture[str]


@cache
def request_in(style: Style) -> Request:
    return Request(style)  # keeps what several figures share


ALONE = [name for name, entry in FIGURES.items() if not entry.takes.endswith("needed")]


@pytest.mark.parametrize(("number", "name"), list(enumerate(ALONE)))
def test_every_figure_draws(number: int, name: str, tmp_path: Path) -> None:
    style: Style = ("light", "dark")[number % 2]  # type: ignore[assignment]
    figure = FIGURES[name].draw(request_in(style))
    figure.set_layout_engine("none")  # placing takes most of the time, and has nothing to do with what is drawn
    save_figure(figure, tmp_path / "figure.png", "png", 40)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    paper = {axes.get_facecolor() for axes in figure.axes} | {figure.get_facecolor()}
    assert {to_hex(colour) for colour in paper} == {PALETTES[style].paper}
    assert all(text.get_color() == PALETTES[style].ink for axes in figure.axes for text in axes.texts)
    for axes in figure.axes:
        assert axes.get_title() or axes.get_xlabel() or axes.get_ylabel(), "nobody can tell what this panel is"


def to_hex(colour: object) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        figure = FIGURES["reparameterisation"].draw(Request(seed=seed))
        figure.set_layout_engine("none")
        save_figure(figure, tmp_path / "figure.svg", "svg")
        made.append((tmp_path / "figure.svg").read_bytes())
    assert made[0] == made[1] != made[2]
    assert b"<svg" in made[0]


def test_a_name_has_a_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown figure 'schedule'; did you mean 'schedules'\?"):
        entry_of("schedule")


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown style 'drak'; did you mean 'dark'\?"):
        schedules_compared(style="drak")  # type: ignore[arg-type]


def test_the_command_lists_and_draws(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["figure"])
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed and entry.shows in listed for name, entry in FIGURES.items())
    main(["figure", "posterior-weights", "--dpi", "30"])
    assert Path("posterior-weights.png").read_bytes().startswith(b"\x89PNG")
    main(["figure", "posterior-weights", "--dark", "--out", "weights.svg"])
    text = Path("weights.svg").read_text()
    assert PALETTES["dark"].paper in text
    assert capsys.readouterr().out.splitlines() == ["figure: posterior-weights.png", "figure: weights.svg"]


def test_all_go_into_a_folder(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: FIGURES[name] for name in ("posterior-weights", "errata-reverse")}
    monkeypatch.setattr("ddpm.figures.FIGURES", few)
    main(["figure", "all", "--out", str(tmp_path / "made"), "--dpi", "30"])
    assert {path.name for path in (tmp_path / "made").iterdir()} == {f"{name}.png" for name in few}
    assert capsys.readouterr().out == f"2 figures in {tmp_path / 'made'}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["score-feild"], "did you mean 'score-field'"),
        (["schedules", "--out", "schedules.pdf"], r"ends with '.pdf'; expected .png or .svg"),
        (["schedules", "--out", "schedules.png", "--format", "svg"], "let it end with .svg"),
        (["schedules", "--seed", "-1"], "expected 0 to 2^64 - 1"),
        (["schedules", "--dpi", "0"], "expected 20 to 2400"),
        (["schedules", "--model", "absent"], "shows no model"),
        (["one-step", "--model", "absent"], "no model at 'absent'"),
    ],
)
def test_refusals(
    words: list[str], says: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["figure", *words])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_a_trained_model(trained: Path, tmp_path: Path) -> None:
    for name in ("same-noise", "rate-distortion"):
        main(["figure", name, "--model", str(trained), "--out", str(tmp_path / f"{name}.png"), "--dpi", "30"])
        assert (tmp_path / f"{name}.png").exists()


def test_what_points_have_taught_a_model(trained_points: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--model", str(trained_points), "--dpi", "30"]
    main(["figure", "score-learned", *words, "--out", str(tmp_path / "score.png")])
    assert (tmp_path / "score.png").exists()
    capsys.readouterr()
    for name, given, says in (
        ("score-learned", [], "make one with: ddpm train swissroll"),
        ("same-noise", words, "the model makes points in the plane"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["figure", name, *given, "--out", str(tmp_path / "refused.png")])
        assert caught.value.code == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "refused.png").exists()


def test_all_are_those_that_the_model_can_show(
    trained_points: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: FIGURES[name] for name in ("posterior-weights", "score-learned", "same-noise")}
    monkeypatch.setattr("ddpm.figures.FIGURES", few)
    main(["figure", "all", "--out", str(tmp_path), "--dpi", "30", "--model", str(trained_points)])
    assert {path.stem for path in tmp_path.iterdir()} == {"posterior-weights", "score-learned"}
    assert "not drawn, as they show another kind of model: same-noise" in capsys.readouterr().out


def test_help_loads_no_torch_and_missing_matplotlib_is_said(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\nfrom ddpm.cli.main import main\n"
        "try: main(['figure', '--help'])\nexcept SystemExit as end: assert not end.code\n"
        "sys.exit(f'loaded {heavy}' if (heavy := {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)) else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as caught:
        main(["figure", "schedules"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("run: pip install 'ddpm[figures]'")
