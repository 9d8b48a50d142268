"""The recipes for what people have, each run for real on small data, and the commands that begin later in the chain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from priorkit.prior.interchange.load import load_prior

from .conftest import RECIPE, Finished, Workspace

SMALL = {
    "train.network": "{width: 16, depth: 1, heads: 2}", "train.steps": 12, "train.batch_size": 16,
    "train.validate_every": 4, "train.validate_draws": 0, "train.device": "cpu", "train.threads": 1,
    "train.noise_draws": 1, "evaluate.draws": 2, "evaluate.bootstrap_samples": 100, "evaluate.sample.steps": 4,
    "read.validation_fraction": 0.1, "read.test_fraction": 0.2,
}  # fmt: skip


def sets(*without: str, **more: Any) -> list[str]:
    """`--set` for settings that make a recipe small."""
    values = {name: value for name, value in SMALL.items() if name not in without}
    values |= {name.replace("__", "."): value for name, value in more.items()}
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def clip_of(tiny_clip: Path) -> dict[str, Any]:
    return {"embed__clip": f"{{model: 'local-dir:{tiny_clip}', pretrained: null}}"}


def stages(summary: dict[str, Any]) -> list[str]:
    return [stage["stage"] for stage in summary["stages"]]


def test_cc12m(workspace: Workspace, tiny_clip: Path, small_list: pa.Table) -> None:
    """From a list without a header, as it is published."""
    path = workspace.path / "cc12m.tsv"
    lines = zip(small_list["url"].to_pylist(), small_list["caption"].to_pylist(), strict=True)
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in lines))
    private = {"download__allow_private_addresses": "true", "download__decode_processes": 1}
    small = sets(**private, **clip_of(tiny_clip), embed__batch_size=8, download__image_size=32)
    done = workspace.json("run", "cc12m", *small)
    assert stages(done) == ["download", "embed", "train", "evaluate"]
    assert done["stages"][1]["rows"] == 117
    assert done["metrics"]["splits"]["test"]["rows"] > 2


def test_own_embeddings(workspace: Workspace, finished: Finished, tiny_clip: Path) -> None:
    """A folder without a manifest, as clip-retrieval writes it. The prior records the column that joins rows."""
    for part in ("img_emb", "text_emb", "metadata"):
        shutil.copytree(finished.workspace.folder("embed") / part, workspace.folder("embed") / part)
    small = sets(**clip_of(tiny_clip), read__group_column="caption")
    plans = workspace.json("run", "own-embeddings", *small, "--dry-run")
    assert [(plan["stage"], plan.get("time_basis")) for plan in plans] == [("train", "estimate"), ("evaluate", None)]
    done = workspace.json("run", "own-embeddings", *small)
    assert stages(done) == ["train", "evaluate"]
    assert done["metrics"]["splits"]["test"]["rows"] > 2
    config = json.loads((workspace.folder("train") / "config.json").read_text())
    assert config["clip_settings"]["model"] == f"local-dir:{tiny_clip}"
    assert config["trained_on"]["read"]["group_column"] == ["caption"]
    assert [stage["done_now"] for stage in workspace.json("run", "own-embeddings", *small)["stages"]] == [0, 0]


def test_finetune(holding: Callable[..., Workspace], tiny_clip: Path) -> None:
    """On a prior of one's own, whose settings the recipe does not repeat. At so high a learning rate, it stops."""
    workspace = holding("train")
    private = {"download__allow_private_addresses": "true", "download__decode_processes": 1}
    small = sets(
        "train.network", **private, **clip_of(tiny_clip), download__image_size=32, train__patience=1, train__steps=400,
        train__validate_every=2, train__optimiser__learning_rate=0.5, train__optimiser__warmup_steps=0,
        train__optimiser__ema_decay=0,
    )  # fmt: skip
    done = workspace.json("run", "finetune", *small)
    trained = done["stages"][2]
    assert trained["stage"] == "train"
    assert 0 < trained["done_now"] < 400
    assert any(note.startswith("stopped early after step") for note in trained["notes"])
    assert {"prior", "prior, ema"} & {each["name"] for each in done["metrics"]["splits"]["test"]["predictors"]}
    tuned = load_prior(str(workspace.data / "finetune/prior"))
    assert tuned.config.network == load_prior(str(workspace.folder("train"))).config.network


@pytest.mark.slow
def test_a_run_from_a_later_stage_reads_only_that_folder(holding: Callable[..., Workspace]) -> None:
    workspace = holding()
    (workspace.path / "urls.parquet").unlink()
    shutil.rmtree(workspace.folder("download"))
    assert stages(workspace.json("run", "recipe.yaml", "--from", "train")) == ["train", "evaluate"]
    shutil.rmtree(workspace.folder("evaluate"))
    done = workspace.json("run", "recipe.yaml", "--from", "evaluate")
    assert stages(done) == ["evaluate"]
    assert done["stages"][0]["done_now"] > 0
    assert stages(workspace.json("run", "recipe.yaml", "--from", "train", "--until", "train")) == ["train"]
    plans = workspace.json("run", "recipe.yaml", "--from", "train", "--dry-run", "--overwrite")
    assert [plan["stage"] for plan in plans] == ["train", "evaluate"]
    workspace.refuses_each(
        [
            (("run", "recipe.yaml"), "urls.parquet"),
            (("run", "recipe.yaml", "--from", "embed", "--dry-run"), "data/images"),
            (("run", "recipe.yaml", "--from", "train", "--until", "embed"), "the run begins with train"),
            (("run", "recipe.yaml", "--from", "sample"), "no stage 'sample'"),
            (
                ("run", "recipe.yaml", "--from", "train", "--limit", "3"),
                "--limit 3 limits the rows to download or embed",
            ),
        ]
    )


