from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.config.sampling import SamplingConfig, Variance
from ddpm.diffusion import make_schedule
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.errors import ModelFileError, SamplingError
from ddpm.model import Model
from ddpm.networks import build_network

Change = Callable[[dict[str, Any]], object]


def tiny_model(
    *,
    codec: PixelCodec | None = None,
    variance: Variance = "fixed_large",
    self_conditioning: bool = False,
    **advice: Any,
) -> Model:
    """Return a model of 6x5 colour pictures whose random weights do make pictures that differ."""
    config = NetworkConfig(
        base_channels=8,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_levels=(1,),
        num_groups=4,
        self_conditioning=self_conditioning,
    )
    network = build_network(config, (6, 5, 3), learned_variance=variance == "learned")
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    network.eval().requires_grad_(False)
    return Model(
        network=network,
        network_config=config,
        schedule=make_schedule("cosine", 20),
        parameterization="v",
        codec=codec or PixelCodec(256, (0.0, 255.0), "uint8"),
        picture_shape=(6, 5, 3),
        variance=variance,
        sampling=SamplingConfig(**{"steps": 3, **advice}),
        provenance={"step": 7, "data": "no data", "config": {"seed": 0}},
    )


def last_x(model: Model) -> torch.Tensor:
    *_, step = model.sample_steps(range(2))
    return step.x


@pytest.mark.parametrize("self_conditioning", [False, True])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned"])
def test_the_ancestral_sampler_uses_the_variance_of_training(
    tmp_path: Path, variance: Variance, self_conditioning: bool
) -> None:
    model = tiny_model(variance=variance, self_conditioning=self_conditioning, sampler="ddpm", steps=6)
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    assert (loaded.variance, loaded.network_config) == (variance, model.network_config)
    assert torch.equal(last_x(loaded), last_x(model))
    assert torch.equal(last_x(loaded), last_x(loaded.with_sampling(variance=variance)))
    for other in {"fixed_large", "fixed_small"} - {variance}:
        assert not torch.equal(last_x(loaded), last_x(loaded.with_sampling(variance=other)))
    if variance != "learned":
        with pytest.raises(SamplingError, match="this model's variance is fixed"):
            last_x(loaded.with_sampling(variance="learned"))


def test_a_file_that_names_no_variance_has_the_large_one(tmp_path: Path, saved: Path) -> None:
    older = rewrite(saved, tmp_path / "m.safetensors", change=lambda tree: tree.pop("variance"))
    assert Model.load(older).variance == "fixed_large"


def test_a_variance_that_the_weights_do_not_fit_is_refused(tmp_path: Path, saved: Path) -> None:
    for value in ("learned", "large", None):
        path = rewrite(saved, tmp_path / "m.safetensors", change=lambda tree, value=value: tree.update(variance=value))
        assert "describes no valid model" in refusal(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tiny_model().save(path)
    return path


def rewrite(saved: Path, target: Path, *, change: Change = lambda tree: None, **metadata: str) -> Path:
    """Write a copy of a model whose description was changed."""
    with safe_open(saved, framework="pt") as file:
        old = dict(file.metadata())
    description = json.loads(old["description"])
    change(description)
    save_file(load_file(saved), target, {**old, "description": json.dumps(description), **metadata})
    return target


def refusal(path: Path) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(ModelFileError) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


# sampling


@pytest.mark.parametrize(
    "advice", [{}, {"sampler": "ddim", "eta": 0.7}, {"sampler": "ddpm"}, {"spacing": "karras", "clip": False}]
)
def test_a_saved_model_samples_the_same_bits(tmp_path: Path, advice: dict[str, Any]) -> None:
    model = tiny_model(**advice)
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.sample(4, seed=5), model.sample(4, seed=5))
    assert (loaded.sampling, loaded.provenance, loaded.codec) == (model.sampling, model.provenance, model.codec)
    assert (loaded.network_config, loaded.picture_shape) == (model.network_config, model.picture_shape)
    assert torch.equal(loaded.schedule.betas, model.schedule.betas)
    assert not loaded.network.training


def test_a_folder_stands_for_the_model_in_it(saved: Path) -> None:
    np.testing.assert_array_equal(Model.load(saved.parent).sample(1), Model.load(str(saved)).sample(1))


def test_only_one_file_is_left_by_a_save(tmp_path: Path) -> None:
    for _ in range(2):
        tiny_model().save(tmp_path / "a" / "m.safetensors")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.safetensors"]


