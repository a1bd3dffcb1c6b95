from __future__ import annotations

import pytest

from ddpm.engine import Engine, engine_of, fast_bfloat16_in


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
