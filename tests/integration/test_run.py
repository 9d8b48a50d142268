"""The stages of a recipe in one call: what is not up to date and only that, and nothing at all if anything is wrong."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from priorkit.pipeline.compute.stage import ProgressCallback
from priorkit.pipeline.errors import FolderError, InputError, Interrupted, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.settings import parse_settings
from priorkit.prior.evaluate.folder import read_metrics
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.report.gallery import draw_gallery, nearest_images, read_images
from priorkit.recipes.chain import STAGES, check, plan, run
from priorkit.recipes.recipe import Recipe
from priorkit.recipes.status import stage_states

from .conftest import Served

FolderBytes = Callable[[Path], dict[str, bytes]]
MakeRecipe = Callable[..., Recipe]


def build_recipe(served: Served, clip: Path, data: Path, **changes: Any) -> Recipe:
    """Build a recipe of the small list and a CLIP; names such as `train__steps` are changes."""
    values: dict[str, Any] = {
        "urls": str(served.list.path),
        "folders": {name: str(data / name) for name in ("images", "embeddings", "prior", "evaluation")},
        "download": {
            "rows_per_shard": 20,
            "image_size": 32,
            "allow_private_addresses": True,
            "decode_processes": 1,
            "timeout_seconds": 600,
            "decode_timeout_seconds": 600,
        },
        "embed": {
            "clip": {"model": f"local-dir:{clip}"},
            "token_states": True,
            "batch_size": 8,
            "threads": 1,
            "device": "cpu",
        },
        "read": {"validation_fraction": 0.1, "test_fraction": 0.3},
        "train": {
            "network": {"width": 32, "depth": 1, "heads": 2, "max_text_len": 4},
            "diffusion": {"timesteps": 50},
            "steps": 6,
            "batch_size": 16,
            "device": "cpu",
            "threads": 1,
        },
        "evaluate": {"draws": 2, "sample": {"steps": 2}, "bootstrap_samples": 100},
    }
    for name, value in changes.items():
        *outer, last = name.split("__")
        section = values
        for part in outer:
            section = section.setdefault(part, {})
        section[last] = value
    return parse_settings(Recipe, values, "test")


@pytest.fixture
def make_recipe(served: Served, tiny_clip: Path, tmp_path: Path) -> MakeRecipe:
    """`build_recipe` with folders of the test's own."""
    return partial(build_recipe, served, tiny_clip, tmp_path / "data")


