"""`ddpm.evaluate` end to end: what a report holds, that work resumes, and what is refused."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddpm
from ddpm.cli.main import main
from ddpm.config import DataConfig
from ddpm.data import open_store, save_png, to_image
from ddpm.errors import ConfigError, DataError, DdpmError, ModelFileError, SamplingError
from ddpm.evaluation import plan as plan_module
from ddpm.evaluation import subject
from ddpm.evaluation.copies import shrunk
from ddpm.evaluation.extractors.features import Features, Pixels
from ddpm.evaluation.likelihood import bound
from ddpm.evaluation.likelihood import scores as likelihood_scores
from ddpm.evaluation.likelihood.ode import ode_bits_per_dim_of
from ddpm.evaluation.opening import Request
from ddpm.evaluation.plan import make_plan, report_name
from ddpm.evaluation.report.report import Report
from ddpm.evaluation.shards import SHARD
from ddpm.model import Model

Capture = pytest.CaptureFixture[str]

QUICK: dict[str, Any] = {"metrics": ["kid", "fid"], "steps": 2, "precision": "float32", "device": "cpu", "quiet": True}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The numbers of all pictures that are sampled, batch by batch."""
    batches: list[range] = []
    sample = subject.Sampled._sample

    def counting(self: subject.Sampled, model: Model, numbers: range, tick: subject.Tick) -> Any:
        batches.append(numbers)
        return sample(self, model, numbers, tick)

    monkeypatch.setattr(subject.Sampled, "_sample", counting)
    return batches


def shard_files(tmp_path: Path, kind: str) -> list[Path]:
    return sorted((tmp_path / "cache/evaluations").glob(f"{kind}-*/*.npz"))


def values(report: Report) -> dict[str, Any]:
    return report.as_tree()["scores"]


def write_digits(folder: Path, rows: Iterable[int], **kind: Any) -> None:
    store = open_store("digits", DataConfig())
    for row in rows:
        image = to_image(store.pictures[row], levels=store.levels, value_range=store.value_range)
        save_png(
            image.resize(kind["size"]) if "size" in kind else image.convert(kind.get("mode", "L")),
            folder / f"{row:05d}.png",
        )


def test_a_report_holds_scores_floors_and_the_whole_recipe(trained: Path) -> None:
    report = ddpm.evaluate(trained, n=400, steps=2, seed=3, quiet=True, precision="float32", device="cpu")
    tree = report.as_tree()
    assert json.loads(json.dumps(tree)) == tree
    names = ["kid", "fid", "precision", "recall", "density", "coverage", "near_copies", "colour", "frechet_ratio"]
    assert list(tree["scores"])[:9] == names
    assert tree["left_out"] == {}
    fid = report["fid"]
    assert (fid.n, fid.floor_n) == (400, 360)
    assert fid.floor is not None
    assert fid.at_floor_n is not None
    assert fid.value > 3 * fid.floor  # eight steps of training make noise
    samples, measure = tree["recipe"]["samples"], tree["recipe"]["measure"]
    assert (samples["sampler"], samples["steps"], samples["seed"], samples["step"]) == ("unipc", 2, 3, 8)
    assert samples["precision"] == "float32"
    assert samples["trained_on_same_data"]
    assert samples["weights"] == Model.load(trained).provenance["weights"]
    assert (measure["samples"], measure["reference_pictures"], measure["held_out_pictures"]) == (400, 1437, 360)
    assert measure["features"]["name"] == "pixels"
    assert measure["values"] == [17, [0.0, 16.0]]
    assert "KID, kernel distance" in report.table()
    assert "400 pictures are too few for FID as a headline" in report.notes[0]


def test_held_out_pictures_reach_their_own_floor() -> None:
    store = open_store("digits", DataConfig())
    write_digits(Path("held"), store.held_out.tolist())
    report = ddpm.evaluate("held", "digits", metrics=["kid", "fid", "prdc", "colour", "memorization"], quiet=True)
    for score in report.scores:
        assert score.n == score.floor_n == 360
        assert score.value == pytest.approx(score.floor, rel=1e-6)


