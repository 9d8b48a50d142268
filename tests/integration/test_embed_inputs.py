"""Every sample of every kind of input becomes a row or a named failure, counted apart from the code under test."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorkit.pipeline.compute.stage import StageResult
from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest, read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import InputError, PriorkitError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

from ..conftest import tar_bytes

Member = tuple[str, bytes]


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pairs(*keys: str, first: int = 0) -> list[Member]:
    """An image and the caption `thing N` of each key, N from `first` on."""
    return [
        member
        for number, key in enumerate(keys, first)
        for member in ((f"{key}.png", picture(number)), (f"{key}.txt", b"thing %d" % number))
    ]


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@dataclass
class Accounts:
    """What came of an input."""

    result: StageResult
    metadata: dict[str, list[Any]]
    failures: list[tuple[str, str]]
    folder: Path = field(repr=False)

    @property
    def outcomes(self) -> int:
        return len(self.metadata["key"]) + len(self.failures)


@pytest.fixture
def run(tmp_path: Path, embed_settings: EmbedSettings) -> Callable[..., Accounts]:
    """Embed the folder `in`, and hold everything that was written of it against each other."""

    def embed_it(expanded: int = 0, **settings: Any) -> Accounts:
        """`expanded` is the number of rows that are further captions of an image."""
        out = tmp_path / "out"
        result = embed(str(tmp_path / "in"), str(out), embed_settings.model_copy(update=settings))
        metadata = pa.concat_tables(
            [pq.read_table(path) for path in sorted((out / "metadata").iterdir())], promote_options="permissive"
        ).to_pydict()
        failed = pa.concat_tables([pq.read_table(path) for path in sorted((out / "failures").iterdir())]).to_pylist()
        accounts = Accounts(result, metadata, [(row["key"], row["error"]) for row in failed], out)
        counts = Counter(reason.partition(":")[0] for _, reason in accounts.failures)
        assert result.counts == {"success": len(metadata["key"]), **counts}
        assert result.statistics["input_samples"] == accounts.outcomes - expanded
        assert metadata["image_path"] == metadata["key"]
        assert inspect_folder(str(out)).problems == []
        assert read_embeddings(str(out)).count == result.rows
        return accounts

    return embed_it


def ours(folder: Path) -> int:
    """Two shards as `download` writes them, of which one row has failed."""
    store = Store(str(folder))
    with open_stage(store, Manifest("download", {}, {"rows": 5})) as held:
        for number, keys in enumerate((["000000000", "000000002"], ["000010000", "000010001"])):
            name = f"{number:05d}"
            commit = ShardCommit(store, name, input=name, settings=held.manifest.settings_fingerprint)
            with commit.create(f"{name}.tar") as file:
                file.write(tar_bytes(pairs(*keys)))
            rows = sorted({*keys, "000000001"} if number == 0 else keys)
            status = ["success" if key in keys else "timeout" for key in rows]
            with commit.create(f"{name}.parquet") as file:
                pq.write_table(pa.table({"key": rows, "status": status, "url": [f"u{key}" for key in rows]}), file)
            counts = Counter(status)
            held.add(commit.commit(rows=len(rows), counts=counts))
        held.finish()
    return 4


def img2dataset(folder: Path) -> int:
    for number in range(2):
        keys = [f"{number:05d}{row:04d}" for row in range(3)]
        fill(folder, {f"{number:05d}.tar": tar_bytes(pairs(*keys[1:])), f"{number:05d}_stats.json": b"{}"})
        status = ["failed_to_download", "success", "success"]
        write_table(folder / f"{number:05d}.parquet", key=keys, status=status, url=keys)
    return 4


def any_names(folder: Path) -> int:
    """Two tars, one of which is compressed, in folders, one of which is a link, with a list of all of them."""
    fill(folder.parent / "elsewhere", {"cc12m-train-0010.tar": tar_bytes(pairs("0", "1"))})
    folder.mkdir()
    (folder / "linked").symlink_to("../elsewhere")
    fill(folder, {"linked2/my shard 2.tar.gz": gzip.compress(tar_bytes(pairs("0", first=7))), "._x.tar": b"x"})
    write_table(folder / "index.parquet", shard=["cc12m-train-0010.tar"])
    return 3


def json_captions(folder: Path) -> int:
    members = [(f"{row}.png", picture(row)) for row in range(3)]
    members += [("3.json", b"{}"), ("0.json", b'{"meta": {"text": "a"}}'), ("1.json", b'{"meta": {"text": ["b"]}}')]
    fill(folder, {"00000.tar": tar_bytes(sorted(members))})
    return 4


def captions_beside_the_tar(folder: Path) -> int:
    fill(folder, {"train-0.tar": tar_bytes([(f"{row}.png", picture(row)) for row in range(3)])})
    write_table(folder / "train-0.parquet", key=[*"012"], text=["a", None, "c"], url=[*"uvw"])
    return 3


def image_folder(folder: Path) -> int:
    fill(folder, {"train/a.png": picture(0), "train/sub/b.png": picture(1), "train/c.png": picture(2)})
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "sub/b.png", "text": "b"}, {"file_name": "no.png"}]
    fill(folder, {"train/metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    return 4


def nested_tar(folder: Path) -> int:
    names = [f"{animal}/{row:04d}" for animal in ("cat", "dog") for row in range(3)]
    stray = [("__MACOSX/cat/._0000.png", b"x"), ("cat/.DS_Store", b"x"), ("README.txt", b"x"), ("._0.jpg", b"x")]
    fill(folder, {"00000.tar": tar_bytes([*stray, *pairs(*names), *pairs("./a/b/1")])})
    return 7


def counted_from_0(folder: Path) -> int:
    for number in range(3):
        fill(folder, {f"{number:05d}.tar": tar_bytes(pairs("0000", "0001", first=10 * number))})
    return 6


def repeated_in_one_tar(folder: Path) -> int:
    fill(folder, {"00000.tar": tar_bytes([*pairs("a", "b"), *pairs("a", "a", first=2), ("c.json", b"{}")])})
    return 5


def files(folder: Path) -> int:
    fill(folder, dict(pairs("a", "sub/a", "sub/b c", "猫")))
    fill(folder, {"alone.png": picture(9), "alone.json": b"{}", "words.txt": b"only", "notes.md": b"no sample"})
    fill(folder, {".ipynb_checkpoints/a-checkpoint.png": b"x", "._a.png": b"x", "._a.txt": b"x", "README.txt": b"x"})
    fill(folder.parent / "elsewhere", dict(pairs("0", "1")))
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "linked2").symlink_to(folder.parent / "elsewhere")
    (folder / "loop").symlink_to(".")
    (folder / "gone.png").symlink_to("no such file")
    return 4 + 2 + 2 * 2 + 1


IMAGES = [{"bytes": picture(row // 2), "path": ""} for row in range(4)]


def table(**columns: Any) -> Callable[[Path], int]:
    def write(folder: Path) -> int:
        write_table(folder / "part 0.parquet", image=IMAGES, caption=[*"abcd"], **columns)
        write_table(folder / "deep/part 1.parquet", image=IMAGES[:1], caption=["e"])
        fill(folder, {"._part 0.parquet": b"x", "_SUCCESS": b"", "_delta_log/0.checkpoint.parquet": b"x"})
        return 5

    return write


INPUTS: dict[str, tuple[Callable[[Path], int], dict[str, Any]]] = {
    "ours": (ours, {}),
    "ours, joined": (ours, {"rows_per_shard": 10}),
    "img2dataset": (img2dataset, {}),
    "img2dataset, joined": (img2dataset, {"rows_per_shard": 10}),
    "tars of any name": (any_names, {}),
    "tars of any name, joined": (any_names, {"rows_per_shard": 10}),
    "captions in json": (json_captions, {"caption_key": "meta.text"}),
    "captions beside the tar": (captions_beside_the_tar, {"caption_column": "text"}),
    "captions beside the tar, joined": (captions_beside_the_tar, {"caption_column": "text", "rows_per_shard": 9}),
    "image folder": (image_folder, {"caption_column": "text"}),
    "folders in a tar": (nested_tar, {}),
    "tars that count from 0": (counted_from_0, {}),
    "tars that count from 0, joined": (counted_from_0, {"rows_per_shard": 5}),
    "a tar with a key several times": (repeated_in_one_tar, {}),
    "files": (files, {}),
    "files, in shards": (files, {"rows_per_shard": 3}),
    "table without keys": (table(), {}),
    "table with keys": (table(key=[*"wxyz"]), {}),
    "table with keys of numbers": (table(key=[1, 2, 3, 4]), {"rows_per_shard": 3}),
    "table with several captions an image": (table(key=["i1", "i1", "i2", "i2"]), {"rows_per_shard": 3}),
    "table with null keys": (table(key=[None, None, "2", "2"]), {}),
    "table with no key but null": (table(key=pa.nulls(4)), {}),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_sample_is_a_row_or_a_named_failure(kind: str, tmp_path: Path, run: Callable[..., Accounts]) -> None:
    write, settings = INPUTS[kind]
    samples = write(tmp_path / "in")
    assert run(**settings).outcomes == samples


def test_keys_of_folders_in_a_tar_are_webdatasets(tmp_path: Path, run: Callable[..., Accounts]) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    names = ["cat/0000", "dog/0000", "a.b/c/0", "flat"]
    fill(tmp_path / "in", {"00000.tar": tar_bytes(pairs(*names))})
    with (tmp_path / "in/00000.tar").open("rb") as file:
        theirs = [
            sample["__key__"] for sample in group_by_keys({**one, "__url__": ""} for one in tar_file_iterator(file))
        ]
    assert run().metadata["key"] == theirs == names


def test_joined_tars_that_count_from_0_keep_what_is_known_of_each_row(
    tmp_path: Path, run: Callable[..., Accounts]
) -> None:
    """Although a row of the first has failed whose key the second has, and an image of the second cannot be read."""
    keys = ["0000", "0001", "0002"]
    fill(tmp_path / "in", {"00000.tar": tar_bytes(pairs(*keys[1:]))})
    damaged = [("0000.png", b"no image"), ("0000.txt", b"bad"), *pairs("0002", first=5), *pairs("0001", first=6)]
    fill(tmp_path / "in", {"00001.tar": tar_bytes(damaged)})
    for number, status in enumerate((["timeout", "success", "success"], ["success"] * 3)):
        sources = [f"{number}-{key}" for key in keys]
        write_table(tmp_path / f"in/0000{number}.parquet", key=keys, status=status, source=sources)
    found = run(rows_per_shard=10)
    assert found.metadata["key"] == ["0001", "0002", "0002", "0001"]
    assert found.metadata["source"] == ["0-0001", "0-0002", "1-0002", "1-0001"]
    assert [key for key, _ in found.failures] == ["0000"]


SEVERAL: dict[str, dict[str, Any]] = {
    "list in a table": {},
    "list in json": {"caption_key": "caption"},
    "rows beside the tar": {"caption_column": "text"},
    "rows of an image folder": {"caption_column": "text"},
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_each_caption_of_an_image_is_a_row_with_the_embedding_of_the_image(
    kind: str, tmp_path: Path, run: Callable[..., Accounts]
) -> None:
    """The captions a, b of the first image, c of the second, and an image that fails."""
    pictures, folder = [picture(0), picture(1), b"no image"], tmp_path / "in"
    captions = [["a", "b"], ["c"], ["d", "e"]]
    members = [(f"{row}.png", image) for row, image in enumerate(pictures)]
    rows = [(str(row), text) for row, texts in enumerate(captions) for text in texts]
    described = {"text": [text for _, text in rows], "note": [f"note {text}" for _, text in rows]}
    if kind == "list in a table":
        write_table(folder / "a.parquet", key=[*"012"], image=pictures, caption=captions, note=["n0", "n1", "n2"])
    elif kind == "list in json":
        written = [(f"{row}.json", json.dumps({"caption": texts}).encode()) for row, texts in enumerate(captions)]
        fill(folder, {"a.tar": tar_bytes(sorted([*members, *written]))})
    elif kind == "rows beside the tar":
        fill(folder, {"a.tar": tar_bytes(members)})
        write_table(folder / "a.parquet", key=[key for key, _ in rows], **described)
    else:
        fill(folder, dict(members))
        write_table(folder / "metadata.parquet", file_name=[f"{key}.png" for key, _ in rows], **described)
    found = run(expanded=1, **SEVERAL[kind])
    assert (found.metadata["key"], found.metadata["caption"]) == (["0", "0", "1"], ["a", "b", "c"])
    assert [(key, reason.partition(":")[0]) for key, reason in found.failures] == [("2", "image_decode")]
    image, text = (np.load(found.folder / f"{name}/{name}_0000.npy") for name in ("img_emb", "text_emb"))
    assert (image[0] == image[1]).all()
    assert not any((one[0] == one[2]).all() for one in (image, text))
    assert not (text[0] == text[1]).all()
    if kind == "list in a table":
        assert found.metadata["note"] == ["n0", "n0", "n1"]
    elif kind != "list in json":
        assert found.metadata["note"] == ["note a", "note b", "note c"]


def test_tars_that_follow_are_added_and_one_that_is_inserted_moves_the_others(
    tmp_path: Path, run: Callable[..., Accounts]
) -> None:
    folder = tmp_path / "in"
    fill(folder, {f"t-{number}.tar": tar_bytes(pairs(f"{number}", first=number)) for number in (2, 9)})
    assert run().result.done_now == 2
    fill(folder, {"t-10.tar": tar_bytes(pairs("10", first=10))})
    found = run()
    assert (found.result.done_now, found.result.notes) == (1, [])
    assert found.metadata["key"] == ["2", "9", "10"]
    fill(folder, {"t-3.tar": tar_bytes(pairs("3", first=3))})
    found = run()
    assert (found.result.done_now, found.metadata["key"]) == (3, ["2", "3", "9", "10"])
    assert found.result.notes[0].startswith("2 shards, from 0001 on, had been made from other files")
    (folder / "t-2.tar").unlink()
    with pytest.raises(PriorkitError, match=r"holds shard 0003, for which .* has no input"):
        run()


@pytest.mark.parametrize("names", [["cat/0", "dog/1"], ["0", "1"], [0, 1]], ids=str)
def test_a_table_is_joined_by_keys_with_or_without_folders(
    tmp_path: Path, run: Callable[..., Accounts], names: list[Any]
) -> None:
    fill(tmp_path / "in", {"00000.tar": tar_bytes(pairs("dog/1", "cat/0"))})
    write_table(tmp_path / "in/00000.parquet", key=names, source=["cat", "dog"])
    found = run()
    assert found.metadata["key"] == ["dog/1", "cat/0"]
    assert found.metadata["source"] == ["dog", "cat"]


def test_a_plain_key_that_may_be_of_two_folders_is_refused(tmp_path: Path, run: Callable[..., Accounts]) -> None:
    fill(tmp_path / "in", {"00000.tar": tar_bytes(pairs("dog/1", "cat/1"))})
    write_table(tmp_path / "in/00000.parquet", key=["1"], source=["cat"])
    with pytest.raises(InputError, match=r"'1' once, which may be that of 'dog/1' or of 'cat/1'"):
        run()


VIEW = pa.array(["u", "v"], pa.string_view())
SIDE_COLUMNS: dict[str, Any] = {
    "numbers as status": {"status": [200, 404]},
    "other words as status": {"status": ["ok", "ok"]},
    "booleans as status": {"status": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8()))},
    "views": {"status": pa.array(["success"] * 2, pa.string_view()), "url": VIEW, "raw": VIEW.cast(pa.binary_view())},
    "views in lists": {"tags": pa.array([["a"], ["b"]], pa.list_(pa.string_view()))},
    "categories": {
        "status": pa.array(["success"] * 2).dictionary_encode(),
        "lang": pa.array(["en", "de"]).dictionary_encode(),
    },
    "text that is no UTF-8": {"url": pa.array([b"\xff", b"b"]).view(pa.string())},
    "keys in a view": {"key": pa.array(["0", "1"], pa.string_view())},
    "keys as categories": {"key": pa.array(["0", "1"]).dictionary_encode()},
    "keys as bytes": {"key": [b"0", b"1"]},
    "no keys": {"key": pa.nulls(2)},
    "keys in lists": {"key": [["0"], ["1"]]},
    "fewer rows than samples": {"key": ["0", "2"]},
    "more successes than samples": {"key": ["0", "1", "2"], "status": ["success"] * 3},
}
REFUSED = {
    "no keys": "has no row of key '0'",
    "keys in lists": "holds list.*not names",
    "fewer rows than samples": "'1'",
}


@pytest.mark.parametrize("kind", SIDE_COLUMNS)
def test_any_table_beside_a_tar_is_handled_or_a_clear_error(
    tmp_path: Path, run: Callable[..., Accounts], embed_settings: EmbedSettings, kind: str
) -> None:
    fill(tmp_path / "in", {"00000.tar": tar_bytes(pairs("0", "1"))})
    write_table(tmp_path / "in/00000.parquet", **{"key": ["0", "1"], **SIDE_COLUMNS[kind]})
    inspect_folder(str(tmp_path / "in"))
    if kind in REFUSED:
        with pytest.raises(InputError, match=REFUSED[kind]):
            run()
        return
    found = run()
    assert found.metadata["key"] == ["0", "1"]
    lost = [reason for _, reason in found.failures]
    if kind == "more successes than samples":
        assert lost == ["damaged_shard: 00000.tar has 2 of the 3 samples that it should have"]
    else:
        assert lost == []


@pytest.mark.parametrize("name", ["00000.parquet", "t.parquet"])
def test_a_column_that_a_table_names_twice_is_refused_before_any_work(
    tmp_path: Path, run: Callable[..., Accounts], name: str
) -> None:
    if name == "00000.parquet":
        fill(tmp_path / "in", {"00000.tar": tar_bytes(pairs("0"))})
    (tmp_path / "in").mkdir(exist_ok=True)
    columns = [pa.array(["0"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.table(columns, names=["key", "caption", "caption"]), tmp_path / "in" / name)
    with pytest.raises(PriorkitError, match=rf"{name} has several columns 'caption'"):
        run(image=name == "00000.parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "captions",
    [
        pa.array(["a", "b", "a", None]).dictionary_encode(),
        pa.array(["a", "b", "a", None], pa.string_view()),
        pa.array(["a", "b", "a", None], pa.large_string()),
    ],
    ids=lambda captions: str(captions.type),
)
def test_captions_are_read_however_a_table_stores_text(
    tmp_path: Path, run: Callable[..., Accounts], captions: pa.Array
) -> None:
    write_table(tmp_path / "in/a.parquet", image=[row["bytes"] for row in IMAGES], caption=captions, view=captions)
    found = run()
    assert found.metadata["caption"] == found.metadata["view"] == ["a", "b", "a"]
    assert [reason.partition(":")[0] for _, reason in found.failures] == ["missing_caption"]


def named_members(folder: Path) -> None:
    fill(folder, {"00000.tar": tar_bytes([("s0.input.png", picture(0)), ("s0.outputs.txt", b"thing")])})


def captions_in_json(folder: Path) -> None:
    fill(folder, {"00000.tar": tar_bytes([("0.png", picture(0)), ("0.json", b'{"caption": "a"}')])})


def captions_after_images(folder: Path) -> None:
    members = pairs("0", "1")
    fill(folder, {"00000.tar": tar_bytes([*members[::2], *members[1::2]])})


def known_but_apart(folder: Path) -> None:
    captions_after_images(folder)
    write_table(folder / "00000.parquet", key=["0", "1"], status=["success"] * 2)


def paths(folder: Path) -> None:
    write_table(folder / "a.parquet", image=[{"bytes": None, "path": "images/0.jpg"}] * 2, caption=["a", "b"])


def one_path(folder: Path) -> None:
    rows = [{"bytes": None, "path": "images/0.jpg"}] * 2 + [{"bytes": b"no image", "path": None}]
    write_table(folder / "a.parquet", image=rows, caption=[*"abc"])


def images_of_another_kind(folder: Path) -> None:
    fill(folder, {"a.heic": b"x", "a.txt": b"a", "b.txt": b"b", "c.png": picture(0)})


MESSAGES: dict[Callable[[Path], None], str] = {
    captions_after_images: r"00000\.tar: the files of a sample do not stand together; .*tar --sort=name.*'0'",
    known_but_apart: r"sample '0': not_together: .*tar --sort=name",
    named_members: r"set embed\.image_extensions=\[input\.png\]; set embed\.caption_extension=outputs\.txt",
    captions_in_json: r"set embed\.caption_key=caption \(its keys are caption\)",
    paths: r"column 'image' has no image in any row; if the table holds paths, not images, embed the folder",
    one_path: "the table holds the path 'images/0.jpg', not the image",
    images_of_another_kind: r"missing_image: the sample has \.heic, \.txt",
}


@pytest.mark.parametrize("write", MESSAGES, ids=lambda write: write.__name__)
def test_an_input_that_gives_no_row_is_told_why(
    tmp_path: Path, run: Callable[..., Accounts], write: Callable[[Path], None]
) -> None:
    write(tmp_path / "in")
    with pytest.raises(PriorkitError, match=MESSAGES[write]):
        run()


def test_files_that_stand_apart_are_each_a_named_failure(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    """Where the table has said how many samples there are, so that no one has looked for it before."""
    known_but_apart(tmp_path / "in")
    fill(tmp_path / "in", {"00001.tar": tar_bytes(pairs("2"))})
    write_table(tmp_path / "in/00001.parquet", key=["2"], status=["success"])
    result = embed(str(tmp_path / "in"), str(tmp_path / "out"), embed_settings)
    assert result.counts == {"success": 1, "missing_caption": 2, "not_together": 2}
    assert "2 samples: the files of a sample do not stand together" in result.notes[0]


def test_fewer_outcomes_than_samples_are_an_error(
    tmp_path: Path, run: Callable[..., Accounts], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "in", dict(pairs("a", "b")))
    monkeypatch.setattr("priorkit.pipeline.embed.file_pairs.FileShard.read", lambda shard, store: iter(()))
    with pytest.raises(InputError, match="accounts for 0 of the 2 samples of its input"):
        run()
    assert read_manifest(Store(str(tmp_path / "out"))) is not None
