"""Detection of input formats, and shards that are joined."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.image_shards import ImageShard
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.inputs import MergedShard, list_input_shards, open_input
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import InputError, SettingsError

from .conftest import PAIRS, samples_of, shards_of, write, write_tar


def test_a_folder_with_two_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path, PAIRS)
    write_tar(tmp_path / "00000.tar", 0, 2)
    with pytest.raises(InputError, match=r"images .* and 00000\.tar; .*input_format=files or .*=webdataset"):
        shards_of(tmp_path)
    assert shards_of(tmp_path, input_format="webdataset")[0].samples == 2
    assert shards_of(tmp_path, input_format="files")[0].samples == 7
    (tmp_path / "00000.tar").unlink()
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"and t\.parquet; .*input_format=parquet"):
        shards_of(tmp_path)


def test_files_of_img2dataset_are_read(tmp_path: Path) -> None:
    """img2dataset writes a table beside each folder of files."""
    for shard in ("00000", "00001"):
        write(tmp_path, {f"{shard}/{shard}0000.jpg": b"1", f"{shard}/{shard}0000.txt": b"a"})
        pq.write_table(pa.table({"caption": ["a"], "status": ["success"]}), tmp_path / f"{shard}.parquet")
    (found,) = samples_of(tmp_path)
    assert [sample.key for sample in found] == ["00000/000000000", "00001/000010000"]


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"1"})
    with pytest.raises(InputError, match="is a file; name the folder"):
        shards_of(tmp_path / "a.jpg")


def test_one_tar_or_a_pattern_of_tars_or_tables_is_read(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"part-{number}.tar", number * 10, 2)
        pq.write_table(pa.table({"caption": ["a"]}), tmp_path / f"rows-{number}.parquet")
    (found,) = samples_of(tmp_path / "part-1.tar")
    assert [sample.key for sample in found] == ["00010", "00011"]
    first, second = shards_of(tmp_path / "part-{0,2}.tar")
    assert (first.name, first.title) == ("00000", "part-0.tar")
    assert (second.name, second.title) == ("00001", "part-2.tar")
    (joined,) = shards_of(tmp_path / "part-*.tar", rows_per_shard=100)
    assert joined.samples == 6
    assert len(shards_of(tmp_path / "rows-*.parquet", image=False)) == 3
    with pytest.raises(InputError, match=r"names rows-0\.parquet; name tars.* alone|names part-0\.tar"):
        shards_of(tmp_path / "*-0.*")
    with pytest.raises(SettingsError, match=r"input_format=files does not fit .*; set it to webdataset"):
        shards_of(tmp_path / "part-1.tar", input_format="files")
    with pytest.raises(InputError, match=r"part-9\.tar: no such file"):
        shards_of(tmp_path / "part-9.tar")


def test_settings_of_files_have_no_effect_on_tables(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(SettingsError, match=r"embed\.caption_key has no effect on tables"):
        shards_of(tmp_path, image=False, caption_key="a")


def test_the_image_column_has_no_effect_on_tars_and_files(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/0.tar", 0, 2)
    for folder in (tmp_path / "tars", write(tmp_path / "files", PAIRS)):
        for column in ("photo", "image"):
            with pytest.raises(SettingsError, match=rf"embed\.image_column={column} has no effect on tars .*{folder}"):
                shards_of(folder, image_column=column)
        dumped = EmbedSettings().model_dump_json()
        assert list_input_shards(str(folder), EmbedSettings.model_validate_json(dumped))  # written out is not set


def test_a_table_of_metadata_beside_images_is_theirs(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"1"})
    pq.write_table(pa.table({"file_name": ["a.jpg"], "caption": ["x"]}), tmp_path / "metadata.parquet")
    ((sample,),) = samples_of(tmp_path)
    assert (sample.key, sample.captions) == ("a", (b"x",))


def test_an_input_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to embed"):
        shards_of(tmp_path)
    with pytest.raises(InputError, match="no images"):
        shards_of(write(tmp_path / "docs", {"a.md": b""}))
    with pytest.raises(InputError, match="no parquet file"):
        shards_of(write(tmp_path / "tables", {"a.parquet": b"nothing"}), image=False)


def test_image_shards_are_joined_until_they_have_enough_rows(tmp_path: Path) -> None:
    for number, count in enumerate([3, 1, 2, 5, 1]):
        write_tar(tmp_path / f"{number:05d}.tar", number * 10, count)
    assert [shard.samples for shard in shards_of(tmp_path)] == [3, 1, 2, 5, 1]
    joined = shards_of(tmp_path, rows_per_shard=4)
    assert [(shard.name, shard.samples) for shard in joined] == [("00000", 4), ("00001", 7), ("00002", 1)]
    keys = [[sample.key for sample in part] for part in samples_of(tmp_path, rows_per_shard=4)]
    assert keys[0] == ["00000", "00001", "00002", "00010"]


def test_joined_shards_have_either_all_tables_or_none(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", number * 10, 2)
    pq.write_table(
        pa.table({"key": ["00000", "00001"], "url": ["u", "v"], "status": ["success"] * 2}), tmp_path / "00000.parquet"
    )
    assert len(shards_of(tmp_path)) == 3
    with pytest.raises(InputError, match=r"00001\.parquet is missing, others are there.*rows_per_shard"):
        shards_of(tmp_path, rows_per_shard=100)


@pytest.mark.parametrize("left", [2 * 1024 + 700, 2 * 1024, 3 * 1024 + 512])
def test_a_damaged_tar_gives_the_samples_before_the_damage_and_an_error(tmp_path: Path, left: int) -> None:
    write_tar(tmp_path / "00000.tar", 0, 4)
    write_tar(tmp_path / "00001.tar", 10, 2)
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:left])
    (found,) = samples_of(tmp_path, rows_per_shard=100)
    whole = [f"{number:05d}" for number in range((left - 513) // 1024 + 1)]  # a header and one byte
    assert [sample.key for sample in found if sample.error is None] == [*whole, "00010", "00011"]
    (bad,) = (sample for sample in found if sample.error is not None)
    assert bad.key == "00000.tar"
    assert str(bad.error).startswith("damaged_shard: ")


def test_a_folder_of_tables_may_have_the_suffix_of_a_table(tmp_path: Path) -> None:
    """Spark names folders like this."""
    (tmp_path / "captions.parquet").mkdir()
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "captions.parquet/part-0.parquet")
    ((found,),) = samples_of(tmp_path / "captions.parquet", image=False)
    assert (found.key, found.caption) == ("part-0_000000000", b"a")


def test_a_single_table_opens_its_folder(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "t.parquet")
    assert open_input(str(tmp_path / "t.parquet")).url == Store(str(tmp_path)).url
    assert open_input(str(tmp_path)).url == Store(str(tmp_path)).url


def test_the_sources_of_a_joined_shard_are_those_of_its_first_parts() -> None:
    parts = [ImageShard(f"{number:05d}", f"mark {number}", 2, (f"{number:05d}.tar",)) for number in range(3)]
    merged = MergedShard("00000", tuple(parts))
    assert merged.samples == 6
    assert merged.title == "00000.tar and 00001.tar and 00002.tar"
    expected = {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, None: 3}
    assert {limit: len(merged.sources(limit)) for limit in expected} == expected
    assert merged.fingerprint != MergedShard("00000", tuple(parts[::-1])).fingerprint


def test_samples_of_a_joined_shard_know_their_part_and_its_table(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number:05d}.tar", number * 10, 2)
        keys = [f"{number * 10 + row:05d}" for row in range(2)]
        table = pa.table({"key": keys, "url": [f"u{key}" for key in keys], "status": ["success"] * 2})
        pq.write_table(table, tmp_path / f"{number:05d}.parquet")
    (samples,) = samples_of(tmp_path, rows_per_shard=4)
    assert [sample.place.part for sample in samples] == [0, 0, 1, 1]
    (shard,) = shards_of(tmp_path, rows_per_shard=4)
    first, second = shard.tables(open_input(str(tmp_path)))
    assert first is not None
    assert second is not None
    assert first.column("key").to_pylist() == ["00000", "00001"]
    assert second.column("key").to_pylist() == ["00010", "00011"]