def test_more_of_the_same_adds_shards_and_a_second_call_samples_nothing(
    trained: Path, sampled: list[range], tmp_path: Path
) -> None:
    first = ddpm.evaluate(trained, n=SHARD + 44, **QUICK)
    assert sampled == [range(0, 256), range(256, 300)]
    assert values(ddpm.evaluate(trained, n=SHARD + 44, **QUICK)) == values(first)
    ddpm.evaluate(trained, n=2 * SHARD, **QUICK)
    assert sampled[2:] == [range(256, 512)]
    assert values(ddpm.evaluate(trained, n=SHARD + 44, **QUICK))["fid"]["n"] == 300
    ddpm.evaluate(trained, n=SHARD, **{**QUICK, "metrics": ["prdc", "memorization", "pixels"]})
    assert len(sampled) == 3
    assert len(shard_files(tmp_path, "pictures")) == 2


def test_what_was_killed_goes_on_to_the_same_numbers(
    trained: Path, tmp_path: Path, sampled: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 2 * SHARD + 10
    whole = values(ddpm.evaluate(trained, n=number, **QUICK))
    kept = {path: path.read_bytes() for path in shard_files(tmp_path, "*")}
    shard_files(tmp_path, "pictures")[1].unlink()
    for place in (0, 3):
        shard_files(tmp_path, "features")[place].unlink()
    shard_files(tmp_path, "pictures")[-1].write_bytes(b"half a file")
    sampled.clear()
    assert values(ddpm.evaluate(trained, n=number, **QUICK)) == whole
    assert sampled == [range(256, 512), range(512, 522)]
    assert {path: path.read_bytes() for path in shard_files(tmp_path, "*")} == kept

    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "other"))
    fill = subject.Sampled._sample

    def killed(self: subject.Sampled, model: Model, numbers: range, tick: subject.Tick) -> Any:
        if numbers.start == SHARD:
            raise KeyboardInterrupt
        return fill(self, model, numbers, tick)

    with monkeypatch.context() as patch:
        patch.setattr(subject.Sampled, "_sample", killed)
        with pytest.raises(KeyboardInterrupt):
            ddpm.evaluate(trained, n=number, **QUICK)
    sampled.clear()
    assert values(ddpm.evaluate(trained, n=number, **QUICK)) == whole
    assert sampled == [range(256, 512), range(512, 522)]


def test_two_processes_make_what_one_makes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = values(ddpm.evaluate(trained, n=SHARD + 20, **QUICK))
    files = {path.name + path.parent.name: path.read_bytes() for path in shard_files(tmp_path, "*")}
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache/two"))
    two = values(ddpm.evaluate(trained, n=SHARD + 20, processes=2, **QUICK))
    assert two == one
    again = sorted((tmp_path / "cache/two/evaluations").glob("*/*.npz"))
    assert {path.name + path.parent.name: path.read_bytes() for path in again} == files


def test_another_recipe_has_other_folders(trained: Path, tmp_path: Path) -> None:
    model = Model.load(trained)

    def folders(what: Model | Path, **changes: Any) -> set[Path]:
        request = Request(
            **{"n": 50, "steps": 2, "metrics": ["kid"], "precision": "float32", "device": "cpu", **changes}
        )
        plan = make_plan(what, request)
        return {*plan.samples.folders(), *plan.train.folders()}

    base = folders(trained)
    assert len(base) == 3
    assert folders(model) == base  # the file or what is in it
    assert folders(trained, n=60) == base
    for changes in ({"seed": 1}, {"steps": 3}, {"sampler": "ddpm"}, {"precision": "bfloat16"}):
        assert len(folders(trained, **changes) & base) == 1  # the real pictures' features
    next(model.network.parameters()).data.add_(1e-3)
    assert len(folders(model) & base) == 1


