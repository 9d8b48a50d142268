"""Folders that are written for diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch

from priorkit import convert, export, load_prior
from priorkit.pipeline.contract.hashing import HashingFile
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError, InputError, SettingsError
from priorkit.prior.interchange.diffusers import write
from priorkit.prior.interchange.diffusers.readme import readme
from priorkit.prior.interchange.diffusers.write import write_transformer
from priorkit.prior.model.folder import save_prior

from .folders import ECLIPSE, SCHEDULER, make_weights, write_model, write_pipeline
from .test_load import require_equal, sample

FILES = [
    "README.md", "model_index.json", "prior/config.json", "prior/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_pipeline_there_and_back_is_the_same(tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path / "theirs")
    assert export(tmp_path / "theirs", tmp_path / "ours") == FILES
    assert sorted(contents(tmp_path / "ours")) == FILES
    ours = load_prior(tmp_path / "ours")
    require_equal(ours, weights)
    assert ours.config == load_prior(tmp_path / "theirs").config
    index = json.loads((tmp_path / "ours/model_index.json").read_text())
    assert {name for name in index if not name.startswith("_")} == {"prior", "scheduler"}
    scheduler = json.loads((tmp_path / "ours/scheduler/scheduler_config.json").read_text())
    assert scheduler == {**SCHEDULER, "beta_schedule": "squaredcos_cap_v2"}
    path = "prior/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "ours" / path).read_bytes() == (tmp_path / "theirs" / path).read_bytes()


def test_half_precision(tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path / "theirs")
    export(tmp_path / "theirs", tmp_path / "ours", dtype="float16")
    stored = safetensors.torch.load_file(tmp_path / "ours/prior/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, weights[name].half()) for name, value in stored.items())
    assert "torch.float16" in (tmp_path / "ours/README.md").read_text()


def test_a_weight_beyond_half_precision_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    weights = {**make_weights(), "prd_embedding": torch.full((1, 1, 16), -70_000.0)}
    write_model(tmp_path / "theirs", weights=weights)
    with pytest.raises(InputError, match=r"prd_embedding holds 7e\+04, which float16 cannot hold; use --dtype float32"):
        export(tmp_path / "theirs", tmp_path / "ours", dtype="float16")
    assert not (tmp_path / "ours").exists()
    export(tmp_path / "theirs", tmp_path / "ours")


def test_eclipse_is_written_in_its_own_layout(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "theirs", ECLIPSE)
    files = export(tmp_path / "theirs", tmp_path / "ours")
    assert files == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    stored = safetensors.torch.load_file(tmp_path / "ours/diffusion_pytorch_model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in stored.items() if not name.startswith("clip_"))
    assert "src.priors.prior_transformer" in (tmp_path / "ours/README.md").read_text()
    require_equal(load_prior(tmp_path / "ours"), {
        **stored, "clip_mean": torch.zeros(1, 12), "clip_std": torch.ones(1, 12)
    })  # fmt: skip


def test_statistics_become_part_of_the_last_layer_of_eclipse(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs", ECLIPSE)
    prior = load_prior(tmp_path / "theirs")
    prior.normaliser.mean.copy_(torch.linspace(-1, 1, 12))
    prior.normaliser.to_embed.copy_(torch.linspace(0.5, 2, 12))
    write_transformer(prior, Store(str(tmp_path / "ours")), "float32", {}, overwrite=False)
    expected = sample(prior, steps=1, sampler="one-step")
    torch.testing.assert_close(sample(load_prior(tmp_path / "ours"), steps=1, sampler="one-step"), expected)


def test_a_remote_folder(tmp_path: Path) -> None:
    weights = write_pipeline(tmp_path / "theirs")
    export(tmp_path / "theirs", "memory://diffusers_export/ours")
    require_equal(load_prior("memory://diffusers_export/ours"), weights)
    assert len(fsspec.filesystem("memory").find("/diffusers_export/ours")) == len(FILES)


def test_existing_files_are_kept_without_overwrite(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/README.md").write_text("mine")
    with pytest.raises(FolderError, match=r"ours/README\.md exists; choose another folder, or --overwrite"):
        export(tmp_path / "theirs", tmp_path / "ours")
    assert contents(tmp_path / "ours") == {"README.md": b"mine"}
    (tmp_path / "ours/image_encoder").mkdir()
    (tmp_path / "ours/image_encoder/config.json").write_text("{}")
    export(tmp_path / "theirs", tmp_path / "ours", overwrite=True)
    assert sorted(contents(tmp_path / "ours")) == sorted([*FILES, "image_encoder/config.json"])


def test_folders_of_priorkit_are_never_written_to(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs", ECLIPSE)
    prior = load_prior(tmp_path / "theirs")
    save_prior(Store(str(tmp_path / "prior")).create, prior.config, prior.network, prior.normaliser)
    (tmp_path / "training").mkdir()
    (tmp_path / "training/manifest.json").write_text("{}")
    before = contents(tmp_path)
    for folder in ("prior", "training"):
        with pytest.raises(FolderError):
            export(tmp_path / "theirs", tmp_path / folder, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", FILES)
def test_a_failed_write_leaves_no_file(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(tmp_path / "theirs")
    create = Store.create

    def fail(self: Store, name: str) -> Any:
        if name == failing:
            raise OSError("no space left")
        return create(self, name)

    monkeypatch.setattr(Store, "create", fail)
    with pytest.raises(OSError, match="no space left"):
        export(tmp_path / "theirs", tmp_path / "ours")
    assert contents(tmp_path / "ours") == {} if (tmp_path / "ours").exists() else True


def test_the_index_is_written_last_and_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process therefore leaves no pipeline of parts that do not belong together."""
    write_pipeline(tmp_path / "theirs")
    export(tmp_path / "theirs", tmp_path / "ours")
    seen = []

    def watched(file: HashingFile, *arguments: Any) -> None:
        seen.append((tmp_path / "ours/model_index.json").exists())
        file.write(b"")

    monkeypatch.setattr(write, "write_tensors", watched)
    export(tmp_path / "theirs", tmp_path / "ours", overwrite=True)
    assert seen == [False]
    assert (tmp_path / "ours/model_index.json").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "theirs")
    with pytest.raises(SettingsError, match="format='onnx': known is diffusers"):
        export(tmp_path / "theirs", tmp_path / "ours", format="onnx")
    with pytest.raises(SettingsError, match="dtype='bfloat16': known are float32 and float16"):
        export(tmp_path / "theirs", tmp_path / "ours", dtype="bfloat16")
    with pytest.raises(SettingsError, match=r"a\.pth: diffusers has no network of dalle2-pytorch"):
        export("a.pth", tmp_path / "ours")
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"file.* is in the way"):
        export(tmp_path / "theirs", tmp_path / "file")
    assert not (tmp_path / "ours").exists()


def test_adapters_of_an_earlier_export_do_not_remain_beside_merged_weights(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "theirs")
    (tmp_path / "ours/prior").mkdir(parents=True)
    (tmp_path / "ours/prior/pytorch_lora_weights.safetensors").write_bytes(b"old")
    export(tmp_path / "theirs", tmp_path / "ours", overwrite=True)
    assert sorted(contents(tmp_path / "ours")) == FILES


def test_a_pipeline_is_not_turned_into_a_folder_of_priorkit(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "theirs")
    before = contents(tmp_path)
    with pytest.raises(FolderError, match="theirs is a folder of diffusers; choose another"):
        convert(tmp_path / "theirs", tmp_path / "theirs", overwrite=True)
    assert contents(tmp_path) == before


def test_the_readme_names_a_length_of_captions_that_is_not_that_of_clip(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "theirs")
    prior = load_prior(tmp_path / "theirs")
    for states, named in ((77, "from_pretrained(clip),\n    image_proc"), (20, "(clip, model_max_length=20)")):
        network = prior.config.network.model_copy(update={"num_embeddings": states})
        assert named in readme(prior.config.model_copy(update={"network": network}), "float32")
