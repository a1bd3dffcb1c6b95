from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.cli.main import main
from ddpm.codec import PixelCodec
from ddpm.model import Model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(trained: Path) -> Path:
    """A copy of the model, which a test may move or change."""
    Path("run").mkdir()
    return Path(shutil.copy(trained / "model.safetensors", "run/model.safetensors"))


def refused(words: list[str], capture: Capture) -> str:
    capture.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    (line,) = capture.readouterr().err.splitlines()
    return line


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_picture_made_in_any_batch_is_made_again(model: Path, kind: str, capsys: Capture) -> None:
    words = ["--sampler", "ddim", "--steps", "4", "--set", "eta=0.7", "--seed", "9", "--format", kind]
    main(["sample", "run", "--pictures", "12,3-5", "--batch-size", "3", "--out", "run/drawn", *words])
    assert {path.name for path in Path("run/drawn").glob(f"*.{kind}")} - {"grid.png"} == {
        f"{number:05d}.{kind}" for number in (3, 4, 5, 12)
    }
    Path("run").rename("moved")  # a run may move, with its pictures in it
    capsys.readouterr()
    main(["sample", "--from", f"moved/drawn/00012.{kind}", "--out", "again", "--format", kind])
    assert "equal" in capsys.readouterr().err
    apart = pixels(f"again/00012.{kind}").astype(int) - pixels(f"moved/drawn/00012.{kind}").astype(int)
    assert np.abs(apart).max() <= 1
    assert np.abs(pixels(f"again/00012.{kind}").astype(int) - pixels(f"moved/drawn/00004.{kind}")).max() > 1


def test_another_model_is_refused_by_its_hash(model: Path, capsys: Capture) -> None:
    main(["sample", "run", "-n", "1", "--steps", "2", "--out", "drawn"])
    other = Model.load(model)
    other.provenance["step"] = 9
    other.save("other.safetensors")
    assert "is not the model that made" in refused(["sample", "--from", "drawn/00000.png", "other.safetensors"], capsys)
    model.unlink()
    assert "name it" in refused(["sample", "--from", "drawn/00000.png"], capsys)
    assert not Path("drawn/again").exists()


def test_what_cannot_go_together_is_refused(model: Path, capsys: Capture) -> None:
    main(["sample", "run", "-n", "1", "--steps", "2", "--out", "drawn"])
    assert "leave out" in refused(["sample", "--from", "drawn/00000.png", "--steps", "3"], capsys)
    assert "holds no recipe" in refused(["sample", "--from", "drawn/grid.png"], capsys)
    assert "no model; expected" in refused(["sample"], capsys)
    words = ["sample", "run", "--out", "new"]
    assert "takes no option 'eta'" in refused([*words, "--sampler", "ddpm", "--set", "eta=0.5"], capsys)
    assert "unknown configuration key 'sampling.etta'" in refused([*words, "--set", "etta=0.5"], capsys)
    assert "eta" in refused([*words, "--sampler", "ddim", "--set", "eta=2"], capsys)
    assert not Path("new").exists()


def test_inspect_says_what_made_a_picture(model: Path, capsys: Capture) -> None:
    main(["sample", "run", "--pictures", "7", "--seed", "2", "--sampler", "ddim", "--steps", "2"])
    capsys.readouterr()
    picture = "run/samples/ddim-2-seed2/00007.png"
    main(["inspect", picture])
    out = capsys.readouterr().out
    assert "picture 7 of seed 2" in out
    assert "ddim, 2 steps" in out
    assert out.endswith(f"make it again: ddpm sample --from {picture}\n")


def test_a_16_bit_model_writes_16_bit_files(model: Path) -> None:
    from dataclasses import replace

    deep = replace(Model.load(model), codec=PixelCodec(65536, (0.0, 65535.0), "uint16"))
    deep.save("deep.safetensors")
    for kind in ("png", "tiff"):
        main(["sample", "deep.safetensors", "-n", "1", "--steps", "2", "--format", kind, "--out", kind])
        assert pixels(f"{kind}/00000.{kind}").dtype == np.uint16
        assert pixels(f"{kind}/00000.{kind}").max() > 256
    main(["sample", "deep.safetensors", "-n", "2", "--steps", "2", "--format", "npy", "--out", "npy"])
    array = np.load("npy/pictures.npy")
    assert (array.shape, array.dtype) == ((2, 8, 8, 1), np.uint16)
    np.testing.assert_array_equal(array[0, ..., 0], pixels("png/00000.png"))
    assert json.loads(Path("npy/recipe.json").read_text())["pictures"] == [0, 1]


def test_a_film_is_asked_for_with_the_pictures(model: Path) -> None:
    main(["sample", "run", "-n", "2", "--steps", "2", "--film", "strip", "--film", "gif", "--out", "drawn"])
    names = {path.name for path in Path("drawn").iterdir()}
    assert names == {"00000.png", "00001.png", "grid.png", "strip.png", "film.gif"}


def test_compare_samplers_prints_a_table_and_goes_on(model: Path, capsys: Capture) -> None:
    words = ["compare-samplers", "run", "--samplers", "ddim", "--steps", "1,2", "-n", "40", "--json", "cells.json"]
    main(words)
    first = capsys.readouterr()
    assert "Fréchet" in first.out
    assert "held-out pictures" in first.out
    main(words)
    again = capsys.readouterr()
    assert again.out == first.out
    assert "going on: 2 cells" in again.err