def test_pictures_that_sample_wrote_score_as_the_model_does(trained: Path) -> None:
    main(["sample", str(trained), "-n", "40", "--steps", "2", "--seed", "7", "--device", "cpu", "--out", "drawn"])
    quick = {**QUICK, "metrics": ["kid", "fid", "prdc", "memorization", "colour", "pixels"], "precision": "auto"}
    of_model = ddpm.evaluate(trained, n=40, seed=7, **quick)
    of_files = ddpm.evaluate("drawn", "digits", **{**quick, "steps": None})
    assert values(of_files) == values(of_model)
    assert of_files.recipe["measure"] == of_model.recipe["measure"]
    assert any("256 levels of drawn are read as the data's 17" in note for note in of_files.notes)


def test_a_model_in_memory_is_scored_too(trained: Path) -> None:
    of_file = ddpm.evaluate(trained, n=50, **QUICK)
    assert values(ddpm.evaluate(Model.load(trained), n=50, **QUICK)) == values(of_file)
    with pytest.raises(ConfigError, match="save it, and give its file"):
        ddpm.evaluate(Model.load(trained), n=50, processes=2, **QUICK)


def test_the_command_writes_table_json_and_a_page_with_the_pictures(trained: Path, capsys: Capture) -> None:
    words = ["evaluate", str(trained), "-n", "30", "--steps", "2", "--precision", "float32", "--device", "cpu"]
    main([*words, "--json", "scores.json", "--html", "page.html"])
    out = capsys.readouterr().out
    tree = json.loads(Path("scores.json").read_text())
    assert f"{tree['scores']['frechet_ratio']['value']:.4g}" in out
    page = Path("page.html").read_text()
    pictures = [part.split('"')[0] for part in page.split("data:image/png;base64,")[1:]]
    assert len(pictures) == 30 + 64 + 2 * 12  # samples, held-out ones, pairs
    model = Model.load(trained).with_sampling(steps=2)
    first = Image.open(BytesIO(base64.b64decode(pictures[0])))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(to_image(model.sample(1)[0], levels=17)))
    assert "Nearest training pictures" in page
    assert page.count("<svg") == 1
    assert "http" not in page.replace("http-equiv", "")  # it loads nothing
    assert '"data_fingerprint"' in page.replace("&quot;", '"')

    main([*words, "--seed", "1", "--compare", "scores.json", "--html", "other.html"])
    out = capsys.readouterr().out
    assert "measured in the same way" in out
    assert "differs: seed: 0, now 1" in out
    with pytest.raises(SystemExit) as caught:
        main([*words[:2], "-n", "31", *words[4:], "--compare", "scores.json", "--html", "third.html"])
    assert caught.value.code == 2
    assert "samples: 30, now 31" in capsys.readouterr().err
    assert not Path("third.html").exists()


def test_large_pictures_without_inception_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *, device: str) -> Any:
        raise DataError(f"the weights of {name} are not here")

    monkeypatch.setattr(plan_module, "load_extractor", absent)
    noise = np.random.default_rng(0).integers(0, 256, (60, 24, 24, 3)).astype(np.uint8)
    np.save("all.npy", noise)
    np.save("some.npy", noise[:30])
    report = ddpm.evaluate("some.npy", "all.npy", quiet=True)
    assert [score.name for score in report.scores] == ["near_copies", "colour"]
    assert report.left_out["memorization by features"] == "the weights of inception are not here"
    assert report.left_out["fid"] == "the weights of inception are not here"
    with pytest.raises(DataError, match="weights of inception are not here"):
        ddpm.evaluate("some.npy", "all.npy", metrics=["fid"], quiet=True)
    with pytest.raises(DataError, match="no pixels here: scores over raw pixels mean something up to 1,024"):
        ddpm.evaluate("some.npy", "all.npy", metrics=["pixels"], quiet=True)


