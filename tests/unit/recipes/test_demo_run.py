"""The demo's recipe and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.recipes.demo_run import PICTURE_NAME, demo_recipe, draw_picture
from priorkit.recipes.recipe import DEMO_PORT


def test_the_recipe_writes_below_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's a: folder #1"
    recipe = demo_recipe(folder, 4321, ["train.steps=3"])
    assert recipe.demo_port == 4321
    assert demo_recipe(folder, None, []).demo_port == DEMO_PORT
    assert recipe.url_list == (folder / "urls.parquet").as_posix()
    assert recipe.folders.model_dump() == {
        name: (folder / name).as_posix() for name in ("images", "embeddings", "prior", "evaluation")
    }
    assert recipe.train.steps == 3
    assert recipe.read.test_fraction == 0.2, "a fifth of the rows is the test split"
    assert recipe.evaluate.splits == ("test",)
    assert recipe.evaluate.draws >= 8
    with pytest.raises(SettingsError, match="did you mean 'steps'"):
        demo_recipe(folder, None, ["train.step=3"])


def test_overrides_of_the_caller_win(tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path, 4321, ["folders.prior=elsewhere", "urls=mine.csv"])
    assert (recipe.folders.prior, recipe.urls, recipe.demo_port) == ("elsewhere", "mine.csv", None)


def test_a_picture_that_is_up_to_date_is_kept(tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path, None, [])
    (tmp_path / PICTURE_NAME).write_bytes(b"picture")
    assert draw_picture(recipe, tmp_path, stale=False) == tmp_path / PICTURE_NAME
    assert (tmp_path / PICTURE_NAME).read_bytes() == b"picture"
    with pytest.raises(InputError, match="embeddings"):  # a stale picture is drawn again, which needs embeddings
        draw_picture(recipe, tmp_path, stale=True)
