"""The demo: the recipe `demo` in a folder of its own, and a picture of what its prior finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..pipeline.compute.stage import ProgressFactory, StageResult
from ..pipeline.contract.storage import Store
from .chain import StopRequests, run
from .recipe import DEMO_URLS, Recipe, load_recipe

PICTURE_NAME = "nearest.png"

_CAPTIONS_SHOWN = 8
_IMAGES_SHOWN = 4


class DemoResult(NamedTuple):
    """What the demo did."""

    recipe: Recipe
    results: list[StageResult]
    picture: Path


def run_demo(
    folder: Path, port: int | None, overrides: list[str], progress: ProgressFactory, stop_requests: StopRequests
) -> DemoResult:
    """Run the recipe, its images served on a port of this machine, and draw the picture.

    Raises:
        PriorkitError: the port is taken, or whatever a stage finds wrong.
    """
    recipe = demo_recipe(folder, port, overrides)
    results = run(recipe, progress=progress, stop_requests=stop_requests)
    picture = draw_picture(recipe, folder, stale=any(result.done_now for result in results))
    return DemoResult(recipe, results, picture)


def demo_recipe(folder: Path, port: int | None, overrides: list[str]) -> Recipe:
    """The recipe `demo` with its folders below `folder`, and another port if one is given."""
    folders = {name: folder / name for name in ("images", "embeddings", "prior", "evaluation")}
    placed = [f"folders.{name}={json.dumps(path.as_posix())}" for name, path in folders.items()]
    if port is not None:
        placed.append(f"urls={DEMO_URLS}:{port}")
    return load_recipe("demo", [*placed, *overrides])


def draw_picture(recipe: Recipe, folder: Path, stale: bool) -> Path:
    """Draw the nearest images for a few captions of the test split, unless the picture is there and up to date."""
    path = folder / PICTURE_NAME
    if path.exists() and not stale:
        return path
    from ..pipeline.read.dataset import EmbeddingDataset
    from ..prior.evaluate.rows import EvaluatedRows
    from ..prior.interchange.load import load_prior
    from ..prior.report.gallery import draw_gallery, nearest_images, read_images

    dataset = EmbeddingDataset(recipe.folders.embeddings, recipe.read)
    rows = EvaluatedRows(dataset, recipe.evaluate.splits[0], recipe.evaluate).rows[:_CAPTIONS_SHOWN]
    found = nearest_images(load_prior(recipe.folders.prior), dataset, rows, _IMAGES_SHOWN, recipe.evaluate.seed)
    keys = {key for row in found for key in (*row.nearest_to_text, *row.nearest_to_prior)}
    title = "Captions that the prior was not trained on, and the images nearest to them (green: the true one)"
    picture = draw_gallery(found, read_images(recipe.folders.images, keys), title)
    with Store(str(folder)).create(path.name) as file:
        file.write(picture)
    return path