def test_picture_i_does_not_depend_on_its_batch() -> None:
    model = tiny_model(sampler="ddim", eta=1.0)
    whole = model.sample(7, seed=3).astype(int)
    for batch_size in (1, 2, 5, 100):
        pictures = model.sample(7, seed=3, batch_size=batch_size).astype(int)
        assert np.abs(pictures - whole).max() <= 1  # sums of another order may round to the next level
    assert np.abs(model.sample(3, seed=3).astype(int) - whole[:3]).max() <= 1
    noise = NoiseSource(3, [0, 1, 2, 3], (3, 6, 5)).normal(0, "x_T")
    assert torch.equal(noise[2:3], NoiseSource(3, [2], (3, 6, 5)).normal(0, "x_T"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works_by_its_name(sampler: str) -> None:
    assert tiny_model(sampler=sampler).sample(2).shape == (2, 6, 5, 3)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ddim", {"eta": 0.5}),
        ("ddpm", {"variance": "fixed_small"}),
        ("unipc", {"order": 1}),
        ("unipc", {"variant": "bh2"}),
        ("deis", {"order": 2}),
        ("lms", {"order": 1}),
        ("heun", {"churn": 2.0}),
        ("euler", {"churn": 2.0}),
        ("euler", {"churn": 2.0, "churn_range": (0.0, 1.0)}),
        ("euler", {"churn": 2.0, "churn_noise": 1.1}),
        ("langevin", {"inner_steps": 2}),
        ("langevin", {"step_size": 0.1}),
        ("predictor_corrector", {"corrector_steps": 2}),
        ("predictor_corrector", {"snr": 0.3}),
        ("adaptive", {"tolerance": 1e-3}),
        ("adaptive", {"tolerance": 1e-3, "absolute_tolerance": 1e-4}),
    ],
)
def test_every_option_reaches_its_sampler(sampler: str, options: dict[str, Any], tmp_path: Path) -> None:
    plain = tiny_model(sampler=sampler, steps=6)
    model = plain.with_sampling(**options)
    without = plain.with_sampling(**dict(list(options.items())[:-1]))
    assert last_x(model).ne(last_x(without)).any()
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    assert loaded.sampling.options().items() >= options.items()
    assert torch.equal(last_x(loaded), last_x(model))


def test_another_sampler_begins_with_its_own_options() -> None:
    model = tiny_model(sampler="unipc", order=3, spacing="karras")
    changed = model.with_sampling(sampler="lms")
    assert (changed.sampling.spacing, changed.sampling.options()) == (None, {})
    assert model.with_sampling(sampler="unipc", steps=5).sampling.options() == {"order": 3}


def test_the_spacing_is_the_samplers_unless_another_is_asked_for() -> None:
    def times(**advice: Any) -> list[float]:
        return [step.t for step in tiny_model(**advice).sample_steps([0])]

    assert times(sampler="heun") == times(sampler="heun", spacing="log_snr") != times(sampler="heun", spacing="leading")
    assert times(sampler="ddim") == times(sampler="ddim", spacing="trailing")


def test_pictures_and_seeds_differ() -> None:
    model = tiny_model()
    pictures = np.concatenate([model.sample(4, seed=0), model.sample(4, seed=1)])
    assert len({picture.tobytes() for picture in pictures}) == 8


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (PixelCodec(17, (0.0, 16.0), "uint8"), np.uint8),
        (PixelCodec(65536, (0.0, 65535.0), "uint16"), np.uint16),
        (PixelCodec(None, (-1.0, 1.0), "float32"), np.float32),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_samples_have_the_shape_and_dtype_of_the_data(codec: PixelCodec, dtype: type, n: int) -> None:
    pictures = tiny_model(codec=codec).sample(n)
    assert pictures.shape == (n, 6, 5, 3)
    assert pictures.dtype == dtype
    if codec.levels:
        assert pictures.max() < codec.levels


def test_every_step_is_reported() -> None:
    steps: list[object] = []
    tiny_model().sample(5, steps=4, batch_size=2, on_step=steps.append)
    assert len(steps) == 3 * 4


