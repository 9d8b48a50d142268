"""Positional embeddings of another length, which open_clip would interpolate."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from priorkit.pipeline.clip.plan import ClipPlan
from priorkit.pipeline.clip.positions import require_positions
from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings
from priorkit.pipeline.errors import InputError

IMAGE, TEXT = "visual.positional_embedding", "positional_embedding"
MODEL = {IMAGE: 5, TEXT: 24}


class Towers(torch.nn.Module):
    """A model with positions only."""

    def __init__(self, lengths: dict[str, int]) -> None:
        super().__init__()
        self.visual, self.text = torch.nn.Module(), torch.nn.Module()
        for name, length in lengths.items():
            owner, _, leaf = name.rpartition(".")
            self.get_submodule(owner).register_parameter(leaf, torch.nn.Parameter(torch.zeros(length, 2)))


def check(
    folder: Path, lengths: dict[str, int], ending: str, size: int | None = None, model: dict[str, int] = MODEL
) -> None:
    values = {name: torch.ones(length, 2) for name, length in lengths.items()}
    path = folder / f"w.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(values, path)
    else:
        torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in values.items()}}, path)
    preprocess = None if size is None else PreprocessSettings(size=size)
    settings = ClipSettings(preprocess=preprocess)
    plan = ClipPlan("ViT-B-32", None, path, {})
    require_positions(Towers(model), plan, settings)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_of_other_lengths_are_refused(ending: str, tmp_path: Path) -> None:
    check(tmp_path, MODEL, ending)
    with pytest.raises(InputError, match=r"texts of 9 tokens, the model's are of 24; .*context_length"):
        check(tmp_path, {**MODEL, TEXT: 9}, ending)
    with pytest.raises(InputError, match=r"images of another size \(26 positions\) than the model's \(5\); .*size"):
        check(tmp_path, {**MODEL, IMAGE: 26}, ending)


def test_a_size_that_is_set_allows_interpolated_images_but_not_texts(tmp_path: Path) -> None:
    check(tmp_path, {**MODEL, IMAGE: 26}, "pt", size=64)
    with pytest.raises(InputError, match="texts of 9 tokens"):
        check(tmp_path, {**MODEL, TEXT: 9}, "pt", size=64)


def test_a_separate_text_tower_may_have_either_name(tmp_path: Path) -> None:
    model = {IMAGE: 5, f"text.{TEXT}": 24}
    check(tmp_path, MODEL, "pt", model=model)
    with pytest.raises(InputError, match="texts of 9 tokens"):
        check(tmp_path, {IMAGE: 5, TEXT: 9}, "pt", model=model)


def test_towers_without_positions_and_weights_of_a_tag_are_not_checked(tmp_path: Path) -> None:
    check(tmp_path, {}, "pt")
    check(tmp_path, {TEXT: 9}, "pt", model={IMAGE: 5})
    require_positions(Towers(MODEL), ClipPlan("ViT-B-32", "openai", None, {}), ClipSettings())


def test_a_path_given_as_pretrained_is_checked_too(tmp_path: Path) -> None:
    torch.save({TEXT: torch.ones(9, 2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="texts of 9 tokens"):
        require_positions(Towers(MODEL), ClipPlan("ViT-B-32", str(tmp_path / "w.pt"), None, {}), ClipSettings())


def test_a_file_that_torch_cannot_read_is_not_checked(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"TorchScript")
    require_positions(Towers(MODEL), ClipPlan("ViT-B-32", None, tmp_path / "w.pt", {}), ClipSettings())
