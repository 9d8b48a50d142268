"""Files of a folder of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from priorkit.pipeline.clip.convert.transformers_files import tokenizer_files, transformers_files, weight_files
from priorkit.pipeline.errors import InputError


def write(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).write_bytes(content)


def names(files: list[Path]) -> list[str]:
    return [path.name for path in files]


def test_all_files_that_determine_the_embeddings_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json", "README.md")
    write(tmp_path, "tokenizer_config.json")
    assert names(transformers_files(tmp_path)) == ["model.safetensors", "config.json", "preprocessor_config.json"]
    write(tmp_path, "vocab.json", "merges.txt")
    assert names(tokenizer_files(tmp_path)) == ["vocab.json", "merges.txt", "tokenizer_config.json"]
    assert len(transformers_files(tmp_path)) == 6


def test_weights_in_parts_are_listed_by_their_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}))
    with pytest.raises(InputError, match=r"names model-1\.safetensors, which is not there"):
        weight_files(tmp_path)
    write(tmp_path, "model-1.safetensors", "model-2.safetensors")
    assert names(weight_files(tmp_path)) == ["model-1.safetensors", "model-2.safetensors"]
    write(tmp_path, "model.safetensors")
    assert names(weight_files(tmp_path)) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"weight_map": {"a": "../b.bin"}}', "not a plain name"),
        ('{"weight_map": [1]}', "not a list of weight files"),
        ("{}", "not a list of weight files"),
        ("x", "not a list of weight files"),
    ],
)
def test_a_damaged_index_is_refused(content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(InputError, match=named):
        weight_files(tmp_path)


def test_weights_of_another_framework_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no weights .* beside config\.json; put the model's weights there"):
        weight_files(tmp_path)
    write(tmp_path, "tf_model.h5")
    with pytest.raises(InputError, match=r"tf_model\.h5 is of TensorFlow: load it there"):
        weight_files(tmp_path)
