"""The concept pages: each formula is tied to a function that exists and to a test that exists."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from itertools import groupby

import pytest

from ddpm.diffusion import likelihood, process
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.schedules import SCHEDULES
from docs_site.equations import DOCS, Equation, all_equations, proofs_named

EQUATIONS = all_equations()

RIGHT_FORMULAS = {
    "q(x_t | x_0) has the bars": ("ddpm.diffusion.process.q_sample", r"\sqrt{\bar\alpha_t}\, x_0,\ (1-\bar\alpha_t) I"),
    "mu-tilde, x_0": (
        "ddpm.diffusion.process.q_posterior",
        r"\frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\, x_0",
    ),
    "mu-tilde, x_t": (
        "ddpm.diffusion.process.q_posterior",
        r"\frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\, x_t",
    ),
    "beta-tilde": ("ddpm.diffusion.process.q_posterior", r"\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t"),
    "mu_theta": (
        "ddpm.diffusion.process.mu_from_eps",
        r"\frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon_\theta(x_t, t)\right)",
    ),
    "the weight of eps": (
        "ddpm.diffusion.objectives.bound_weight",
        r"\frac{\beta_t^2}{2\sigma_t^2\,\alpha_t\,(1-\bar\alpha_t)}",
    ),
    "the bound": (
        "ddpm.diffusion.likelihood.Bound.total",
        r"\mathbb E_q\left[L_T + \sum_{t \gt 1} L_{t-1} + L_0\right]",
    ),
    "alpha-bar": ("ddpm.diffusion.schedules.NoiseSchedule.alphas_cumprod", r"\prod_{s=1}^{t} \alpha_s"),
    "the linear schedule": ("ddpm.diffusion.schedules.linear_betas", r"\frac{t-1}{T-1}\left(\beta_T - \beta_1\right)"),
    "the cosine schedule": ("ddpm.diffusion.schedules.cosine_betas", r"\cos^2\left(\frac{t/T + s}{1+s}"),
    "L_simple": ("ddpm.diffusion.objectives.squared_error", r"\left\lVert\epsilon - \epsilon_\theta"),
}


def public_functions(module: object) -> Iterator[str]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):  # type: ignore[attr-defined]
            yield f"{function.__module__}.{name}"


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.number)
def test_a_formula_names_its_source_a_function_and_a_test_that_exist(equation: Equation) -> None:
    assert equation.source
    assert equation.functions
    assert equation.tests
    for path in equation.functions:
        pkgutil.resolve_name(path)
    for test in equation.tests:
        assert test.source() is not None, f"{test.file}::{test.name}"


def test_numbers_run_on() -> None:
    for page, equations in groupby(EQUATIONS, key=lambda equation: equation.page):
        chapter = page.removeprefix("concepts/").split("-")[0]
        found = [equation.number for equation in equations]
        assert found == [f"{chapter}.{k + 1}" for k in range(len(found))]


@pytest.mark.parametrize("name", RIGHT_FORMULAS)
def test_the_formulas_that_common_texts_have_wrong_are_there_and_right(name: str) -> None:
    path, latex = RIGHT_FORMULAS[name]
    assert any(path in equation.functions and latex in equation.latex for equation in EQUATIONS)


def test_what_the_mathematics_computes_has_an_equation() -> None:
    shown = {path for equation in EQUATIONS for path in equation.functions}
    needed = {*public_functions(process)} - {"ddpm.diffusion.process.previous_time"}
    needed |= {f"ddpm.diffusion.schedules.{name}_betas" for name in SCHEDULES}
    needed |= {f"{entry.run.__module__}.{entry.run.__name__}" for entry in SAMPLERS.values()}
    terms = ("prior_term", "transition_term", "decoder_term", "gaussian_kl", "variational_bound", "bits_per_dim")
    needed |= {f"{likelihood.__name__}.{name}" for name in terms}
    assert needed - shown == set()


def test_every_test_that_a_page_names_exists() -> None:
    named = {test for path in DOCS.rglob("*.md") for test in proofs_named(path.read_text(encoding="utf-8"))}
    assert [f"{test.file}::{test.name}" for test in named if test.source() is None] == []


def test_every_source_is_in_the_references() -> None:
    cited = re.compile(r"(?:[A-Z][\w-]+(?: & [A-Z][\w-]+)?|[A-Z][\w-]+) (?:et al\. )?(?:19|20)\d\d[ab]?")
    references = (DOCS / "references.md").read_text(encoding="utf-8")
    missing = {name for equation in EQUATIONS for name in cited.findall(equation.source) if f"{name}" not in references}
    assert missing == set()


def test_every_work_that_a_page_cites_is_in_the_references() -> None:
    cited = re.compile(r"\b([A-Z][\w-]+(?:, [A-Z][\w-]+)*(?: & [A-Z][\w-]+| et al\.)?),? ((?:19|20)\d\d)")
    references = (DOCS / "references.md").read_text(encoding="utf-8")
    for path in sorted(DOCS.rglob("*.md")):
        for name, year in cited.findall(path.read_text(encoding="utf-8")):
            assert f"{name} {year}" in references, f"{path.name}: {name} {year}"
