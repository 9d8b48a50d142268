"""TorchScript archives: recognised, read without running their code, and what they say about the model."""

from __future__ import annotations

import copy
from pathlib import Path

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

from .conftest import OPENAI_CONFIG, randomise, write_archive


def test_only_archives_of_torchscript_are_recognised(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("text")
    assert [is_torchscript(tmp_path / name) for name in ("archive.pt", "state.pt", "text.pt")] == [True, False, False]


def test_an_archive_holds_the_weights_and_no_other_numbers(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive.pt")
    state = read_torchscript(tmp_path / "archive.pt")
    model = randomise(open_clip.CLIP(**OPENAI_CONFIG))
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_activation_is_read_from_the_code(tmp_path: Path) -> None:
    write_archive(tmp_path / "quick.pt")
    write_archive(tmp_path / "gelu.pt", {**OPENAI_CONFIG, "quick_gelu": False})
    assert stated_activation(tmp_path / "quick.pt") is True
    assert stated_activation(tmp_path / "gelu.pt") is False


def test_only_archives_of_openais_form_state_their_preprocessing(tmp_path: Path) -> None:
    openai = {"mean": [1, 2, 3], "quick_gelu": True}
    write_archive(tmp_path / "openai.pt")
    write_archive(tmp_path / "other.pt", {**OPENAI_CONFIG, "quick_gelu": False}, constants=False)
    assert stated_by_archive(tmp_path / "openai.pt", openai) == openai
    assert stated_by_archive(tmp_path / "other.pt", openai) == {"quick_gelu": False}
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
