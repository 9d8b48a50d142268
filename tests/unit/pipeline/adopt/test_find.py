"""Search for source, target and metadata, and the plan of the shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.adopt.find import find_embeddings, plan_tasks
from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.errors import InputError, PriorkitError, SettingsError

from .conftest import ROWS, clip_retrieval, datacomp, hugging_face, save, save_table, units


def settings(**values: object) -> AdoptSettings:
    return AdoptSettings(not_clip="x", **values)  # type: ignore[arg-type]


def found(folder: Path, **values: object) -> tuple[str, str | None, list[str | None]]:
    """Return the names of the target and the source, and of each table."""
    result = find_embeddings(str(folder), settings(**values))
    tables = [None if each.table is None else each.table.name for each in result.sets]
    return result.target.name, None if result.source is None else result.source.name, tables


def test_layouts_are_found(tmp_path: Path) -> None:
    both = ["metadata/metadata_0.parquet", "metadata/metadata_1.parquet"]
    assert found(clip_retrieval(tmp_path / "cr")) == ("img_emb", "text_emb", both)
    for name in ("img_emb", "text_emb"):
        folder = {"img_emb": "images", "text_emb": "texts"}[name]
        for shard in range(2):
            save(tmp_path / f"laion/{folder}/{name}_{shard:04d}.npy", units())
    for shard in range(2):
        save_table(tmp_path / f"laion/laion2B-en-metadata/metadata_{shard:04d}.parquet", key=list(range(ROWS)))
    tables = [f"laion2B-en-metadata/metadata_000{shard}.parquet" for shard in range(2)]
    assert found(tmp_path / "laion") == ("images", "texts", tables)
    assert found(datacomp(tmp_path / "dc"), target="l14_img", source="l14_txt") == (
        "l14_img", "l14_txt", ["003497f3.parquet"]
    )  # fmt: skip
    table = "train-00000-of-00001.parquet"
    assert found(hugging_face(tmp_path / "hf")) == ("image_embedding", "text_embedding", [table])
    save(tmp_path / "alone.npy", units())
    assert found(tmp_path / "alone.npy") == ("alone", None, [None])
    for part in range(2):
        clip_retrieval(tmp_path / f"parts/part_{part}", 1)
    tables = [f"part_{part}/metadata/metadata_0.parquet" for part in range(2)]
    assert found(tmp_path / "parts") == ("img_emb", "text_emb", tables)


def test_source_and_target_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    save(tmp_path / "clap/part-1.npy", units(ROWS, 4))
    save(tmp_path / "dino/part-1.npy", units(ROWS, 6))
    result = find_embeddings(
        str(tmp_path / "dino"), settings(source=str(tmp_path / "clap"), target=str(tmp_path / "dino"))
    )
    assert result.source is not None
    assert (result.source.name, result.source.size, result.target.name, result.target.size) == ("clap", 4, "dino", 6)
    assert found(tmp_path, source="clap", target="dino") == ("dino", "clap", [None])
    assert found(tmp_path, source="dino", target="clap") == ("clap", "dino", [None])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "holds embeddings named clap, dino, and it is not clear which is the target; name it"),
        ({"target": "dino", "source": "dino"}, "--source and --target both name dino"),
        ({"target": "video"}, "--target video: no such folder, file, column or array; .* holds clap, dino"),
        ({"target": "dino", "metadata": "tables"}, "--metadata tables: no such folder or file"),
    ],
)
def test_what_is_not_clear_is_asked_for(values: dict[str, str], message: str, tmp_path: Path) -> None:
    save(tmp_path / "clap/part-1.npy", units(ROWS, 4))
    save(tmp_path / "dino/part-1.npy", units(ROWS, 6))
    with pytest.raises(PriorkitError, match=message):
        found(tmp_path, **values)


def test_one_candidate_for_the_source_is_proposed_as_the_target(tmp_path: Path) -> None:
    save_table(tmp_path / "a.parquet", image_embedding=[[1, 2]] * 2, text_embedding=[[0.5, 0.5]] * 2)
    with pytest.raises(InputError, match=r"bytes are no embeddings\), .* such as --target text_embedding$"):
        found(tmp_path)
    assert found(tmp_path, target="text_embedding")[:2] == ("text_embedding", None)


def test_a_source_without_a_target_is_named(tmp_path: Path) -> None:
    save_table(tmp_path / "a.parquet", text_embedding=[[0.5, 0.5]] * 2)
    with pytest.raises(InputError, match=r"no target for the source text_embedding; name the target's folder or file"):
        found(tmp_path, source="text_embedding")
    save(tmp_path / "elsewhere/image.npy", units(2))
    assert found(tmp_path / "a.parquet", source="text_embedding", target=str(tmp_path / "elsewhere"))[:2] == (
        "elsewhere", "text_embedding"
    )  # fmt: skip


def test_embeddings_that_are_not_used_are_noted(tmp_path: Path) -> None:
    save(tmp_path / "image.npy", units(ROWS, 6))
    save(tmp_path / "sound.npy", units(ROWS, 4))
    assert find_embeddings(str(tmp_path), settings()).notes == ("embeddings that are not used: sound",)
    assert find_embeddings(str(tmp_path), settings(source="sound")).notes == ()


def test_a_single_file_without_embeddings_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.pt holds no embeddings: it is no \.npy or \.npz file"):
        find_embeddings(str(tmp_path / "a.pt"), settings())


def test_counts_must_agree(tmp_path: Path) -> None:
    clip_retrieval(tmp_path)
    save(tmp_path / "text_emb/text_emb_1.npy", units(ROWS - 1))
    with pytest.raises(InputError, match=r"text_emb_1\.npy has 19 rows, .*img_emb_1\.npy has 20; fetch both again"):
        found(tmp_path)
    clip_retrieval(tmp_path)
    save_table(tmp_path / "metadata/metadata_0.parquet", key=list(range(21)))
    with pytest.raises(InputError, match=r"metadata_0\.parquet has 21 rows, .*img_emb_0\.npy has 20"):
        found(tmp_path)
    assert found(tmp_path, metadata="none")[2] == [None, None]


def test_sizes_must_agree_within_a_space(tmp_path: Path) -> None:
    clip_retrieval(tmp_path)
    save(tmp_path / "img_emb/img_emb_1.npy", units(ROWS, 7))
    with pytest.raises(InputError, match=r"img_emb_1\.npy holds embeddings of 7, .*img_emb_0\.npy of 6"):
        found(tmp_path)


def test_a_missing_table_is_not_passed_over(tmp_path: Path) -> None:
    clip_retrieval(tmp_path)
    (tmp_path / "metadata/metadata_0.parquet").unlink()
    with pytest.raises(InputError, match=r"img_emb_0\.npy has no partner among the metadata .*--metadata none"):
        found(tmp_path)


@pytest.mark.parametrize("name", ["key_column", "caption_column"])
def test_a_column_without_a_table_is_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path / "in/image.npy", units())
    with pytest.raises(SettingsError, match=f"{name}=uid: there is no table .*in; name the tables with --metadata"):
        found(tmp_path / "in", **{name: "uid"})
    save_table(tmp_path / "in/about.parquet", uid=["a"] * ROWS)
    with pytest.raises(SettingsError, match=f"{name}=uid has no effect with --metadata none"):
        found(tmp_path / "in", metadata="none", **{name: "uid"})
    assert found(tmp_path / "in", **{name: "uid"})[2] == ["about.parquet"]


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no embeddings"):
        found(tmp_path)
    with pytest.raises(InputError, match="no such folder or file"):
        found(tmp_path / "nowhere")
    save(tmp_path / "x.npy", np.empty((0, 4), np.float32))
    with pytest.raises(InputError, match="holds no rows"):
        found(tmp_path)


def test_large_files_are_divided_and_a_limit_cuts(tmp_path: Path) -> None:
    result = find_embeddings(str(clip_retrieval(tmp_path)), settings(rows_per_shard=8))
    tasks = plan_tasks(result, settings(rows_per_shard=8))
    assert [(task.name, task.first, task.rows) for task in tasks] == [
        ("0000", 0, 8), ("0001", 8, 8), ("0002", 16, 4), ("0003", 0, 8), ("0004", 8, 8), ("0005", 16, 4)
    ]  # fmt: skip
    limited = plan_tasks(result, settings(rows_per_shard=8), limit=21)
    assert [task.rows for task in limited] == [8, 8, 4, 1]
    assert limited[:3] == tasks[:3]
    assert limited[3].input != tasks[3].input


def test_a_changed_file_changes_the_input_of_its_shards_alone(tmp_path: Path) -> None:
    def inputs() -> list[str]:
        return [task.input for task in plan_tasks(find_embeddings(str(tmp_path), settings()), settings())]

    clip_retrieval(tmp_path)
    before = inputs()
    assert inputs() == before
    os.utime(tmp_path / "metadata/metadata_1.parquet", (1, 1))
    after = inputs()
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
