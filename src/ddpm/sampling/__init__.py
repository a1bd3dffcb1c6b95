"""Pictures from a model: which, in what batches, by which recipe, and how they came to be."""

from ddpm.sampling.batches import Forecast, forecast, make_pictures, parse_numbers
from ddpm.sampling.films import Film, render_frames, render_strip, save_film
from ddpm.sampling.recipe import Recipe, file_sha256, read_recipe

__all__ = [
    "Film",
    "Forecast",
    "Recipe",
    "file_sha256",
    "forecast",
    "make_pictures",
    "parse_numbers",
    "read_recipe",
    "render_frames",
    "render_strip",
    "save_film",
]
