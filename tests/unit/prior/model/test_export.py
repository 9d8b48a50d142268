"""Samples in `.npy` and `.safetensors` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model.export import check_output, embeds_file

EMBEDS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
NAMES = ["a.npy", "a.safetensors"]


def write(path: Path, *parts: torch.Tensor, rows: int | None = None, embed_dim: int = 8) -> None:
    with embeds_file(path, sum(map(len, parts)) if rows is None else rows, [embed_dim]) as append:
        for part in parts:
            append(part)


def read(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    found = safetensors.numpy.load_file(path)
    assert list(found) == ["image_embed"]
    return found["image_embed"]


@pytest.mark.parametrize("name", ["a.npy", "new/folder/a.npy", "two words.npy", "größe ☃.npy", ".hidden.npy", "-a.npy"])
def test_npy(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, EMBEDS)
    found = np.load(tmp_path / name, allow_pickle=False)
    assert found.dtype == np.float32
    assert np.array_equal(found, EMBEDS.numpy())
    assert np.array_equal(np.load(tmp_path / name, mmap_mode="r"), EMBEDS.numpy())
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_npy_has_the_bytes_of_numpy(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", EMBEDS)
    np.save(tmp_path / "b.npy", EMBEDS.numpy())
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", EMBEDS)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["image_embed"], EMBEDS)
    assert torch.equal(safetensors.torch.load((tmp_path / "a.safetensors").read_bytes())["image_embed"], EMBEDS)
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.get_slice("image_embed").get_shape() == [5, 8]


@pytest.mark.parametrize("rows", [1, 9, 10, 99, 1000])
@pytest.mark.parametrize("embed_dim", [1, 16, 768])
def test_safetensors_of_any_length_of_header(tmp_path: Path, rows: int, embed_dim: int) -> None:
    write(tmp_path / "a.safetensors", torch.ones(rows, embed_dim), embed_dim=embed_dim)
    assert read(tmp_path / "a.safetensors").shape == (rows, embed_dim)
    header = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_one_array(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, EMBEDS[:2], EMBEDS[2:2], EMBEDS[2:3], EMBEDS[3:])
    assert np.array_equal(read(tmp_path / name), EMBEDS.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_no_rows(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, rows=0)
    assert read(tmp_path / name).shape == (0, 8)


@pytest.mark.parametrize("name", NAMES)
def test_views_and_other_precisions_are_written_by_value(tmp_path: Path, name: str) -> None:
    view = torch.randn(8, 10).T[::2]
    write(tmp_path / name, view, view.double(), view.bfloat16(), view.clone().requires_grad_().detach())
    expected = torch.cat([view, view, view.bfloat16().float(), view])
    assert np.array_equal(read(tmp_path / name), expected.numpy())


def test_a_relative_path_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.npy"), EMBEDS)
    assert (tmp_path / "a.npy").is_file()


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    for embeds in (EMBEDS, EMBEDS[:1]):
        write(tmp_path / "a.npy", embeds)
    assert np.load(tmp_path / "a.npy").shape == (1, 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_no_new_file_and_keeps_an_older_one(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    def fail() -> None:
        with embeds_file(tmp_path / name, 5, [8]) as append:
            append(EMBEDS[:2])
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / name, EMBEDS)
    with pytest.raises(error):
        fail()
    assert np.array_equal(read(tmp_path / name), EMBEDS.numpy())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("parts", [[], [EMBEDS[:2]], [EMBEDS, EMBEDS]])
def test_too_few_or_too_many_rows_leave_no_file(tmp_path: Path, parts: list[torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        write(tmp_path / "a.npy", *parts, rows=5)
    with pytest.raises(AssertionError):
        write(tmp_path / "a.npy", EMBEDS[:, :4])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.pt", "a", "a.npz", "npy", "a.npy.gz", "a.NPY"])
def test_another_ending_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"--output .*: end it with \.npy or \.safetensors"):
        check_output(tmp_path / name)
    with pytest.raises(SettingsError), embeds_file(tmp_path / name, 5, [8]):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(SettingsError, match=r"--output .*a\.npy: is a folder"):
        check_output(tmp_path / "a.npy")


@pytest.mark.parametrize("path", ["s3://bucket/a.npy", "memory://a.npy"])
def test_a_remote_file_is_refused(path: str) -> None:
    with pytest.raises(SettingsError, match="give a local file"):
        check_output(Path(path))
