from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddpm.engine import Engine, choose_engine, engine_of, fast_bfloat16_in, precision_of_gpu
from ddpm.self_test import tiny_step, trouble_with


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "fast"),
    [
        ("GenuineIntel", 6, "avx512f amx_bf16 amx_tile", True),
        ("GenuineIntel", 6, "avx512f avx512_bf16", False),
        ("AuthenticAMD", 26, "avx512f avx512_bf16", True),
        ("AuthenticAMD", 25, "avx512f avx512_bf16", False),
        ("AuthenticAMD", 26, "avx2", False),
    ],
)
def test_fast_bfloat16_follows_from_the_processor(vendor: str, family: int, flags: str, fast: bool) -> None:
    core = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: fpu {flags} sse\n"
    assert fast_bfloat16_in(f"{core}\n{core}") is fast


def test_an_unknown_processor_is_not_fast() -> None:
    assert not fast_bfloat16_in("")


def test_a_run_that_began_with_kernels_goes_on_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    began = Engine(device="cpu", precision="float32", channels_last=True, threads=1, native=True)
    monkeypatch.setattr("ddpm.native.available", lambda: False)
    engine, notice = engine_of(began.as_tree())
    assert engine == Engine(device="cpu", precision="float32", channels_last=True, threads=1, native=False)
    assert notice is not None
    assert "compiled kernels" in notice


@pytest.mark.parametrize(
    ("capability", "name", "precision"),
    [
        ((9, 0), "NVIDIA H100 80GB HBM3", "bfloat16"),
        ((8, 6), "NVIDIA GeForce RTX 3060", "bfloat16"),
        ((7, 5), "Tesla T4", "float16"),
        ((7, 0), "Tesla V100-SXM2-16GB", "float16"),
        ((7, 5), "NVIDIA GeForce GTX 1650", "float32"),
        ((6, 1), "NVIDIA GeForce GTX 1080 Ti", "float32"),
    ],
)
def test_the_precision_of_a_gpu_follows_from_its_tensor_cores(
    capability: tuple[int, int], name: str, precision: str
) -> None:
    assert precision_of_gpu(capability, name) == precision


class TestOldGpu:
    """A GPU that is not there: what is decided from what it says of itself."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080 Ti")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
        monkeypatch.setattr("ddpm.engine._checked_device", torch.device)

    def test_float32_is_chosen_and_said(self) -> None:
        engine = choose_engine()
        assert (engine.device, engine.precision, engine.scaler()) == ("cuda", "float32", None)
        assert "no use for half precision" in engine.notices[0]

    def test_what_is_asked_for_is_taken(self) -> None:
        engine = choose_engine(precision="float16")
        assert engine.precision == "float16"
        assert engine.scaler() is not None
        assert engine.notices == ()

    def test_notices_are_no_part_of_the_choice(self) -> None:
        engine = choose_engine()
        assert engine == Engine(**engine.as_tree())


class TestAppleGpu:
    @pytest.fixture(autouse=True)
    def _mps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trouble_with.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr("ddpm.engine._checked_device", torch.device)

    def test_one_that_cannot_run_a_network_gives_way_to_the_cpu(self) -> None:
        engine = choose_engine()  # this machine's torch has no mps: the test network fails there
        assert engine.device == "cpu"
        assert len(engine.notices) == 1
        assert "cannot run a network" in engine.notices[0]

    def test_one_that_computes_other_numbers_gives_way_to_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def faulty(device: str) -> list[Tensor]:
            results = tiny_step("cpu")
            if device == "mps":
                results[3] = results[3] * 1.01
            return results

        monkeypatch.setattr("ddpm.self_test.tiny_step", faulty)
        engine = choose_engine("mps")
        assert engine.device == "cpu"
        assert "other numbers" in engine.notices[0]

    def test_one_whose_numbers_are_not_finite_gives_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "ddpm.self_test.tiny_step",
            lambda device: [torch.full((2,), math.nan if device == "mps" else 1.0)],
        )
        assert choose_engine().device == "cpu"

    def test_one_that_computes_right_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ddpm.self_test.tiny_step", lambda device: tiny_step("cpu"))
        engine = choose_engine()
        assert (engine.device, engine.precision, engine.channels_last, engine.native) == (
            "mps",
            "float32",
            False,
            False,
        )
        assert engine.notices == ()


def test_the_self_test_sees_every_kind_of_layer() -> None:
    results = tiny_step("cpu")
    assert len(results) > 50
    assert all(bool(part.abs().max() > 0) for part in results)