@pytest.fixture(scope="module")
def shared_data(served: Served, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the first two stages of the recipe. Tests must not change them."""
    data = tmp_path_factory.mktemp("shared") / "data"
    shutil.copytree(served.images, data / "images")
    assert done_now(build_recipe(served, tiny_clip, data), until="embed") == [0, 4]
    return data


@pytest.fixture
def embedded(shared_data: Path, tmp_path: Path) -> None:
    """Put the results of the first two stages into the test's folders."""
    shutil.copytree(shared_data, tmp_path / "data")


def done_now(recipe: Recipe, **options: Any) -> list[int]:
    return [result.done_now for result in run(recipe, **options)]


def states(recipe: Recipe, plan_too: bool = True) -> list[str]:
    return [state.state for state in stage_states(recipe, plan_too=plan_too)]


def test_everything_then_nothing_then_what_changed(
    make_recipe: MakeRecipe, served: Served, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    """The story of a recipe, told once, since each run of the chain costs seconds."""
    recipe = make_recipe()
    data = tmp_path / "data"
    assert states(recipe)[1:] == ["not started"] * 3
    assert states(recipe)[0] == "4 of 4 shards to do"
    assert states(recipe, plan_too=False) == ["not started"] * 4
    assert not data.exists()

    # everything
    shown: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def progress(stage: str, unit: str) -> Iterator[ProgressCallback]:
        shown.append((stage, unit))
        yield lambda done, total, note: None

    results = run(recipe, progress=progress)
    assert [result.stage for result in results] == list(STAGES)
    rows = len(EmbeddingDataset(str(data / "embeddings"), recipe.read).rows("test"))
    assert [result.done_now for result in results] == [4, 4, 6, rows]
    assert shown == [("download", "rows"), ("embed", "shards"), ("train", "steps"), ("evaluate", "rows")]
    assert read_metrics(str(data / "evaluation"))["splits"]["test"]["rows"] == rows
    assert states(recipe) == ["up to date"] * 4
    assert states(recipe, plan_too=False) == ["there"] * 4
    assert [(state.shards, state.rows) for state in stage_states(recipe, plan_too=False)][:2] == [(4, 63), (4, 60)]
    before = folder_bytes(data)

    # nothing
    asked = len(served.server.requests)
    assert done_now(recipe) == [0, 0, 0, 0]
    assert folder_bytes(data) == before
    assert len(served.server.requests) == asked
    assert [stage.plan.pending_units for stage in plan(recipe) if stage.plan is not None] == [0, 0, 0, 0]

    # only the shard that was lost, and nothing after it, since the bytes are the same
    (data / "embeddings/img_emb/img_emb_0001.npy").unlink()
    assert "1 shards lack files and will be done again" in states(recipe)[1]
    assert done_now(recipe) == [0, 1, 0, 0]
    assert folder_bytes(data) == before

    # only the metrics
    (data / "evaluation/metrics.json").unlink()
    assert "lack files" in states(recipe)[3]
    assert done_now(recipe) == [0, 0, 0, rows]
    assert folder_bytes(data) == before
    assert done_now(make_recipe(evaluate__draws=3)) == [0, 0, 0, rows]
    assert done_now(recipe) == [0, 0, 0, rows]
    assert folder_bytes(data) == before
    assert done_now(recipe, until="train") == [0, 0, 0]

    # settings of any stage that changed are refused before anything starts, and shown
    changes = (
        ({"download__image_size": 33}, 0, r"image_size: 32 -> 33"),
        ({"embed__batch_size": 9}, 1, r"batch_size: 8 -> 9"),
        ({"train__steps": 7}, 2, r"train\.steps: 6 -> 7"),
        ({"read__test_fraction": 0.2}, 2, r"read\.test_fraction: 0\.3 -> 0\.2"),
    )
    (data / "images/00000.tar").unlink()  # there would be work for the first stage
    lacking = folder_bytes(data)
    for change, position, message in changes:
        with pytest.raises(FolderError, match=message):
            run(make_recipe(**change))
        assert "other settings" in states(make_recipe(**change))[position]
        assert folder_bytes(data) == lacking
    assert done_now(recipe) == [1, 0, 0, 0]
    assert folder_bytes(data) == before

    # a folder that holds another stage's work
    with pytest.raises(FolderError, match="holds the result of `priorkit train`; name another folder for embed"):
        run(make_recipe(folders__embeddings=str(data / "prior"), folders__prior=str(data / "new")))
    assert folder_bytes(data) == before

    # anew
    assert done_now(make_recipe(train__steps=5, train__seed=1), overwrite=True) == [4, 4, 5, rows]
    assert states(make_recipe(train__steps=5, train__seed=1)) == ["up to date"] * 4


@pytest.mark.usefixtures("embedded")
def test_a_stop_request_reaches_the_training_and_the_next_run_goes_on(
    make_recipe: MakeRecipe, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    recipe = make_recipe()
    calls = 0

    @contextlib.contextmanager
    def stop_after_three() -> Iterator[Callable[[], bool]]:
        def should_stop() -> bool:
            nonlocal calls
            calls += 1
            return calls > 3

        yield should_stop

    with pytest.raises(Interrupted, match="after step 3 of 6"):
        run(recipe, stop_requests=stop_after_three)
    assert states(recipe)[2:] == ["3 of 6 steps to do", "16 of 16 rows to do"]
    assert states(recipe, plan_too=False)[2] == "unfinished"
    assert done_now(recipe)[:3] == [0, 0, 3]
    shutil.move(tmp_path / "data/prior", tmp_path / "stopped")
    run(recipe)
    assert folder_bytes(tmp_path / "data/prior") == folder_bytes(tmp_path / "stopped")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embed__token_states": False}, SettingsError, r"up to 4 token states: set embed\.token_states"),
        ({"urls": "/nowhere/urls.parquet"}, InputError, r"/nowhere/urls\.parquet"),
        ({"download__url_column": "link"}, InputError, "link"),
        ({"embed__clip__model": "local-dir:/nowhere"}, InputError, "/nowhere holds no open_clip_config"),
        (
            {"evaluate__sample__steps": 51},
            SettingsError,
            r"evaluate\.sample\.steps=51 .*train\.diffusion\.timesteps=50",
        ),
        ({"read__test_fraction": 0}, SettingsError, r"evaluate\.splits: test .*read\.test_fraction=0"),
        (
            {"evaluate__splits": ["validation"], "read__validation_fraction": 0},
            SettingsError,
            r"read\.validation_fraction",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    make_recipe: MakeRecipe,
    served: Served,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    recipe = make_recipe(**changes)
    asked = len(served.server.requests)
    for start in (check, run):
        with pytest.raises(error, match=message):
            start(recipe)  # type: ignore[operator]
    assert not (tmp_path / "data").exists()
    assert len(served.server.requests) == asked


@pytest.mark.usefixtures("embedded")
def test_a_run_that_does_not_evaluate_needs_no_test_split(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(read__test_fraction=0, train__steps=2)
    assert done_now(recipe, until="train") == [0, 0, 2]
    assert not (tmp_path / "data/evaluation").exists()


def test_a_plan_says_what_cannot_be_known_yet(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    planned = plan(make_recipe())
    download = planned[0].plan
    assert download is not None
    assert (download.pending_units, download.pending_rows) == (4, 63)
    assert [stage.name for stage in planned[1:] if stage.plan is None] == ["embed", "train", "evaluate"]
    assert all(stage.problem for stage in planned[1:])
    assert len(plan(make_recipe(), until="embed")) == 2
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("embedded")
def test_after_overwrite_every_stage_is_planned_anew(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(train__steps=2)
    run(recipe)
    planned = [stage.plan for stage in plan(recipe, overwrite=True) if stage.plan is not None]
    assert [item.pending_units == item.units > 0 for item in planned] == [True] * 4


@pytest.mark.usefixtures("embedded")
def test_sampling_and_the_picture_on_what_a_run_made(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Text goes through the CLIP that the prior's config names; the picture shows the images of the folder."""
    recipe = make_recipe(train__steps=2)
    run(recipe, until="train")
    prior = load_prior(recipe.folders.prior)
    dataset = EmbeddingDataset(recipe.folders.embeddings, recipe.read)
    rows = dataset.rows("test")[:3]
    captions = dataset.metadata(rows, ["caption"]).column("caption").to_pylist()
    by_text = prior.sample(captions, steps=3, seed=1)
    batch = dataset.take(rows, 4)
    assert batch.token_states is not None
    stored = prior.sample(
        text_embed=torch.from_numpy(batch.text_embed),
        token_states=torch.from_numpy(batch.token_states),
        steps=3,
        seed=1,
    )
    torch.testing.assert_close(by_text, stored, rtol=0, atol=5e-3)  # stored in half precision

    found = nearest_images(prior, dataset, rows, 4, seed=0)
    assert [row.caption for row in found] == captions
    keys = dataset.metadata(rows, ["key"]).column("key").to_pylist()
    assert [row.true_key for row in found] == keys
    everything = dataset.take(np.arange(dataset.count))
    every_key = dataset.metadata(everything.rows, ["key"]).column("key").to_pylist()
    for i, row in enumerate(found):
        order = np.argsort(-(everything.image_embed @ batch.text_embed[i]), kind="stable")[:4]
        assert list(row.nearest_to_text) == [every_key[j] for j in order]
        assert len(set(row.nearest_to_prior)) == 4
    needed = {key for row in found for key in (*row.nearest_to_text, *row.nearest_to_prior)}
    images = read_images(recipe.folders.images, needed)
    assert set(images) == needed
    picture = Image.open(io.BytesIO(draw_gallery(found, images, "nearest images")))
    assert picture.format == "PNG"


def test_a_prior_whose_clip_has_changed_is_not_sampled(
    make_recipe: MakeRecipe, served: Served, tiny_clip: Path, tmp_path: Path
) -> None:
    import safetensors.torch

    own = tmp_path / "clip"
    shutil.copytree(tiny_clip, own)
    shutil.copytree(served.images, tmp_path / "data/images")
    recipe = make_recipe(train__steps=1, embed__clip={"model": f"local-dir:{own}"})
    run(recipe, until="train")
    weights = safetensors.torch.load_file(own / "open_clip_model.safetensors")
    weights["text_projection"] += 1
    safetensors.torch.save_file(weights, own / "open_clip_model.safetensors")
    with pytest.raises(InputError, match="other weights than the one this prior was trained with"):
        load_prior(recipe.folders.prior).sample(["a red square"], steps=1)
