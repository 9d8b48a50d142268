"""Adoption in place: a manifest beside files that nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.adopt.stage import adopt
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

from .conftest import IMAGE, ROWS, TEXT, hugging_face, save, save_table, units


def settings(**values: object) -> AdoptSettings:
    return AdoptSettings(**({"not_clip": "clap", "in_place": True} | values))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Arrays of two spaces and two dtypes, under names of their own, in folders in parts."""
    for part, dtype in enumerate((np.float32, np.float16)):
        save(tmp_path / f"in/part-{part}/image.npy", units(ROWS, IMAGE, part).astype(dtype))
        save(tmp_path / f"in/part-{part}/text.npy", units(ROWS, TEXT, 10 + part).astype(dtype))
        keys = [f"{part}-{row}" for row in range(ROWS)]
        save_table(tmp_path / f"in/part-{part}/about.parquet", key=keys, caption=[f"of {key}" for key in keys])
    return tmp_path / "in"


def test_files_stay_as_they_are_and_are_read(folder: Path) -> None:
    def files() -> dict[Path, tuple[bytes, float]]:
        found = [path for kind in ("*.npy", "about.parquet") for path in folder.rglob(kind)]
        return {path: (path.read_bytes(), path.stat().st_mtime) for path in found}

    before = files()
    assert adopt(str(folder), None, settings()).rows == 2 * ROWS
    assert files() == before
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["about"]["files"]["0001"] == {
        "img_emb": "part-1/image.npy", "text_emb": "part-1/text.npy", "metadata": "part-1/about.parquet"
    }  # fmt: skip
    dataset = read_embeddings(str(folder))
    assert (dataset.count, dataset.embed_dim, dataset.text_dim) == (2 * ROWS, IMAGE, TEXT)
    rows = np.array([ROWS + 4, 7])
    batch = dataset.take(rows)
    np.testing.assert_allclose(batch.image_embed, [units(ROWS, IMAGE, 1)[4], units(ROWS, IMAGE, 0)[7]], atol=1e-3)
    assert dataset.metadata(rows, ["key", "caption"]).to_pylist() == [
        {"key": "1-4", "caption": "of 1-4"}, {"key": "0-7", "caption": "of 0-7"}
    ]  # fmt: skip
    assert inspect_folder(str(folder)).problems == []
    assert adopt(str(folder), None, settings()).done_now == 0


def test_a_changed_file_is_noticed_by_readers_and_hashed_again(folder: Path) -> None:
    adopt(str(folder), None, settings())
    save(folder / "part-0/image.npy", units(ROWS + 1, IMAGE))
    with pytest.raises(InputError, match=r"part-0/image\.npy has \d+ bytes .*; run `priorkit adopt` again"):
        read_embeddings(str(folder))
    save(folder / "part-0/image.npy", units(ROWS, IMAGE, 5))
    assert adopt(str(folder), None, settings()).done_now == 1
    assert inspect_folder(str(folder)).problems == []


def test_overwrite_never_removes_a_file(folder: Path) -> None:
    adopt(str(folder), None, settings())
    adopt(str(folder), None, settings(not_clip="other"), overwrite=True)
    assert len(list(folder.rglob("*.npy"))) == 4
    save(folder.parent / "more/image.npy", units())
    with pytest.raises(FolderError, match="holds embeddings that were adopted in place; name another folder"):
        adopt(str(folder.parent / "more"), str(folder), AdoptSettings(not_clip="clap"), overwrite=True)
    assert len(list(folder.rglob("*.npy"))) == 4


def test_what_cannot_be_read_where_it_is_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--in-place: .*\.parquet, image_embedding is not a \.npy file"):
        adopt(str(hugging_face(tmp_path / "hf")), None, settings())
    save(tmp_path / "named/a b/image.npy", units())
    with pytest.raises(InputError, match="has a name with other characters"):
        adopt(str(tmp_path / "named"), None, settings())
    save(folder / "part-1/image.npy", 2 * units(ROWS, IMAGE))
    with pytest.raises(InputError, match=r"row 0: the image embedding has norm 2, not 1; adopt into a folder instead"):
        adopt(str(folder), None, settings())


def test_a_folder_that_is_named_like_one_of_priorkit_keeps_its_files(folder: Path) -> None:
    kept = [folder / "replacing/image.npy", folder / "replacing/shards/0000.json"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    adopt(str(folder), None, settings())
    adopt(str(folder), None, settings(), overwrite=True)
    assert [path.read_text() for path in kept] == ["{}", "{}"]
