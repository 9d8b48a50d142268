"""Files of a CLIP's folder: the choice of weights, and configs with wrong values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.clip.files import find_weights, hash_files, read_clip_config
from priorkit.pipeline.errors import InputError

from ....conftest import TINY_CLIP_CONFIG
from .conftest import CONFIG, WEIGHTS, write_folder

FIRST_CHOICE = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")


def weights_of(folder: Path, files: dict[str, Any]) -> str:
    write_folder(folder, files)
    return find_weights(folder).name


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, r"holds no weights \(\*\.safetensors, \*\.bin, \*\.pth, \*\.pt\)"),
        ({"epoch_1.pt": {}, "epoch_2.pt": {}}, r"several files of weights \(epoch_1\.pt, epoch_2\.pt\).*rename"),
        ({"a.pth": {}, "b.pth": {}, "c.bin": {}, "d.pt": {}}, r"\(a\.pth, b\.pth, c\.bin and more\)"),
        ({WEIGHTS: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"}, "a pointer of Git LFS.*git lfs pull"),
        ({WEIGHTS: b""}, "an empty file"),
    ],
)
def test_a_folder_without_clear_weights_is_refused(files: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        weights_of(tmp_path / "clip", files)


@pytest.mark.parametrize("number", range(len(FIRST_CHOICE)))
def test_names_are_preferred_in_open_clips_order(number: int, tmp_path: Path) -> None:
    files = dict.fromkeys(["a.pt", *FIRST_CHOICE[number:]], b"x")
    assert weights_of(tmp_path / "clip", files) == FIRST_CHOICE[number]


def test_hidden_files_are_no_weights(tmp_path: Path) -> None:
    files = {"w.safetensors": b"x", "._w.safetensors": b"x", ".old.bin": b"x", "notes.txt": b"x"}
    assert weights_of(tmp_path / "clip", files) == "w.safetensors"


def config_of(folder: Path, content: str) -> dict[str, Any] | None:
    (folder / CONFIG).write_text(content)
    return read_clip_config(folder / CONFIG)


def test_a_config_is_read_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert read_clip_config(tmp_path / CONFIG) is None
    assert config_of(tmp_path, json.dumps(TINY_CLIP_CONFIG)) == TINY_CLIP_CONFIG
    odd = {**TINY_CLIP_CONFIG, "preprocess_cfg": {"mean": 0.5, "std": None, "interpolation": None, "size": [3]}}
    assert config_of(tmp_path, json.dumps(odd)) == odd


@pytest.mark.parametrize("content", ["", "[1]", '"x"', "{}", '{"model_cfg": 1}', "[" * 100_000])
def test_a_file_that_is_no_config_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not JSON|not a config of open_clip"):
        config_of(tmp_path, content)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_cfg": {**TINY_CLIP_CONFIG["model_cfg"], "vision_cfg": 3}}, r"model_cfg\.vision_cfg must be .*got 3"),
        ({"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}, r"model_cfg\.text_cfg must be an object \(got null"),
        ({"preprocess_cfg": {"mean": "x"}}, r"preprocess_cfg\.mean must be three numbers \(got \"x\"\)"),
        ({"preprocess_cfg": {"std": [0.5]}}, r"preprocess_cfg\.std must be three numbers"),
        ({"preprocess_cfg": {"std": [0.5, 0.5, True]}}, r"preprocess_cfg\.std must be three numbers"),
        ({"preprocess_cfg": {"interpolation": ["x"]}}, r"preprocess_cfg\.interpolation must be bicubic or bilinear"),
        ({"preprocess_cfg": {"resize_mode": "crop"}}, r"resize_mode must be shortest or longest or squash"),
    ],
)
def test_a_config_with_a_wrong_value_is_refused(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        config_of(tmp_path, json.dumps({**TINY_CLIP_CONFIG, **changed}))


def test_files_are_hashed_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(name.encode())
    hashes = hash_files([tmp_path / "b", tmp_path / "a"])
    assert list(hashes.items()) == [(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("a", "b")]
