from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.cli.main import main
from ddpm.files import sha256_of
from ddpm.model import Model

Capture = pytest.CaptureFixture[str]
SMALL = ["--train-steps", "2", "--batch-size", "4", "--set", "training.previews=1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_distilled_model_samples_right_with_no_flag(trained: Path, capsys: Capture) -> None:
    words = ["distill", str(trained), "--steps", "2", "--out", "few", *SMALL]
    main(words)
    assert "next: ddpm sample few" in capsys.readouterr().err
    before = Model.load("few")
    main(words)  # the same command finds it finished
    assert "step 2" in capsys.readouterr().err
    main(["inspect", "few"])
    digest = sha256_of(trained / "model.safetensors")[:12]
    assert f"distilled from: {trained}/model.safetensors (SHA-256 {digest}...), progressive" in capsys.readouterr().out
    main(["sample", "few", "-n", "2", "--out", "drawn"])
    with Image.open("drawn/00001.png") as picture:
        recipe = json.loads(picture.text["ddpm"])["sampling"]
    assert (recipe["sampler"], recipe["steps"], recipe["timesteps"]) == ("ddim", 2, [49.0, 24.0])
    np.testing.assert_array_equal(Model.load("few").sample(2), before.sample(2))


def test_a_dry_run_writes_nothing(trained: Path, capsys: Capture) -> None:
    main(["distill", str(trained), "--method", "consistency", "--dry-run", "--seed", "7", "--out", "few", *SMALL])
    tree = json.loads(capsys.readouterr().out)
    assert (tree["out"], tree["seed"], tree["training"]["steps"]) == ("few", 7, 2)
    assert tree["distillation"]["method"] == "consistency"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "no model at 'absent'"),
        (["TRAINED", "--steps", "26"], "26 steps of the student; expected 1 to 25"),
        (["TRAINED", "--teacher-steps", "13"], "13 steps of the teacher in one of the student's; expected 1 to 12"),
        (["TRAINED", "--train-steps", "0"], "training.steps"),
        (["TRAINED", *SMALL, "--set", "training.device=tpu"], "device 'tpu' is not there"),
        (["TRAINED"], "say how many with --train-steps"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words: list[str], said: str, trained: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["distill", *(str(trained) if word == "TRAINED" else word for word in words), "--out", "few"])
    out, err = capsys.readouterr()
    assert (caught.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert list(Path().iterdir()) == []
