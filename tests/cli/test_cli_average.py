from __future__ import annotations

from pathlib import Path

import pytest

from ddpm.cli.main import main
from ddpm.model import Model
from ddpm.model.averaging import KeptAverages
from tiny_runs import train_all

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "run"
    train_all(out, steps=8, checkpoint_every=2, snapshots=4, schedule={"num_timesteps": 50}, sampling={"steps": 3})
    return out


def test_widths_are_scored_and_the_best_is_written(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "best.safetensors"
    main(["average", str(run), "--widths", "0.05,0.2", "-n", "20", "--out", str(file)])
    lines = capsys.readouterr().out.splitlines()
    scores = {line.split()[0]: float(line.split()[1]) for line in lines if line.split()[0] in ("0.05", "0.2")}
    best = min(scores, key=lambda width: scores[width])
    assert [line.split()[0] for line in lines if line.endswith("best") or "best," in line] == [best]
    assert Model.load(file).provenance["average_width"] == float(best)
    assert file.with_suffix(".png").exists()


def test_one_width_is_made_and_nothing_is_scored(run: Path, capsys: Capture) -> None:
    main(["average", str(run), "--widths", "0.1"])
    made = Model.load(run / "average.safetensors")
    wanted = KeptAverages.of_run(run).model(0.1)
    weights = zip(made.network.parameters(), wanted.network.parameters(), strict=True)
    assert all(bool((one == other).all()) for one, other in weights)
    said = capsys.readouterr()
    assert "Fréchet" not in said.out
    assert f"next: ddpm sample {run / 'average.safetensors'}" in said.out + said.err
    assert refusal(["average", str(run), "--widths", "0.1"], capsys).startswith("ddpm: '")


def test_a_width_that_needs_more_averages_is_said_to_be_approached(run: Path, tmp_path: Path, capsys: Capture) -> None:
    main(["average", str(run), "--widths", "0.01", "--out", str(tmp_path / "narrow.safetensors")])
    said = capsys.readouterr()
    assert "only approached" in said.out + said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widths", "wide"], "widths 'wide'; expected shares of the training"),
        (["--widths", "0.5"], "an average of width 0.5; expected a share of the training from 0.01 to 0.25"),
        (["--out", "average.png"], "expected the name of a .safetensors file"),
        (["--out", "nowhere/average.safetensors"], "its folder is missing or read-only"),
        (["-n", "0"], "0"),
    ],
)
def test_rubbish_is_refused(run: Path, arguments: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    free = [] if "--out" in arguments else ["--out", str(tmp_path / "free.safetensors")]
    assert message in refusal(["average", str(run), *free, *arguments], capsys)


def test_a_run_without_averages_is_told_how_to_keep_them(tmp_path: Path, capsys: Capture) -> None:
    assert "training.snapshots=16" in refusal(["average", str(tmp_path)], capsys)


def refusal(words: list[str], capsys: Capture) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err
