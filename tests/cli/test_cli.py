from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.cli.main import main
from ddpm.errors import DataError, DdpmError
from ddpm.model import Model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(arguments: list[str], capture: Capture) -> str:
    """Return the line that refuses a command, which wrote nothing and said nothing else."""
    before = sorted(Path().rglob("*"))
    capture.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capture.readouterr()
    assert caught.value.code == 2
    assert out == ""
    *before_it, line = err.splitlines()
    assert line.startswith("ddpm: ")
    assert before_it == []
    assert sorted(Path().rglob("*")) == before
    return line


def test_help_is_fast_and_complete() -> None:
    seconds, out = [], ""
    for _ in range(3):
        before = os.times()
        out = subprocess.run([sys.executable, "-m", "ddpm.cli.main", "--help"], capture_output=True, text=True).stdout
        after = os.times()  # of the processor: a busy machine is no fault of the command
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert all(word in out for word in ("train", "sample", "evaluate", "inspect", "--debug"))
    assert min(seconds) < 1.0


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], []])
def test_help_loads_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom ddpm.cli.main import main\n"
        f"try: main({words})\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'sklearn', 'datasets', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_refusal_of_the_real_command() -> None:
    words = [sys.executable, "-m", "ddpm.cli.main", "sample", "absent"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "ddpm: no model at 'absent'; train one first, for example: ddpm train digits\n"


def test_from_data_to_scores(tiny_words: list[str], capsys: Capture) -> None:
    train = ["train", "digits", "--out", "run", *tiny_words]
    main(train)
    before = Model.load("run")
    capsys.readouterr()
    main(train)
    assert "step 8" in capsys.readouterr().err
    np.testing.assert_array_equal(Model.load("run").sample(2), before.sample(2))
    main([*train, "--set", "training.steps=10"])
    assert "step 8" in capsys.readouterr().err
    assert (before.provenance["step"], Model.load("run").provenance["step"]) == (8, 10)

    main(["sample", "run", "-n", "3", "--steps", "2", "--seed", "5", "--out", "drawn"])
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["00000.png", "00001.png", "00002.png", "grid.png"]
    with Image.open("drawn/00002.png") as picture:
        assert picture.size == (8, 8)
        recipe = json.loads(picture.text["ddpm"])
    assert (recipe["picture"], recipe["seed"]) == (2, 5)
    assert (recipe["sampling"]["steps"], recipe["sampling"]["sampler"]) == (2, "unipc")
    main(["sample", "run/model.safetensors", "-n", "1", "--sampler", "ddpm"])
    assert Path("run/samples/ddpm-5-seed0/00000.png").is_file()

    capsys.readouterr()
    main(["evaluate", "run", "-n", "25", "--steps", "2", "--json", "scores.json"])
    out = capsys.readouterr().out
    assert "25 pictures of run (unipc, 2 steps, seed 0) against 1,437 training pictures of digits" in out
    tree = json.loads(Path("scores.json").read_text())
    samples = tree["recipe"]["samples"]
    assert (samples["trained_on_same_data"], samples["step"]) == (True, 10)
    assert f"{tree['scores']['frechet_ratio']['value']:.4g}" in out
    (page,) = Path("run/evaluation").glob("*.html")
    assert json.loads(page.with_suffix(".json").read_text()) == tree


def test_inspect_says_what_things_are(trained: Path, capsys: Capture) -> None:
    main(["inspect", str(trained)])
    out = capsys.readouterr().out
    assert "a run on digits, 8 steps planned" in out
    assert "trained: 8 steps, 128 pictures seen" in out
    main(["inspect", str(trained / "model.safetensors")])
    assert "pictures: 8x8, 1 channel, 17 levels" in capsys.readouterr().out
    main(["inspect", "digits", "--out", "grid.png"])
    assert "1,797" in capsys.readouterr().out
    assert Image.open("grid.png").width >= 64


def test_a_dry_run_refuses_features_that_a_run_would_refuse(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(
            ["train", "digits", "--dry-run", "--set", "training.score=kernel", "--set", "training.score_features=pixel"]
        )
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert "did you mean 'pixels'" in err


def test_a_dry_run_prints_what_config_reads_and_writes_nothing(tiny_words: list[str], capsys: Capture) -> None:
    words = ["train", "digits", "--dry-run", "--seed", "3", "--batch-size", "4", "--out", "here", *tiny_words]
    main([*words, "--steps", "9", "--set", "training.milestones=1"])
    printed = capsys.readouterr().out
    tree = json.loads(printed)
    assert (tree["seed"], tree["out"], tree["preset"], tree["data"]["size"]) == (3, "here", "digits", [8, 8])
    assert tree["training"]["milestones"] == 1
    assert list(Path().iterdir()) == []
    Path("config.json").write_text(printed)
    main(["train", "digits", "--dry-run", "--config", "config.json"])
    assert json.loads(capsys.readouterr().out) == tree
    main(["train", "digits", "--dry-run", "--config", "config.json", "--seed", "4", "--out", "there"])
    assert json.loads(capsys.readouterr().out) == {**tree, "seed": 4, "out": "there"}


def test_points_come_as_a_table(capsys: Capture) -> None:
    small = {"network.base_channels": 8, "network.blocks_per_level": 1, "training.evaluate_every": 1000}
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    main(["train", "swissroll", "--steps", "3", "--batch-size", "16", "--set", "training.previews=4", *settings])
    main(["sample", "runs/swissroll", "-n", "6", "--steps", "3", "--out", "drawn"])
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["grid.png", "points.csv", "recipe.json"]
    header, *rows = Path("drawn/points.csv").read_text().splitlines()
    assert header == "x,y"
    assert np.isfinite(np.array([row.split(",") for row in rows], dtype=float)).all()
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "absent/of/photos"], "no data at 'absent/of/photos'"),
        (["train", "digit"], "digits"),
        (["train", "empty"], "empty"),
        (["train", "digits", "--set", "learning_rate=1"], "did you mean 'training.learning_rate'"),
        (["train", "digits", "--set", "training.steps"], "is no assignment"),
        (["train", "digits", "--set", "training.steps=soon"], "training.steps"),
        (["train", "digits", "--size", "3"], "size is 3x3"),
        (["train", "digits", "--size", "abc"], "size 'abc'; expected"),
        (["train", "digits", "--size", "8x8x8"], "expected a side in pixels"),
        (["train", "digits", "--size", ""], "expected a side in pixels"),
        (["train", "digits", "--steps", "0"], "training.steps"),
        (["train", "digits", "--seed", "-1"], "seed"),
        (["train", "digits", "--preset", "digit"], "did you mean 'digits'"),
        (["train", "digits", "--config", "absent.toml"], "no configuration file at 'absent.toml'"),
        (["train", "swissroll", "--set", "network.kind=unet"], "at least 4 pixels"),
        (["sample", "absent"], "no model at 'absent'"),
        (["sample", "empty"], "no model in 'empty'"),
        (["sample", "truncated.safetensors"], "truncated"),
        (["sample", "model.pt"], "is a pickle"),
        (["inspect", "model.pt"], "is a pickle"),
        (["inspect", "truncated.safetensors"], "truncated"),
        (["inspect", "absent"], "absent"),
        (["inspect", "digits", "--size", "2"], "size is 2x2"),
        (["evaluate", "truncated.safetensors"], "truncated"),
    ],
)
def test_bad_input_is_refused_in_one_line(words: list[str], said: str, trained: Path, capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("a-file").write_text("kept")
    Path("truncated.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-100])
    Path("model.pt").write_bytes(pickle.dumps({"weight": 1}))
    assert said in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler", "dimm"], "did you mean 'ddim'"),
        (["--steps", "51"], "51 sampling steps; expected 1 to 50"),
        (["--steps", "0"], "steps"),
        (["--seed", "-1"], "seed -1"),
        (["-n", "0"], "0 pictures"),
        (["-n", "-3"], "-3 pictures"),
    ],
)
def test_impossible_samples_are_refused(words: list[str], said: str, trained: Path, capsys: Capture) -> None:
    for command in (["sample", str(trained), "--out", "new"], ["evaluate", str(trained), "--json", "new.json"]):
        assert said in refused([*command, *words], capsys)


