"""Files that are not weights of a CLIP: what they are, and what to do."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from priorkit.pipeline.clip.file_kinds import require_weights
from priorkit.pipeline.errors import InputError

from ....conftest import tar_bytes
from .conftest import WEIGHTS


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("w.pt", b"\x89HDF\r\n\x1a\n", r"weights of TensorFlow.*\nLoad them there"),
        ("w.bin", b"GGUF\3", "a model of llama.cpp"),
        ("w.pt", b"<!doctype html><title>Sign in</title>", r"a web page.*\nDownload the file itself"),
        ("w.pt", b"\x1f\x8b", "compressed with gzip"),
        ("w.pt", tar_bytes([("a", b"b")]), "a tar file"),
        ("w.onnx", b"\x08\x07", "a model of ONNX"),
    ],
)
def test_files_are_recognised_by_their_content(name: str, content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=named) as raised:
        require_weights(tmp_path / name)
    assert str(raised.value).count("\n") == 1


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("text_model.embeddings.token_embedding.weight", r"weights of transformers\.\nPut them .*hf_clip:ORG/NAME"),
        ("vision_model.post_layernorm.bias", "weights of transformers"),
        ("base_model.model.q_proj.lora_A.weight", "a LoRA adapter"),
        ("lora_te_text_model_mlp.alpha", "a LoRA adapter"),
        ("model.diffusion_model.out.2.bias", "Stable Diffusion"),
        ("noise_scheduler.betas", "a diffusion prior"),
    ],
)
def test_weights_of_other_models_are_recognised_by_their_names(tensor: str, named: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({tensor: torch.ones(1)}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{tensor}": torch.ones(1)}}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(InputError, match=named):
            require_weights(tmp_path / name)


def test_a_pickled_model_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"objects other than tensors.*\n.*torch\.save\(model\.state_dict"):
        require_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"damaged", b"no weights", b"\0\0\0\0", b"PK\3\4 cut off", b"\x80\2}q\0(X"])
@pytest.mark.parametrize("name", ["w.pt", "w.ckpt"])
def test_a_file_that_is_no_checkpoint_is_refused_in_two_lines(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is damaged, or no file of weights.*\nCopy the weights") as raised:
        require_weights(tmp_path / name)
    assert str(raised.value).count("\n") == 1
    assert "weights_only" not in str(raised.value)


def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"w\.pt is damaged"):
        require_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [{}, [1], {1: 2}, {"state_dict": None}, OrderedDict(a=torch.ones(1))])
def test_other_files_are_left_to_the_loader(content: Any, tmp_path: Path, tiny_clip: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    require_weights(tmp_path / "w.pt")
    require_weights(tiny_clip / WEIGHTS)
