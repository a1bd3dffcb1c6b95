"""Every benchmark can be started: what it imports is there, and its help says how."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
SHARED = ("peers", "turns")
"""What several of them import; started alone they do nothing."""


@pytest.mark.parametrize("name", MODULES)
def test_it_imports_and_tells_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("ddpm", *MODULES):
            raise
        pytest.skip(f"{error.name} is not installed")
    if name in SHARED:
        assert not hasattr(module, "main")
        return
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}.py")


def test_the_readme_names_every_benchmark() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"benchmarks/(\w+)\.py", readme)) == {name for name in MODULES if name not in SHARED}