def test_sample_refuses_what_only_it_takes(trained: Path, capsys: Capture) -> None:
    Path("a-file").write_text("kept")
    assert "cannot write to 'a-file'" in refused(["sample", str(trained), "-n", "1", "--out", "a-file"], capsys)
    assert "batch size 0" in refused(["sample", str(trained), "--batch-size", "0", "--out", "new"], capsys)
    assert "device 'tpu' is not there" in refused(["sample", str(trained), "--device", "tpu", "--out", "new"], capsys)


def test_evaluate_refuses_other_data(trained: Path, capsys: Capture) -> None:
    assert "swissroll" in refused(["evaluate", str(trained), "-n", "20", "--data", "swissroll"], capsys)


def test_a_run_that_cannot_begin_leaves_everything_alone(capsys: Capture) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    Path("a-file").write_text("kept")
    assert "'mine' holds other files" in refused(["train", "digits", "--out", "mine"], capsys)
    assert "'a-file' is a file" in refused(["train", "digits", "--out", "a-file"], capsys)
    no_device = ["train", "digits", "--out", "new", "--set", "training.device=tpu"]
    assert "device 'tpu' is not there" in refused(no_device, capsys)


def test_debug_shows_the_error_itself() -> None:
    with pytest.raises(DataError):
        main(["train", "absent", "--debug"])
    with pytest.raises(DdpmError):
        main(["--debug", "sample", "absent"])


def test_version(capsys: Capture) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("ddpm 0.")