def test_broken_pictures_are_reported_before_any_score(trained: Path) -> None:
    write_digits(Path("some"), range(30))
    Image.new("L", (8, 8), 7).save("some/flat.png")
    Path("some/broken.png").write_bytes(b"no picture")
    report = ddpm.evaluate("some", "digits", metrics=["kid"], quiet=True)
    assert any("1 picture is of a single colour" in note for note in report.notes)
    assert any("1 file of some cannot be read" in note and "broken.png" in note for note in report.notes)
    Path("flat").mkdir()
    for number in range(30):
        Image.new("L", (8, 8), number).save(f"flat/{number}.png")
    with pytest.raises(DataError, match="all 30 pictures are of a single colour"):
        ddpm.evaluate("flat", "digits", metrics=["kid"], quiet=True)
    model = Model.load(trained)
    next(model.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(SamplingError, match="not finite"):
        ddpm.evaluate(model, n=30, **QUICK)


def test_pictures_of_another_kind_are_refused_with_the_reason() -> None:
    def refused(folder: str, **changes: Any) -> str:
        with pytest.raises(DdpmError) as caught:
            ddpm.evaluate(folder, changes.pop("data", "digits"), metrics=["kid"], quiet=True, **changes)
        return str(caught.value)

    write_digits(Path("gray"), range(30))
    write_digits(Path("colour"), range(30), mode="RGB")
    write_digits(Path("wide"), range(30), size=(10, 8))
    write_digits(Path("mixed"), range(29))
    write_digits(Path("mixed"), range(29, 30), size=(10, 10))
    assert "are 8x10 with 1 channel, those of 'digits' 8x8 with 1" in refused("wide")
    assert "several sizes" in refused("mixed")
    assert "--data is needed" in refused("gray", data=None)
    assert "only a model is sampled" in refused("gray", steps=3)
    assert "31 pictures are asked for, but 'gray' holds 30" in refused("gray", n=31)
    assert "it needs at least 20" in refused("gray", n=10)
    assert "not known" in refused("gray", features="pixel")
    assert "no data at 'absent'" in refused("absent")
    coloured = Image.open("colour/00000.png")
    coloured.putpixel((0, 0), (255, 0, 0))
    coloured.save("colour/00000.png")
    assert "8x8 with 3 channels" in refused("colour")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metrics", "fjd"], "unknown metric 'fjd'; did you mean 'fid'"),
        (["--metrics", ","], "no metric is asked for"),
        (["--metrics", "sfid"], "gives no spatial features"),
        (["--metrics", "kid", "-n", "19"], "it needs at least 20"),
        (["-n", "1"], "expected at least 2"),
        (["-n", "0"], "expected at least 2"),
        (["--features", "other.safetensors"], "'other.safetensors' cannot be read"),
        (["--data", "rgb.npy"], "has 256 levels"),
        (["--processes", "0"], "0 processes"),
        (["--device", "tpu"], "device 'tpu' is not there"),
        (["--features", "absent.pth"], "absent.pth"),
        (["--size", "16"], "a model says itself"),
        (["--compare", "absent.json"], "cannot read 'absent.json'"),
        (["--compare", "other.json"], "is no report of 'ddpm evaluate'"),
        (["--data", "swissroll"], "swissroll"),
    ],
)
def test_rubbish_is_refused_in_one_line(words: list[str], said: str, trained: Path, capsys: Capture) -> None:
    Path("other.json").write_text("{}")
    Path("other.safetensors").write_bytes(b"no classifier")
    np.save("rgb.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8))
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(trained), *words])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_run_folder_without_a_model_is_no_folder_of_pictures(capsys: Capture) -> None:
    Path("run/previews").mkdir(parents=True)
    Path("run/metrics.jsonl").write_text("")
    with pytest.raises(ModelFileError, match="no model in 'run'"):
        ddpm.evaluate("run", "digits", quiet=True)


