"""Samples as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.export import embeds_writer

EMBEDS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["a.npy", "new/folder/a.npy", "two words.npy", "größe ☃.npy", ".hidden.npy", "-a.npy"])
def test_npy(tmp_path: Path, name: str) -> None:
    embeds_writer(tmp_path / name)(EMBEDS)
    found = np.load(tmp_path / name, allow_pickle=False)
    assert found.dtype == np.float32
    assert np.array_equal(found, EMBEDS.numpy())
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_safetensors(tmp_path: Path) -> None:
    embeds_writer(tmp_path / "a.safetensors")(EMBEDS)
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert list(found) == ["image_embed"]
    assert torch.equal(found["image_embed"], EMBEDS)


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    view = EMBEDS.T[::2]
    for name in ("a.npy", "a.safetensors"):
        embeds_writer(tmp_path / name)(view)
    assert np.array_equal(np.load(tmp_path / "a.npy"), view.numpy())
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["image_embed"], view)


def test_a_relative_path_is_one_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    embeds_writer(Path("a.npy"))(EMBEDS)
    assert (tmp_path / "a.npy").is_file()


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    for embeds in (EMBEDS, EMBEDS[:1]):
        embeds_writer(tmp_path / "a.npy")(embeds)
    assert np.load(tmp_path / "a.npy").shape == (1, 8)


@pytest.mark.parametrize("name", ["a.pt", "a", "a.npz", "npy", "a.npy.gz"])
def test_another_ending_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"--output .*: end it with \.npy or \.safetensors"):
        embeds_writer(tmp_path / name)
    assert not list(tmp_path.iterdir())