def test_arguments_override_the_advice_and_leave_the_model_alone() -> None:
    model = tiny_model()
    changed = model.with_sampling(sampler="ddpm", steps=5, eta=None)
    assert (changed.sampling.sampler, changed.sampling.steps, changed.sampling.eta) == ("ddpm", 5, 0.0)
    np.testing.assert_array_equal(model.sample(2, sampler="ddpm", steps=5), changed.sample(2))
    assert model.sampling == SamplingConfig(steps=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "0 pictures; expected at least 1"),
        ({"n": -5}, "-5 pictures; expected at least 1"),
        ({"batch_size": 0}, "batch size 0; expected at least 1"),
        ({"seed": -1}, "seed -1; expected 0 to"),
        ({"sampler": "ddmp"}, "unknown sampler 'ddmp'; did you mean 'ddpm'.*known are"),
        ({"steps": 21}, "21 sampling steps; expected 1 to 20, the timesteps of training"),
        ({"steps": 0}, "steps.* 0.*greater than or equal to 1"),
    ],
)
def test_sampling_refuses_in_a_sentence(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SamplingError, match=words) as caught:
        tiny_model().sample(**arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_make_no_pictures() -> None:
    model = tiny_model(clip=False)
    next(model.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(SamplingError, match="not finite"):
        model.sample(1)


# files that are no models


def test_missing_paths_are_refused(tmp_path: Path, saved: Path) -> None:
    assert "no model at" in refusal(tmp_path / "absent.safetensors")
    assert "no model in" in refusal(tmp_path)
    assert str(saved) in refusal(saved.parent / "modle.safetensors")
    assert "no model at" in refusal(tmp_path / ("x" * 5000))


def test_a_truncated_model_is_refused(tmp_path: Path, saved: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "m.safetensors"
    lengths = {0, 1, 7, 8, 9, 100, len(whole) - 1, *range(0, len(whole), len(whole) // 40)}
    for length in lengths:
        path.write_bytes(whole[:length])
        assert "take another copy" in refusal(path)
    path.write_bytes(whole + b"\0")
    refusal(path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for version in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap(), protocol=version))
        assert "is a pickle" in refusal(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap(), protocol=0))
    refusal(tmp_path / "a.pkl")
    torch.save({"weight": Trap()}, tmp_path / "a.pt")
    assert "is a pickle" in refusal(tmp_path / "a.pt")
    torch.save({"weight": Trap()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert "is a pickle" in refusal(tmp_path / "b.pt")
    assert not (tmp_path / "sprung").exists()


def test_other_files_are_refused(tmp_path: Path, trained: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.pkl", b"")
    refusal(tmp_path / "a.zip")
    (tmp_path / "words.safetensors").write_text("not a model\n" * 100)
    refusal(tmp_path / "words.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    assert "of format 'none', expected 'ddpm-model'" in refusal(tmp_path / "foreign.safetensors")
    assert "run 'ddpm train' with the same arguments" in refusal(trained / "checkpoint.safetensors")


def test_other_versions_and_broken_descriptions_are_refused(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "m.safetensors"
    for version in ("2", "0", "", "1.0"):
        assert f"format version '{version}'" in refusal(rewrite(saved, path, format_version=version))
    for text in ("", "{", "[]", "null", '"text"', "[" * 100_000, '{"network": NaN}'):
        refusal(rewrite(saved, path, description=text))


HOSTILE: list[tuple[str, Any]] = [
    ("network", None),
    ("network", {"kind": "mlp"}),
    ("network.base_channels", 4096),
    ("network.base_channels", 10**12),
    ("network.base_channels", -8),
    ("network.base_channels", "8"),
    ("network.channel_multipliers", [10**9, 10**9]),
    ("network.channel_multipliers", [1] * 100),
    ("network.channel_multipliers", [0, 0]),
    ("network.blocks_per_level", 10**6),
    ("network.head_channels", 3),
    ("network.num_groups", 0),
    ("network.unknown", 1),
    ("parameterization", "epsilon"),
    ("parameterization", ["v"]),
    ("codec", None),
    ("codec", []),
    ("codec", "uint8"),
    ("codec.levels", "many"),
    ("codec.levels", 1),
    ("codec.levels", None),
    ("codec.dtype", "object"),
    ("codec.dtype", ["uint8"]),
    ("codec.value_range", [0]),
    ("codec.value_range", ["a", "b"]),
    ("codec.value_range", [5, 5]),
    ("codec.value_range", [float("nan"), 1]),
    ("codec.value_range", [0, float("inf")]),
    ("codec.value_range", [0, 10**400]),
    ("picture_shape", [6, 5]),
    ("picture_shape", [6, 5, 4]),
    ("picture_shape", [6, 5, -3]),
    ("picture_shape", [0, 5, 3]),
    ("picture_shape", [10**9, 10**9, 3]),
    ("picture_shape", [6.5, 5, 3]),
    ("picture_shape", [float("inf"), 5, 3]),
    ("picture_shape", "653"),
    ("picture_shape", {"a": 1}),
    ("sampling", None),
    ("sampling.steps", 0),
    ("sampling.sampler", "none"),
    ("sampling.eta", float("nan")),
    ("provenance", None),
    ("provenance", 5),
    ("provenance", [1, 2]),
    ("provenance", "text"),
    ("provenance.step", "seven"),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_hostile_description_is_refused(tmp_path: Path, saved: Path, key: str, value: Any) -> None:
    def change(tree: dict[str, Any]) -> None:
        *sections, leaf = key.split(".")
        for section in sections:
            tree = tree[section]
        tree[leaf] = value

    assert "describes no valid model" in refusal(rewrite(saved, tmp_path / "m.safetensors", change=change))


@pytest.mark.parametrize(
    "key", ["network", "parameterization", "codec", "picture_shape", "sampling", "provenance", "codec.levels"]
)
def test_a_missing_part_is_never_made_up(tmp_path: Path, saved: Path, key: str) -> None:
    def change(tree: dict[str, Any]) -> None:
        *sections, leaf = key.split(".")
        for section in sections:
            tree = tree[section]
        del tree[leaf]

    refusal(rewrite(saved, tmp_path / "m.safetensors", change=change))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("schedule.betas", None),
        ("schedule.betas", torch.full((20,), 0.1)),
        ("schedule.betas", torch.full((1,), 0.1, dtype=torch.float64)),
        ("schedule.betas", torch.full((20,), 1.5, dtype=torch.float64)),
        ("schedule.betas", torch.full((20,), float("nan"), dtype=torch.float64)),
        ("schedule.betas", torch.full((4, 5), 0.1, dtype=torch.float64)),
        ("schedule.betas", torch.zeros(0, dtype=torch.float64)),
        ("network.conv_in.weight", None),
        ("network.conv_in.weight", torch.zeros(8, 3, 3, 4)),
        ("network.conv_in.weight", torch.zeros(8, 3, 3, 3, dtype=torch.int32)),
        ("network.conv_in.weight", torch.zeros(8, 3, 3, 3, dtype=torch.float16)),
        ("network.another.weight", torch.zeros(1)),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, saved: Path, name: str, tensor: torch.Tensor | None) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    assert "describes no valid model" in refusal(tmp_path / "m.safetensors")


def mutate_and_load(saved: Path, path: Path, rounds: int, seed: int) -> int:
    """Load models with random bytes changed, half of them in the header; return how many were refused."""
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(saved.read_bytes(), dtype=np.uint8)
    header = 8 + int(whole[:8].view("<u8")[0])
    refused = 0
    for number in range(rounds):
        data = whole.copy()
        places = rng.integers(0, header if number % 4 else len(data), rng.integers(1, 9))
        data[places] = rng.integers(0, 256, len(places)) if number % 2 else data[rng.permutation(header)[: len(places)]]
        path.write_bytes(data.tobytes())
        try:
            loaded = Model.load(path)
        except ModelFileError:
            refused += 1
            continue
        try:
            assert loaded.sample(1, steps=1).shape == (1, *loaded.picture_shape)
        except SamplingError as error:
            assert "not finite" in str(error)  # noqa: PT017  what a changed weight may do
    return refused


def test_mutated_bytes_are_a_valid_model_or_refused(tmp_path: Path, saved: Path) -> None:
    refused = mutate_and_load(saved, tmp_path / "m.safetensors", 300, seed=0)
    assert 50 < refused < 300


@pytest.mark.slow
def test_thousands_of_mutated_models(tmp_path: Path, saved: Path) -> None:
    assert mutate_and_load(saved, tmp_path / "m.safetensors", 5000, seed=1) > 1000


def test_a_model_whose_advice_has_too_many_steps_can_be_loaded_but_not_followed(tmp_path: Path) -> None:
    model = tiny_model()
    replace(model, sampling=SamplingConfig(steps=50)).save(tmp_path / "m.safetensors")
    with pytest.raises(SamplingError, match="50 sampling steps; expected 1 to 20"):
        Model.load(tmp_path / "m.safetensors").sample(1)
    assert Model.load(tmp_path / "m.safetensors").sample(1, steps=2).shape == (1, 6, 5, 3)