@pytest.mark.slow
def test_a_recipe_without_urls_begins_with_its_images(holding: Callable[..., Workspace], tiny_clip: Path) -> None:
    workspace = holding("download")
    recipe = "\n".join(RECIPE.format(clip=tiny_clip).splitlines()[7:])  # without `download`
    (workspace.path / "mine.yaml").write_text(f"folders:\n  images: data/images\n{recipe}\n")
    assert stages(workspace.json("run", "mine.yaml", "--until", "train")) == ["embed", "train"]
    states = {row["stage"]: row["state"] for row in workspace.json("status", "mine.yaml")}
    assert states.keys() == {"embed", "train", "evaluate"}
    assert states["embed"] == states["train"] == "up to date"


@pytest.mark.slow
def test_paths_of_options_and_recipes_are_expanded(
    holding: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch, tiny_clip: Path
) -> None:
    """`~` and variables, in options that no shell has expanded, in recipes and in `--set`."""
    workspace = holding("embed", "train")
    monkeypatch.setenv("HOME", str(workspace.path))
    monkeypatch.setenv("CLIPS", str(tiny_clip.parent))
    shutil.copytree(tiny_clip, workspace.path / "clip")
    text = (workspace.path / "recipe.yaml").read_text()
    (workspace.path / "mine.yaml").write_text(text.replace(f"local-dir:{tiny_clip}", "local-dir:~/clip"))
    workspace.run("evaluate", "~/data/prior", "--embeddings=$HOME/data/embeddings", "--recipe=~/mine.yaml",
                  "--evaluation=~/scores")  # fmt: skip
    assert (workspace.path / "scores/metrics.json").exists()
    trained = workspace.json(
        "train", "~/mine.yaml", "--prior=${HOME}/again", "--set", "folders.embeddings=~/data/embeddings"
    )
    assert trained["folder"] == str(workspace.path / "again")
    error = workspace.run("sample", "$NO_SUCH_VARIABLE/prior", "a red square", code=2).stderr
    assert "NO_SUCH_VARIABLE" in error


@pytest.mark.slow
def test_a_checkpoint_to_start_from_takes_its_options(holding: Callable[..., Workspace], tiny_clip: Path) -> None:
    workspace = holding("embed")
    recipe = RECIPE.format(clip=tiny_clip).replace("width: 32", "width: 16")  # as dalle2-pytorch needs it
    (workspace.path / "first.yaml").write_text(recipe.replace("steps: 60", "steps: 2"))
    workspace.run("train", "first.yaml")
    workspace.run("convert", "data/prior", "prior.pth")
    (workspace.path / "tune.yaml").write_text(
        recipe.replace("  network:\n    width: 16\n    depth: 1\n    heads: 2\n", "")
    )
    start = ("train", "tune.yaml", "--prior", "data/tuned", "--init-from", "prior.pth", "--set", "train.steps=3")
    assert workspace.json(*start, "--config", "prior.json", "--function-version", "1.15.6")["done_now"] == 3
    workspace.refuses_each(
        [
            (start, "give config="),
            (("train", "tune.yaml", "--config", "prior.json"), "--config describes the prior to start from"),
            (("train", "tune.yaml", "--function-version", "1.2.3"), "--function-version describes the prior"),
        ]
    )


@pytest.mark.slow
def test_a_recipe_from_dalle2_trains(holding: Callable[..., Workspace], tiny_clip: Path) -> None:
    workspace = holding("embed")
    config = {
        "prior": {"net": {"dim": 16, "depth": 1, "heads": 2}, "image_embed_dim": 16, "image_size": 224, "timesteps": 50,
                  "condition_on_text_encodings": False},
        "data": {"image_url": "data/embeddings/img_emb/", "meta_url": "data/embeddings/metadata/", "batch_size": 16,
                 "num_data_points": 117, "splits": {"train": 0.7, "val": 0.1, "test": 0.2}},
        "train": {"epochs": 2, "eval_timesteps": [4]},
        "tracker": {"log": {"log_type": "console"}, "save": {"save_to": "local"}},
    }  # fmt: skip
    (workspace.path / "train_config.json").write_text(json.dumps(config))
    written = workspace.json("recipes", "from-dalle2", "train_config.json")
    assert written["recipe"] == "train_config.yaml"
    assert set(written["not_applied"]) == {"prior.image_size", "tracker.save.save_to"}
    done = workspace.json("run", "train_config.yaml", "--set", "train.device=cpu")
    assert stages(done) == ["train", "evaluate"]
    assert done["stages"][0]["units"] == 11  # 2 x 117 x 0.7 / 16
    workspace.refuses("recipes", "from-dalle2", "train_config.json", named="train_config.yaml exists already")