@pytest.mark.parametrize("what", ["absent", "empty", "text.txt"])
def test_rubbish_in_place_of_pictures_is_refused(what: str, capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("text.txt").write_text("no picture")
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", what, "--data", "digits"])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert f"'{what}'" in err
    assert len(err.splitlines()) == 1


def test_likelihoods_sample_nothing_and_stand_beside_the_histogram(
    trained: Path, sampled: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood_scores, "ode_bits_per_dim_of", partial(ode_bits_per_dim_of, steps=4))
    report = ddpm.evaluate(trained, n=2, metrics=["bits", "ode"], device="cpu", quiet=True)
    assert sampled == []
    assert [score.name for score in report.scores] == ["bits_per_dim", "histogram_bits_per_dim", "ode_bits_per_dim"]
    assert all(score.error is not None and score.error > 0 for score in report.scores)
    assert report["ode_bits_per_dim"].n == 2
    assert report.details["ode"]["divergence_error"] > 0
    assert "on 360 held-out pictures of digits" in report.table()
    page = report.page()
    assert page.count('alt="the bound"') == 2
    assert "Nearest training" not in page


def test_bits_are_measured_once(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bits() -> Any:
        return values(ddpm.evaluate(trained, n=4, metrics=["bits"], device="cpu", quiet=True))

    first, (file,) = bits(), shard_files(tmp_path, "bits")
    with monkeypatch.context() as patch:
        patch.setattr(bound, "level_terms", None)
        assert bits() == first
    file.write_bytes(b"of a broken disk")
    assert bits() == first


@pytest.mark.slow
def test_the_ode_alone_stands_beside_the_histogram_too(trained: Path) -> None:
    alone = ddpm.evaluate(trained, n=2, metrics=["ode"], device="cpu", quiet=True)
    assert [score.name for score in alone.scores] == ["ode_bits_per_dim", "histogram_bits_per_dim"]


def test_a_page_without_matplotlib_says_so(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = ddpm.evaluate(trained, n=2, metrics=["bits"], device="cpu", quiet=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = report.page()
    assert "figures need matplotlib, which is not installed" in page
    assert "<img" not in page


def test_a_report_of_fewer_scores_has_another_name(trained: Path) -> None:
    def name(*metrics: str) -> str:
        return report_name(make_plan(trained, Request(n=30, steps=2, metrics=metrics, device="cpu")))

    assert name("kid", "fid") == name("fid", "kid")
    assert len({name("kid", "fid"), name("kid"), name("fid")}) == 3


def test_copies_are_sought_by_pixels_and_by_features(monkeypatch: pytest.MonkeyPatch) -> None:
    class Means(Pixels):
        name = "means"

        def __call__(self, pictures: Any, value_range: tuple[float, float]) -> Features:
            return Features(super().__call__(pictures, value_range).pooled.reshape(len(pictures), 8, 8).mean(1))

    store = open_store("digits", DataConfig())
    turned = store.pictures[store.train[:30], ::-1]  # other pixels, the same means of columns
    np.save("turned.npy", turned * 15)
    np.save("all.npy", store.pictures * 15)
    monkeypatch.setattr(plan_module, "load_extractor", lambda name, device: Means())
    report = ddpm.evaluate("turned.npy", "all.npy", metrics=["memorization"], quiet=True)
    held_out = open_store("all.npy", DataConfig()).held_out
    in_train = 30 - len(set(held_out.tolist()) & set(store.train[:30].tolist()))
    assert report["near_copies_features"].value * 30 >= in_train
    assert report["near_copies"].value < 0.5
    assert list(report.details["memorization"]) == ["pixels", "means"]
    assert "By pixels" in report.page()
    assert "By means" in report.page()


def test_large_pictures_are_compared_by_means_over_areas() -> None:
    pictures = np.arange(64 * 64 * 3, dtype=np.float32).reshape(1, 64, 64, 3)
    rows = shrunk(pictures)
    assert rows.shape == (1, 18 * 18 * 3)
    assert rows.mean() == pytest.approx(pictures.mean(), rel=1e-3)
    np.testing.assert_array_equal(shrunk(pictures[:, :4, :4]), pictures[:, :4, :4].transpose(0, 3, 1, 2).reshape(1, -1))
