"""TorchScript archives: recognised, read without running their code, and what they say about the model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from priorkit.pipeline.clip.convert.torchscript import (
    is_torchscript,
    openai_config,
    read_torchscript,
    stated_activation,
    stated_by_archive,
)
from priorkit.pipeline.errors import InputError

from .conftest import OPENAI_CONFIG, randomise


def test_only_archives_of_torchscript_are_recognised(archive: tuple[Path, Any], tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("text")
    assert is_torchscript(archive[0])
    assert [is_torchscript(tmp_path / name) for name in ("state.pt", "text.pt")] == [False, False]


def test_an_archive_holds_the_weights_and_no_other_numbers(archive: tuple[Path, Any]) -> None:
    state = read_torchscript(archive[0])
    model = randomise(open_clip.CLIP(**OPENAI_CONFIG))
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_an_archive_whose_code_runs_at_load_is_refused(tmp_path: Path) -> None:
    scripted: Any = torch.jit.ScriptModule()
    scripted.define(
        """
def __getstate__(self) -> bool:
    return self.training

def __setstate__(self, state: bool) -> None:
    assert False, "this code runs"
"""
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted.save(str(tmp_path / "w.pt"))
        with pytest.raises(torch.jit.Error, match="this code runs"):
            torch.jit.load(str(tmp_path / "w.pt"))
    with pytest.raises(InputError, match=r"w\.pt: .* code that torch would run .*\(__setstate__\).*\nIf you trust"):
        read_torchscript(tmp_path / "w.pt")


def test_the_activation_is_read_from_the_code(archive: tuple[Path, Any], other_archive: Path) -> None:
    assert stated_activation(archive[0]) is True
    assert stated_activation(other_archive) is False


def test_only_archives_of_openais_form_state_their_preprocessing(
    archive: tuple[Path, Any], other_archive: Path, tmp_path: Path
) -> None:
    openai = {"mean": [1, 2, 3], "quick_gelu": True}
    assert stated_by_archive(archive[0], openai) == openai
    assert stated_by_archive(other_archive, openai) == {"quick_gelu": False}
    torch.save({}, tmp_path / "state.pt")
    assert stated_by_archive(tmp_path / "state.pt", openai) == {}


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "RN50-quickgelu"])
def test_the_config_is_derived_from_the_shapes(name: str) -> None:
    expected = open_clip.get_model_config(name)
    with torch.device("meta"):
        state = open_clip.CLIP(**copy.deepcopy(expected)).state_dict()
    found = openai_config(state, Path("w.pt"))
    assert found == expected


def test_weights_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.pt: not weights of OpenAI.s CLIP, which have a tensor visual\.attnpool"):
        openai_config({"a": torch.ones(1)}, Path("w.pt"))
    state = open_clip.CLIP(**{**OPENAI_CONFIG, "text_cfg": {**OPENAI_CONFIG["text_cfg"], "width": 16}}).state_dict()
    with pytest.raises(InputError, match="text tower is 16 wide, but OpenAI's have heads of 64"):
        openai_config(state, Path("w.pt"))
