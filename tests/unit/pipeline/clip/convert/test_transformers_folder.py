"""Plans for loading a folder or a hub repository of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest

from priorkit.pipeline.clip.convert.transformers_folder import plan_transformers
from priorkit.pipeline.clip.encoder import check_clip, clip_location, clip_source, embedding_size, identify_clip
from priorkit.pipeline.clip.identity import clip_difference
from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings
from priorkit.pipeline.errors import InputError

from ..conftest import CONFIG
from .conftest import write_siglip

OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]


def without_processor(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*processor_config.json"))
    return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub: Path, repository: str) -> Path:
    """Return the folder of a repository in the hub's cache, after making the files beside it."""
    base = hub / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs/main").write_text("1" * 40)
    return base / "snapshots" / ("1" * 40)


def test_a_folder_is_described_by_the_hashes_of_its_files(
    clip: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ClipSettings(model=f"local-dir:{clip[0]}")
    described = clip_source(settings)
    assert described["model"] == "local-dir"
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(described["files"])
    assert any(name.endswith("processor_config.json") for name in described["files"])
    assert clip_source(ClipSettings(model=f"hf_clip:{clip[0]}")) == described
    check_clip(settings)
    assert embedding_size(settings) == 20
    monkeypatch.chdir(clip[0].parent)
    relative = clip_location(ClipSettings(model=f"local-dir:{clip[0].name}"))
    assert relative == {"model": f"local-dir:{clip[0].resolve()}", "pretrained": None}
    assert clip_location(ClipSettings(model=f"hf_clip:{clip[0].name}"))["model"] == f"hf_clip:{clip[0].resolve()}"


def test_a_config_of_open_clip_takes_precedence_for_a_local_folder(clip: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(clip[0], tmp_path / "both")
    (tmp_path / "both" / CONFIG).write_text("{}")
    with pytest.raises(InputError, match="not a config of open_clip"):
        check_clip(ClipSettings(model=f"local-dir:{tmp_path / 'both'}"))
    check_clip(ClipSettings(model=f"hf_clip:{tmp_path / 'both'}"))


def test_a_changed_tokenizer_or_preprocessing_is_another_processor(clip: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(clip[0], tmp_path / "other")
    text = (tmp_path / "other/tokenizer.json").read_text()
    (tmp_path / "other/tokenizer.json").write_text(text.replace('"red"', '"tan"'))
    sources = [clip[0], tmp_path / "other"]
    plans = [plan_transformers(ClipSettings(model=f"local-dir:{path}"), path, open_clip) for path in sources]
    assert plans[0].processor_hash() != plans[1].processor_hash()
    changed = ClipSettings(model="local-dir:x", preprocess=PreprocessSettings(mean=(0, 0, 0)))
    assert plan_transformers(changed, clip[0], open_clip).processor_hash() != plans[0].processor_hash()


def test_a_folder_without_preprocessing_takes_what_is_known_of_its_kind(
    clip: tuple[Path, Any], siglip: tuple[Path, Any], tmp_path: Path
) -> None:
    plain = without_processor(clip[0], tmp_path / "clip")
    found = identify_clip(ClipSettings(model=f"local-dir:{plain}"))["preprocess"]
    assert (found["mean"], found["resize_mode"]) == (OPENAI_MEAN, "shortest")
    square = without_processor(siglip[0], tmp_path / "siglip")
    found = identify_clip(ClipSettings(model=f"local-dir:{square}"))["preprocess"]
    assert (found["mean"], found["interpolation"], found["resize_mode"]) == ([0.5] * 3, "bicubic", "squash")


def test_an_architecture_whose_preprocessing_differs_must_state_it(
    clip: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = without_processor(clip[0], tmp_path / "clip")
    plan = plan_transformers(ClipSettings(model="local-dir:x"), folder, open_clip)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", plan.config)
    tags = {"a": {"mean": (0.1, 0.1, 0.1)}, "b": {}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    with pytest.raises(
        InputError, match=r"holds no preprocessor_config\.json.*\nCopy that file .*, or set embed\.clip to"
    ):
        check_clip(ClipSettings(model=f"local-dir:{folder}"))
    stated = PreprocessSettings(mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", resize_mode="squash")
    check_clip(ClipSettings(model=f"local-dir:{folder}", preprocess=stated))


def test_a_repository_is_loaded_from_the_hubs_cache(hub: Path) -> None:
    folder = cached(hub, "org/tiny")
    write_siglip(folder)
    settings = ClipSettings(model="hf_clip:org/tiny")
    check_clip(settings)
    local = identify_clip(ClipSettings(model=f"local-dir:{folder}"))
    assert clip_difference(identify_clip(settings), local, strict=True) == ""
    assert clip_source(settings) == {"model": "hf_clip:org/tiny", "pretrained": None}
    assert clip_location(settings) == {"model": "hf_clip:org/tiny", "pretrained": None}
    assert embedding_size(settings) is None


def test_an_unreachable_repository_is_refused_with_the_way_without_a_hub(hub: Path) -> None:
    with pytest.raises(
        InputError, match=r"the hub that has them cannot be reached.*\n.*tokenizer\) here and give --model"
    ):
        identify_clip(ClipSettings(model="hf_clip:org/none"))
    folder = cached(hub, "org/other")
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("{}")
    with pytest.raises(InputError, match=r"holds no config\.json.*write hf-hub:org/other"):
        identify_clip(ClipSettings(model="hf_clip:org/other"))
