"""What pages tell a reader to type is understood, and no command of a page meets the run of another."""

import functools
import importlib
import re
from pathlib import Path

import pytest

from ddpm.cli.main import main
from docs_site.commands import commands_of
from docs_site.equations import DOCS, ROOT

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
COMMANDS = {page.relative_to(ROOT).as_posix(): found for page in PAGES if (found := commands_of(page))}
MODULES = (
    "train",
    "sample",
    "evaluate",
    "inspect",
    "figure",
    "distill",
    "merge",
    "average",
    "train_adapter",
    "train_classifier",
)
FUNCTIONS = {**{name: name for name in MODULES}, "compare": "compare_samplers"}


def of(program: str) -> list[tuple[str, list[str]]]:
    return [(page, words) for page, found in COMMANDS.items() for words in found if words[0] == program]


def test_they_are_found() -> None:
    assert ["ddpm", "sample", "runs/photos"] in COMMANDS["README.md"]
    assert ["ddpm", "sample", "runs/digits", "--film", "strip", "--film", "gif"] in COMMANDS["docs/sampling.md"]
    assert ["ddpm", "train", "digits", "--out", "runs/short", "--steps", "60"] in COMMANDS["docs/resume.md"]
    assert len(of("ddpm")) > 100


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands whose functions were called: parsed in full, and then nothing was done."""
    names: list[str] = []
    for module, name in FUNCTIONS.items():
        loaded = importlib.import_module(f"ddpm.cli.{module}")

        @functools.wraps(getattr(loaded, name))
        def note(*_: object, _name: str = name, **__: object) -> None:
            names.append(_name)

        monkeypatch.setattr(loaded, name, note)
    return names


def test_every_command_has_the_options_that_pages_give_it(
    called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (page, words) in enumerate(of("ddpm"), start=1):
        try:
            main(words[1:])
        except SystemExit:
            pytest.fail(f"{page}: {' '.join(words)}\n{capsys.readouterr()}")
        assert len(called) == number, f"{page}: {' '.join(words)}"


def test_every_configuration_that_pages_set_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = set()
    for page, words in of("ddpm"):
        if words[1:3] in (["train", "digits"], ["train", "swissroll"]) and "--init" not in words:
            if tuple(words) not in tried:
                main([*words[1:], *(["--dry-run"] if "--dry-run" not in words else [])])
                assert "error" not in capsys.readouterr().err, page
            tried.add(tuple(words))
    assert len(tried) > 5


def test_one_run_folder_has_one_configuration() -> None:
    runs: dict[str, tuple[str, str]] = {}
    for page, words in of("ddpm"):
        if words[1] != "train" or re.match(r"[A-Z]", words[2]) or {"--init", "--dry-run"} & {*words}:
            continue  # another command, any data, a run in a folder of its own, or none
        if page in ("README.md", "docs/resume.md"):
            continue  # blocks that are alternatives to each other; a page whose subject are refusals
        out = words[words.index("--out") + 1] if "--out" in words else f"runs/{Path(words[2]).stem}"
        options = re.sub(r" ?--processes \d+", "", " ".join(words[3:]))  # no part of what is trained
        first = runs.setdefault(out, (page, options))
        assert first[1] == options, f"{page} and {first[0]} train {out} in two ways"


def test_every_script_and_extra_exists() -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for page, words in of("python"):
        assert (ROOT / words[1]).is_file() or words[1].startswith("-"), f"{page}: {words}"
    for page, words in of("pip"):
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert extra in extras, f"{page}: {words}"
