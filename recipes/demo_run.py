"""The demo: run the recipe `demo` in one folder, and draw the nearest images for a few captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..pipeline.compute.stage import ProgressFactory, StageResult
from ..pipeline.contract.storage import Store
from .chain import StopRequests, run
from .recipe import DEMO_URLS, Recipe, load_recipe

PICTURE_NAME = "nearest.png"
"""File name of the picture in the demo's folder."""

_CAPTIONS_SHOWN = 8
"""Number of captions in the picture."""
_IMAGES_SHOWN = 4
"""Number of nearest images for each caption."""


class DemoResult(NamedTuple):
    """Recipe, stage results and picture of a demo run."""

    recipe: Recipe
    results: list[StageResult]
    picture: Path


def run_demo(
    folder: Path, port: int | None, overrides: list[str], progress: ProgressFactory, stop_requests: StopRequests
) -> DemoResult:
    """Run the recipe `demo`, with its images served on a port of this machine, and draw the picture.

    Args:
        folder: folder for all files of the demo.
        port: port for the images; None for the default.
        overrides: settings of the form `a.b=value`.

    Raises:
        PriorkitError: the port is taken, or a stage fails.
    """
    recipe = demo_recipe(folder, port, overrides)
    results = run(recipe, progress=progress, stop_requests=stop_requests)
    picture = draw_picture(recipe, folder, stale=any(result.done_now for result in results))
    return DemoResult(recipe, results, picture)


def demo_recipe(folder: Path, port: int | None, overrides: list[str]) -> Recipe:
    """Load the recipe `demo` with all folders below `folder`; `port` replaces the default port."""
    folders = {name: folder / name for name in ("images", "embeddings", "prior", "evaluation")}
    demo_overrides = [f"folders.{name}={json.dumps(path.as_posix())}" for name, path in folders.items()]
    if port is not None:
        demo_overrides.append(f"urls={DEMO_URLS}:{port}")
    return load_recipe("demo", [*demo_overrides, *overrides])


def draw_picture(recipe: Recipe, folder: Path, stale: bool) -> Path:
    """Draw the nearest images for a few test captions, unless the picture exists and is not `stale`."""
    path = folder / PICTURE_NAME
    if path.exists() and not stale:
        return path
    from ..pipeline.read.dataset import EmbeddingDataset
    from ..prior.evaluate.rows import EvaluatedRows
    from ..prior.interchange.load import load_prior
    from ..prior.report.gallery import draw_gallery, nearest_images, read_images

    dataset = EmbeddingDataset(recipe.folders.embeddings, recipe.read)
    rows = EvaluatedRows(dataset, recipe.evaluate.splits[0], recipe.evaluate).rows[:_CAPTIONS_SHOWN]
    nearest = nearest_images(load_prior(recipe.folders.prior), dataset, rows, _IMAGES_SHOWN, recipe.evaluate.seed)
    keys = {key for row in nearest for key in (*row.nearest_to_text, *row.nearest_to_prior)}
    title = "Captions that the prior was not trained on, and the images nearest to them (green: the true one)"
    picture = draw_gallery(nearest, read_images(recipe.folders.images, keys), title)
    with Store(str(folder)).create(path.name) as file:
        file.write(picture)
    return path
