"""The site builds without a warning and without a network, and its links go both ways."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("mkdocs", reason="the site needs `pip install 'ddpm[docs]'`")

from docs_site.equations import ROOT, all_equations
from docs_site.formulas import mathml


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once, whichever processes its tests are divided among."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "site.lock"):
        if not (shared / "site").exists():
            build(shared / "building")
            (shared / "building").rename(shared / "site")
    return shared / "site"


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]


def test_equations_and_functions_link_to_each_other(site: Path) -> None:
    reference = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    for equation in all_equations():
        page = (site / equation.page).with_suffix(".html").read_text()
        assert f'id="{equation.anchor}"' in page
        assert f'href="../{equation.page.removesuffix(".md")}.html#{equation.anchor}"' in reference
        for path in equation.functions:
            assert f'id="{path}"' in reference
            assert re.search(rf'href="\.\./reference/[\w.]+\.html#{re.escape(path)}"', page), path
        for test in equation.tests:
            assert f'href="../{test.page.removesuffix(".md")}.html#{test.anchor}"' in page
            assert f'id="{test.anchor}"' in (site / test.page).with_suffix(".html").read_text()


def test_formulas_are_drawn_by_the_browser_alone(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = path.read_text()
        assert "arithmatex" not in page, path.name
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page), path.name
    assert (site / "concepts" / "2-reverse.html").read_text().count("<math") > 30
    assert (site / "stylesheets" / "STIXTwoMath-Regular.ttf").stat().st_size > 100_000


def test_every_command_is_on_the_page_of_commands(site: Path) -> None:
    page = (site / "command-line.html").read_text()
    usage = re.search(r"\{([\w,-]+)\}", page)
    assert usage is not None
    for name in usage[1].split(","):
        assert f"usage: ddpm {name}" in page


def test_a_formula_that_cannot_be_converted_is_refused() -> None:
    for latex in (r"\nosuchcommand x", r"a & b", r"\mathcal Z"):
        with pytest.raises(ValueError, match=r"cannot be converted|no character"):
            mathml(latex, block=True)
