"""Every figure is on the page of figures, for light and dark paper, and those of errata beside what they are of."""

import re
from pathlib import Path

import pytest
from PIL import Image

from ddpm.figures import FIGURES
from docs_site.equations import DOCS

PICTURES = DOCS / "images" / "figures"


def test_the_gallery_has_every_figure_with_its_command() -> None:
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    assert re.findall(r"^!\[[\w-]+\]\(images/figures/([\w-]+)\.png\)$", page, re.MULTILINE) == list(FIGURES)
    for name in FIGURES:
        assert re.search(rf"^ddpm figure {name}(?: --model runs/swissroll)?$", page, re.MULTILINE), name


@pytest.mark.parametrize("folder", [PICTURES, PICTURES / "dark"], ids=["light", "dark"])
def test_the_site_has_every_figure(folder: Path) -> None:
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(FIGURES)
    for path in folder.glob("*.png"):
        with Image.open(path) as picture, Image.open(PICTURES / path.name) as light:
            assert picture.size == light.size, path
            corner = picture.convert("L").getpixel((0, 0))
        assert (corner > 128) == (folder == PICTURES), path


def test_errata_stand_beside_their_figures() -> None:
    page = (DOCS / "errata.md").read_text(encoding="utf-8")
    for name in FIGURES:
        if name.startswith("errata-"):
            assert f"](images/figures/{name}.png)" in page
            assert f"`{name}`" in page
