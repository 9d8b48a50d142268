"""Functions that run the `demo` recipe in one folder, and draw a figure of captions and their nearest images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..pipeline.compute.stage import ProgressFactory, StageResult
from ..pipeline.contract.storage import Store
from .chain import StopRequests, run
from .recipe import DEMO_URLS, Recipe, load_recipe

PICTURE_NAME = "nearest.png"
"""File name of the figure that `draw_picture` writes."""

_CAPTIONS_SHOWN = 8
"""Number of captions in the figure."""
_IMAGES_SHOWN = 4
"""Number of images that the figure shows for each text embedding, and for each prediction."""


class DemoResult(NamedTuple):
    """Result of a demo run: the recipe, the result of each stage, and the path of the figure."""

    recipe: Recipe
    results: list[StageResult]
    picture: Path


def run_demo(
    folder: Path, port: int | None, overrides: list[str], progress: ProgressFactory, stop_requests: StopRequests
) -> DemoResult:
    """Run the `demo` recipe, then draw a figure of a few captions and their nearest images; see `draw_picture`.

    The recipe downloads its images from a local server.

    Args:
        folder: folder for all files of the demo.
        port: port of the local server; None for `DEMO_PORT`.
        overrides: settings of the form `a.b=value`, which take precedence over the recipe and the other arguments.
        progress: function that returns a context manager for a stage's progress display; see `chain.run`.
        stop_requests: function that returns a context manager, which detects requests to stop training; see
            `chain.run`.

    Raises:
        PriorkitError: the port is already in use, or a stage failed.
    """
    recipe = demo_recipe(folder, port, overrides)
    results = run(recipe, progress=progress, stop_requests=stop_requests)
    picture = draw_picture(recipe, folder, stale=any(result.done_now for result in results))
    return DemoResult(recipe, results, picture)


def demo_recipe(folder: Path, port: int | None, overrides: list[str]) -> Recipe:
    """Load the `demo` recipe, with all of its output folders inside `folder`.

    Args:
        folder: folder for all files of the demo.
        port: port of the local server; None for `DEMO_PORT`.
        overrides: settings of the form `a.b=value`, which take precedence over the other arguments.
    """
    folders = {name: folder / name for name in ("images", "embeddings", "prior", "evaluation")}
    demo_overrides = [f"folders.{name}={json.dumps(path.as_posix())}" for name, path in folders.items()]
    if port is not None:
        demo_overrides.append(f"urls={DEMO_URLS}:{port}")
    return load_recipe("demo", [*demo_overrides, *overrides])


def draw_picture(recipe: Recipe, folder: Path, stale: bool) -> Path:
    """Draw a figure of a few captions and their nearest images, and write it to `nearest.png`.

    The captions come from evaluated rows. For each caption, the figure shows the images whose embeddings are nearest to
    the caption's text embedding, and those nearest to the prior's prediction.

    Args:
        recipe: recipe of the demo. All of its stages must have run.
        folder: folder for the figure.
        stale: True to replace an existing figure; False to keep it.

    Returns:
        Path of the figure.
    """
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
