"""Pictures in, arrays in their own dtype out. Plain numpy: this room knows no torch and no network.

`open_store` reads folders, archives, tables, parquet, Hub data sets, arrays and embedded data alike; `Store` is what
comes out; `inspect` says in plain language what is there.
"""

from ddpm.data.inspection import Inspection, inspect
from ddpm.data.pictures import render_grid, save_png, to_image
from ddpm.data.progress import Progress, ProgressFactory
from ddpm.data.report import LoadReport
from ddpm.data.store import Store, open_store

__all__ = [
    "Inspection",
    "LoadReport",
    "Progress",
    "ProgressFactory",
    "Store",
    "inspect",
    "open_store",
    "render_grid",
    "save_png",
    "to_image",
]
