"""Names of embeddings, and the roles that they speak of."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from priorkit.pipeline.adopt.candidates import choose, example_options, find, list_contents, natural, role_of
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError

from .conftest import clip_retrieval, datacomp, hugging_face, save, save_table, units


@pytest.mark.parametrize(
    ("name", "role"),
    [("img_emb", "target"), ("l14_txt", "source"), ("image_embedding", "target"), ("imageEmbeds", "target"),
     ("texts", "source"), ("audio", None), ("text_of_image", None), ("embedding", None)],
)  # fmt: skip
def test_a_name_shows_a_role(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_names_are_sorted_by_their_numbers() -> None:
    assert sorted(["a10.npy", "a9.npy", "b.npy"], key=natural) == ["a9.npy", "a10.npy", "b.npy"]


def names(folder: Path) -> dict[str, tuple[str, ...]]:
    return {each.name: each.files for each in list_contents(Store(str(folder))).candidates}


def test_folders_files_columns_and_arrays_are_candidates(tmp_path: Path) -> None:
    clip_retrieval(tmp_path / "parts/part_0", 1)
    clip_retrieval(tmp_path / "parts/part_1", 1)
    found = names(tmp_path / "parts")
    assert found["img_emb"] == ("part_0/img_emb/img_emb_0.npy", "part_1/img_emb/img_emb_0.npy")
    assert set(found) == {"img_emb", "text_emb"}
    save(tmp_path / "alone/image_2.npy", units())
    save(tmp_path / "alone/image_10.npy", units())
    save(tmp_path / "alone/text.npy", units())
    assert names(tmp_path / "alone") == {"image": ("image_2.npy", "image_10.npy"), "text": ("text.npy",)}
    assert set(names(datacomp(tmp_path / "dc"))) == {"b32_img", "b32_txt", "l14_img", "l14_txt"}
    assert set(names(hugging_face(tmp_path / "hf"))) == {"image_embedding", "text_embedding"}


def test_columns_of_all_folders_of_tables_are_joined(tmp_path: Path) -> None:
    hugging_face(tmp_path / "split=train")
    hugging_face(tmp_path / "split=test")
    assert names(tmp_path)["image_embedding"] == (
        "split=test/train-00000-of-00001.parquet", "split=train/train-00000-of-00001.parquet"
    )  # fmt: skip


def test_several_names_of_one_role_are_refused_with_an_example(tmp_path: Path) -> None:
    contents = list_contents(Store(str(datacomp(tmp_path))))
    with pytest.raises(InputError, match=r"may be the target .*--source b32_txt --target b32_img"):
        choose(contents, "target")


def test_the_example_is_quoted_for_a_shell(tmp_path: Path) -> None:
    for name in ("my; image", "my text"):
        save(tmp_path / f"{name}/{name}_0.npy", units())
    options = example_options(list_contents(Store(str(tmp_path))))
    assert options == "--source 'my text' --target 'my; image'"


def test_a_setting_names_a_column_a_folder_or_a_file(tmp_path: Path) -> None:
    clip_retrieval(tmp_path)
    save(tmp_path / "audio/clap-1.npy", units())
    contents = list_contents(Store(str(tmp_path)))
    for value, files in {
        "audio": ("audio/clap-1.npy",), "audio/": ("audio/clap-1.npy",), "clap": ("audio/clap-1.npy",),
        "img_emb/img_emb_1.npy": ("img_emb/img_emb_1.npy",), "img_emb_1": ("img_emb/img_emb_1.npy",),
    }.items():  # fmt: skip
        candidate = find(contents, value)
        assert candidate is not None
        assert candidate.files == files, value
    assert find(contents, "video") is None


def test_tables_without_lists_of_floats_are_plain(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    save_table(tmp_path / "other/labels.parquet", label=pa.array([1, 2]), box=pa.array([[1, 2], [3, 4]]))
    assert list_contents(Store(str(tmp_path))).plain_tables == ("other/labels.parquet",)
