"""Folders without a manifest, of clip-retrieval and LAION: files are paired by number, and checked."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.adopt.stage import adopt
from priorkit.pipeline.contract import file_marks
from priorkit.pipeline.contract.embedding_files import pair_files
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.batches import BatchStream, Columns
from priorkit.pipeline.read.dataset import SPLITS, EmbeddingDataset, read_embeddings
from priorkit.pipeline.read.settings import ReadSettings

DIM = 8
NAMES = [f"row{number}" for number in range(300)]
HALVES = ReadSettings(validation_fraction=0.3, test_fraction=0.2)
VectorOf = Callable[[str, str], np.ndarray]
WriteForeign = Callable[..., Path]
PLAIN = {"image_path": lambda name: name, "caption": lambda name: f"caption of {name}"}
LAION = {
    "image_path": lambda name: name,
    "caption": lambda name: f"caption of {name}",
    "key": lambda name: f"key of {name}",
    "url": lambda name: f"http://{name}",
    "md5": lambda name: f"md5 of {name[-1]}",
}


@pytest.fixture
def write_foreign(tmp_path: Path, vector_of: VectorOf) -> WriteForeign:
    """Write shards as clip-retrieval does; keys of `shards` are their numbers as text."""

    def write(
        shards: dict[str, list[str]],
        folder: str = "foreign",
        columns: dict[str, Callable[[str], Any]] = PLAIN,
        folders: tuple[str, str, str] = ("img_emb", "text_emb", "metadata"),
        dtype: str = "float16",
    ) -> Path:
        root = tmp_path / folder
        for number, names in shards.items():
            for place, kind in zip(folders, ("img", "text"), strict=False):
                (root / place).mkdir(parents=True, exist_ok=True)
                rows = np.array([vector_of(name, kind) for name in names]).reshape(len(names), DIM).astype(dtype)
                np.save(root / place / f"{kind}_emb_{number}.npy", rows)
            (root / folders[2]).mkdir(exist_ok=True)
            table = {name: pa.array([make(row) for row in names], pa.string()) for name, make in columns.items()}
            pq.write_table(pa.table(table), root / folders[2] / f"metadata_{number}.parquet")
        return root

    return write


@pytest.fixture
def three(write_foreign: WriteForeign) -> Path:
    """Folder with shards 2, 9 and 10, which have another order by name."""
    return write_foreign({"10": NAMES[180:], "2": NAMES[:100], "9": NAMES[100:180]})


def keys(dataset: EmbeddingDataset, rows: np.ndarray) -> list[str]:
    return dataset.metadata(rows, ["key"]).column("key").to_pylist()


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_shards_are_in_order_of_number_and_paired_by_it(
    write_foreign: WriteForeign, vector_of: VectorOf, digits: int
) -> None:
    shards = {"10": NAMES[180:], "2": NAMES[:100], "9": NAMES[100:180]}
    folder = write_foreign({number.zfill(digits): names for number, names in shards.items()})
    dataset = read_embeddings(str(folder))
    assert (dataset.count, dataset.embed_dim, dataset.token_width) == (300, DIM, None)
    rows = np.array([299, 0, 150, 100, 99, 179, 180, 7, 7])
    batch = dataset.take(rows)
    for place, row in enumerate(rows):
        assert np.array_equal(batch.image_embed[place], vector_of(NAMES[row], "img").astype(np.float32))
        assert np.array_equal(batch.text_embed[place], vector_of(NAMES[row], "text").astype(np.float32))
    assert keys(dataset, np.arange(300)) == NAMES


def test_files_of_one_shard_may_differ_in_digits(write_foreign: WriteForeign) -> None:
    folder = write_foreign({"0": NAMES[:3]})
    (folder / "text_emb/text_emb_0.npy").rename(folder / "text_emb/text_emb_0000.npy")
    assert read_embeddings(str(folder)).count == 3


def test_missing_columns_are_refused(three: Path) -> None:
    dataset = read_embeddings(str(three))
    table = dataset.metadata(np.array([5, 4]), ["caption", "image_path", "key"])
    assert table.to_pydict() == {
        "caption": ["caption of row5", "caption of row4"],
        "image_path": ["row5", "row4"],
        "key": ["row5", "row4"],
    }
    with pytest.raises(InputError, match=r"metadata_2\.parquet has no column 'url'"):
        dataset.metadata(np.array([0]), ["url"])
    with pytest.raises(InputError, match="stores no token states"):
        dataset.take(np.array([0]), max_text_len=2)


@pytest.mark.parametrize(
    "folders",
    [
        ("img_emb", "text_emb", "metadata"),
        ("images", "texts", "metadata"),
        ("img_emb", "text_emb", "laion2B-en-metadata"),
    ],
    ids=["LAION-5B", "LAION-400M", "LAION-2B-en"],
)
def test_folders_of_laion_are_read_with_their_keys(write_foreign: WriteForeign, folders: tuple[str, str, str]) -> None:
    folder = write_foreign({"0000": NAMES[:20], "0001": NAMES[20:40]}, columns=LAION, folders=folders)
    (folder / "README.md").write_text("about")
    (folder / folders[0] / "index.html").write_text("about")
    dataset = read_embeddings(str(folder))
    assert keys(dataset, np.array([21, 3])) == ["key of row21", "key of row3"]


def test_copies_of_an_image_are_in_one_split_by_hash_before_url(write_foreign: WriteForeign) -> None:
    dataset = EmbeddingDataset(str(write_foreign({"0": NAMES}, columns=LAION)), HALVES)
    splits = dict(zip(NAMES, dataset.split_plan, strict=True))
    for digit in "0123456789":
        assert len({split for name, split in splits.items() if name[-1] == digit}) == 1
    assert len(set(splits.values())) > 1


def test_without_hash_and_url_copies_have_equal_embeddings(write_foreign: WriteForeign) -> None:
    dataset = EmbeddingDataset(str(write_foreign({"0": NAMES, "1": NAMES[::-1]})), HALVES)
    assert dataset.split_plan[:300].tolist() == dataset.split_plan[300:][::-1].tolist()
    assert {SPLITS[code] for code in dataset.split_plan} == set(SPLITS)


def test_float64_is_read_and_an_empty_shard_shifts_no_row(write_foreign: WriteForeign) -> None:
    dataset = read_embeddings(str(write_foreign({"0": NAMES[:2], "1": [], "2": NAMES[2:4]}, dtype="float32")))
    assert keys(dataset, np.arange(4)) == NAMES[:4]
    assert dataset.take(np.array([2])).image_embed.dtype == np.float32


def test_the_fingerprint_depends_on_names_and_content(write_foreign: WriteForeign) -> None:
    def mark(**changed: Any) -> str:
        arguments = {"shards": {"0": NAMES[:9], "1": NAMES[9:20]}, "folder": str(len(marks)), **changed}
        marks.append(read_embeddings(str(write_foreign(**arguments))).content_fingerprint)
        return marks[-1]

    marks: list[str] = []
    first = mark()
    assert mark() == first  # another folder of the same
    others = [
        mark(shards={"0": NAMES[:9], "2": NAMES[9:20]}),
        mark(shards={"0": NAMES[:9], "1": NAMES[9:21]}),
        mark(dtype="float32"),
        mark(columns=LAION),
        mark(shards={"0": NAMES[:9], "1": NAMES[10:21]}),  # of the same sizes and headers
    ]
    assert len({first, *others}) == 6


def test_files_are_hashed_once_and_again_after_a_change(
    write_foreign: WriteForeign, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_foreign({"0": NAMES[:9], "1": NAMES[9:18]})
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    hashed: list[str] = []
    hash_file = file_marks.hash_file
    monkeypatch.setattr(file_marks, "_HASHES", file_marks._Hashes())
    monkeypatch.setattr(file_marks, "hash_file", lambda file: hashed.append(file.name) or hash_file(file))
    opened = read_embeddings(str(folder))
    assert not hashed  # only what needs it
    first = opened.content_fingerprint
    assert len(hashed) == 6
    monkeypatch.setattr(file_marks, "_HASHES", file_marks._Hashes())  # as in another process
    assert read_embeddings(str(folder)).content_fingerprint == first
    assert len(hashed) == 6
    os.utime(folder / "img_emb/img_emb_1.npy")
    assert read_embeddings(str(folder)).content_fingerprint == first
    np.save(folder / "img_emb/img_emb_1.npy", np.load(folder / "img_emb/img_emb_1.npy")[::-1].copy())
    assert read_embeddings(str(folder)).content_fingerprint != first
    assert [Path(name).name for name in hashed[6:]] == ["img_emb_1.npy"] * 2


def test_known_marks_are_used_for_a_read_only_folder(
    write_foreign: WriteForeign, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_foreign({"0": NAMES[:9]})
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    (folder / "selections").write_bytes(b"in the way of what would be kept")
    marks = read_embeddings(str(folder)).file_marks
    monkeypatch.setattr(file_marks, "_HASHES", file_marks._Hashes())
    monkeypatch.setattr(file_marks, "hash_file", None)  # would fail
    known = EmbeddingDataset(str(folder), HALVES, known_files=marks)
    assert known.content_fingerprint == file_marks.content_fingerprint(marks)


@pytest.mark.parametrize(
    ("lost", "other"),
    [
        ("img_emb/img_emb_9.npy", "metadata/metadata_9.parquet"),
        ("text_emb/text_emb_9.npy", "img_emb/img_emb_9.npy"),
        ("metadata/metadata_9.parquet", "img_emb/img_emb_9.npy"),
    ],
)
def test_a_missing_file_is_refused_by_name(three: Path, lost: str, other: str) -> None:
    (three / lost).unlink()
    with pytest.raises(InputError, match=f"foreign/{lost} is missing, though there is {other}"):
        read_embeddings(str(three))


def test_missing_images_are_refused_by_name(three: Path) -> None:
    for path in (three / "img_emb").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"img_emb/img_emb_\d+\.\w+ is missing"):
        read_embeddings(str(three))


def test_a_folder_without_metadata_is_split_by_its_image_embeddings(three: Path) -> None:
    whole = EmbeddingDataset(str(three), HALVES).split_plan
    shutil.rmtree(three / "metadata")
    dataset = EmbeddingDataset(str(three), HALVES)
    assert np.array_equal(dataset.split_plan, whole)
    stream = BatchStream(dataset, "train", batch_size=50, seed=0, columns=Columns(captions=True))
    for ask in (lambda: dataset.metadata(np.arange(3), ["key"]), lambda: next(stream.batches())):
        with pytest.raises(InputError, match="has no metadata: its rows have neither keys nor captions"):
            ask()


def test_a_folder_without_texts_is_refused_only_when_texts_are_read(three: Path) -> None:
    split_plan = EmbeddingDataset(str(three), HALVES).split_plan
    shutil.rmtree(three / "text_emb")
    dataset = EmbeddingDataset(str(three), HALVES)
    assert np.array_equal(dataset.split_plan, split_plan)
    assert len(np.unique(dataset.row_ids)) == 300
    stream = BatchStream(dataset, "train", batch_size=50, seed=0, columns=Columns(text_embed=False, captions=True))
    batch = next(stream.batches())
    assert batch.text_embed is None
    assert batch.captions == [f"caption of {NAMES[row]}" for row in batch.rows]
    for ask in (
        lambda: BatchStream(dataset, "train", batch_size=50, seed=0),
        lambda: dataset.take(np.arange(3)),
    ):
        with pytest.raises(InputError, match=r"stores no text embeddings; .*train\.text_condition=online"):
            ask()


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("metadata/metadata_11.parquet", r"img_emb/img_emb_11\.npy is missing, though there is metadata/metadata_11"),
        ("img_emb/img_emb_copy.npy", r"img_emb/img_emb_copy\.npy is not named as img_emb/img_emb_0\.npy is"),
        ("img_emb/old/img_emb_2.npy", r"img_emb/old/img_emb_2\.npy is not named"),
        ("text_emb/img_emb_2.npy", r"text_emb/img_emb_2\.npy is not named as text_emb/text_emb_0\.npy is"),
        ("img_emb/img_emb_002.npy", r"img_emb_002\.npy and img_emb/img_emb_2\.npy have the same number"),
    ],
)
def test_an_extra_file_is_refused_by_name(three: Path, extra: str, named: str) -> None:
    (three / extra).parent.mkdir(exist_ok=True)
    (three / extra).write_bytes(b"")
    with pytest.raises(InputError, match=named):
        read_embeddings(str(three))


def test_files_of_one_number_must_have_the_same_rows(three: Path) -> None:
    for name in ("text_emb/text_emb_9.npy", "img_emb/img_emb_9.npy"):
        whole = np.load(three / name)
        np.save(three / name, whole[:-1])
        with pytest.raises(InputError, match=r"foreign/\w+/\w+_9\.\w+ has \d+ rows, img_emb/img_emb_9\.npy has \d+"):
            read_embeddings(str(three))
        np.save(three / name, whole)
    path = three / "metadata/metadata_9.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match=r"metadata_9\.parquet has 79 rows, img_emb/img_emb_9\.npy has 80"):
        read_embeddings(str(three))


def test_swapped_files_are_refused_by_their_rows(three: Path) -> None:
    one, other = three / "metadata/metadata_2.parquet", three / "metadata/metadata_9.parquet"
    one.rename(three / "waiting")
    other.rename(one)
    (three / "waiting").rename(other)
    with pytest.raises(InputError, match=r"metadata_2\.parquet has 80 rows, img_emb/img_emb_2\.npy has 100"):
        read_embeddings(str(three))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (np.zeros((80, DIM + 1), np.float16), rf"text_emb_9\.npy holds embeddings of {DIM + 1}, img_emb/img_emb_2"),
        (
            np.zeros(80, np.float16),
            r"text_emb_9\.npy holds float16 of shape \[80\]; .*float16, float32 or float64",
        ),
        (np.zeros((80, DIM), np.int8), r"text_emb_9\.npy holds int8 of shape"),
        (np.zeros((80, DIM), np.longdouble), rf"text_emb_9\.npy holds {np.dtype(np.longdouble)} of shape"),
        (np.zeros((80, DIM), np.complex64), r"text_emb_9\.npy holds complex64 of shape"),
        (np.zeros((80, DIM), bool), r"text_emb_9\.npy holds bool of shape"),
        (np.zeros((80, DIM), "V2"), r"text_emb_9\.npy holds \|V2 of shape"),
        (np.zeros((80, DIM), [("x", "f4")]), r"text_emb_9\.npy holds \[\('x', '<f4'\)\] of shape"),
        (np.full((80, DIM), None, dtype=object), r"text_emb_9\.npy is not an array of numbers .*object"),
    ],
    ids=["size", "shape", "integers", "longdouble", "complex", "bool", "bytes", "structured", "pickle"],
)
def test_arrays_that_are_not_embeddings_are_refused(three: Path, values: np.ndarray, named: str) -> None:
    np.save(three / "text_emb/text_emb_9.npy", values)
    with pytest.raises(InputError, match=named):
        read_embeddings(str(three))


@pytest.mark.parametrize(
    ("name", "state"),
    [("img_emb/img_emb_9.npy", "bytes instead of"), ("metadata/metadata_9.parquet", "is damaged")],
)
def test_a_file_that_is_cut_short_is_refused(three: Path, name: str, state: str) -> None:
    whole = (three / name).read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2]):
        (three / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} .*{state}"):
            read_embeddings(str(three))
    for content in (b"", whole[:7], b"no such file at all"):
        (three / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} "):
            read_embeddings(str(three))


def test_damage_inside_the_metadata_is_refused(three: Path) -> None:
    path = three / "metadata/metadata_9.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 100 + whole[104:])
    with pytest.raises(InputError, match=r"metadata_9\.parquet is damaged"):
        read_embeddings(str(three)).metadata(np.array([150]), ["key"])
    names = pa.array([b"\xff"] * 80).view(pa.string())
    pq.write_table(pa.table({"image_path": names, "caption": names, "url": names}), path)
    with pytest.raises(InputError, match=r"metadata_9\.parquet is damaged .*UTF8"):
        read_embeddings(str(three)).split_plan  # noqa: B018 - is made when asked for


def test_a_file_that_changes_after_opening_is_refused(three: Path) -> None:
    dataset = read_embeddings(str(three))
    np.save(three / "text_emb/text_emb_9.npy", np.zeros((7, DIM), np.float16))
    with pytest.raises(InputError, match=r"text_emb_9\.npy has 7 rows, the header of img_emb/img_emb_9\.npy says 80"):
        dataset.take(np.array([150]))


def test_a_foreign_folder_does_not_name_its_clip(three: Path) -> None:
    dataset = read_embeddings(str(three))
    for ask in (lambda: dataset.clip, lambda: dataset.clip_settings):
        with pytest.raises(InputError, match="foreign does not name its CLIP"):
            ask()


def test_training_and_sampling_are_refused_without_a_clip(three: Path, tmp_path: Path) -> None:
    from priorkit.prior.train.settings import TrainSettings
    from priorkit.prior.train.stage import plan_train, train

    settings = TrainSettings(steps=1, device="cpu", threads=1)
    with pytest.raises(InputError, match="does not name its CLIP"):
        plan_train(str(three), str(tmp_path / "prior"), settings, ReadSettings())
    with pytest.raises(InputError, match="does not name its CLIP"):
        train(str(three), str(tmp_path / "prior"), settings)


def test_remote_folders_are_read_like_local_ones(three: Path) -> None:
    remote, local = Store("memory://foreign"), Store(str(three))
    for name in local.names():
        with local.open(name) as source, remote.create(name) as target:
            target.write(source.read())
    one, other = read_embeddings(remote.url), read_embeddings(str(three))
    rows = np.arange(0, 300, 7)
    assert np.array_equal(one.take(rows).text_embed, other.take(rows).text_embed)
    assert keys(one, rows) == keys(other, rows)
    assert one.content_fingerprint == other.content_fingerprint


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/00000.parquet").write_bytes(b"of images")
    with pytest.raises(InputError, match="holds no result of `priorkit embed`"):
        read_embeddings(str(tmp_path))
    (tmp_path / "img_emb.npy").write_bytes(b"no folder")
    with pytest.raises(InputError, match=r"holds arrays of other names \(img_emb\.npy\); take them over with"):
        read_embeddings(str(tmp_path))


def test_a_folder_of_no_rows_is_refused(write_foreign: WriteForeign) -> None:
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(str(write_foreign({"0": []})))


def test_pairing_uses_names_only() -> None:
    names = ["metadata/metadata_01.parquet", "text_emb/text_emb_1.npy", "img_emb/img_emb_001.npy", "stats/stats_1.json"]
    assert pair_files(names, "url") == {
        1: {"metadata": names[0], "text_emb": names[1], "img_emb": names[2]},
    }
    assert pair_files([], "url") == {}


@pytest.mark.parametrize("kind", ["img", "text"])
@pytest.mark.parametrize("other", ["float32", "float64"])
def test_shards_of_several_types_are_read_as_float32(three: Path, tmp_path: Path, kind: str, other: str) -> None:
    shutil.copytree(three, tmp_path / "whole")
    everything = ReadSettings(validation_fraction=0, test_fraction=0)  # splits follow from the bytes as stored
    whole = EmbeddingDataset(str(tmp_path / "whole"), everything)
    path = three / f"{kind}_emb/{kind}_emb_9.npy"
    np.save(path, np.load(path).astype(other))
    mixed = EmbeddingDataset(str(three), everything)
    assert mixed.notes == [
        f"{three}: numbers 3 to 8 are missing between the shards 2 and 10; what is there is read: if the folder was "
        "not fetched whole, fetch the rest",
        f"{three}: files of {kind}_emb are of several types (2 of float16, 1 of {other}); all are read as float32",
    ]
    rows = np.arange(300)
    assert np.array_equal(mixed.take(rows).image_embed, whole.take(rows).image_embed)
    assert np.array_equal(mixed.take(rows).text_embed, whole.take(rows).text_embed)
    one, two = (next(BatchStream(data, "train", batch_size=300, seed=0).batches()) for data in (whole, mixed))
    assert one.text_embed is not None
    assert two.text_embed is not None
    for before, after, name in ((one.image_embed, two.image_embed, "img"), (one.text_embed, two.text_embed, "text")):
        assert after.dtype == ("float32" if name == kind else "float16")
        assert np.array_equal(before.astype(np.float32), after.astype(np.float32))


def test_some_shards_with_keys_and_some_without_are_refused(three: Path) -> None:
    path = three / "metadata/metadata_9.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("key", table.column("image_path")), path)
    with pytest.raises(InputError, match=r"metadata_2\.parquet has no column 'key', though metadata/metadata_9"):
        read_embeddings(str(three))


def test_arrays_that_are_not_stored_row_by_row_are_refused(three: Path) -> None:
    path = three / "img_emb/img_emb_9.npy"
    for values, named in (
        (np.asfortranarray(np.load(path)), "is in Fortran's order"),
        (np.load(path).astype(">f2"), "is of >f2, in another machine's order of bytes"),
    ):
        np.save(path, values)
        with pytest.raises(InputError, match=rf"img_emb_9\.npy {named}"):
            read_embeddings(str(three))


def test_float32_stays_float32(write_foreign: WriteForeign) -> None:
    dataset = EmbeddingDataset(str(write_foreign({"0": NAMES}, dtype="float32")), HALVES)
    batch = next(BatchStream(dataset, "train", batch_size=50, seed=0).batches())
    assert batch.image_embed.dtype == np.float32


def test_text_of_another_size_is_adopted_by_the_command_in_the_message(tmp_path: Path) -> None:
    folder = tmp_path / "my embeddings"
    for kind, size in (("img_emb", 8), ("text_emb", 4)):
        (folder / kind).mkdir(parents=True)
        np.save(folder / f"{kind}/{kind}_0.npy", np.eye(size, dtype=np.float16)[:4])
    with pytest.raises(InputError, match="text_emb holds embeddings of 4, img_emb of 8") as error:
        read_embeddings(str(folder))
    command = shlex.split(str(error.value).split("`")[1])
    assert command == ["priorkit", "adopt", str(folder), "NEW", "--not-clip", "NAME"]
    adopt(command[2], str(tmp_path / "new"), AdoptSettings(not_clip="x"))
    assert read_embeddings(str(tmp_path / "new")).count == 4
