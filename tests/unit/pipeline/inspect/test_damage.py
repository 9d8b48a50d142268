"""Damage in otherwise sound folders: each kind is named by shard and row, with exit code 1."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

DIM, WIDTH, ROWS, SHARDS = 32, 4, 60, 3
Change = Callable[[Any], Any]
Damage = Callable[[Path], None]
MakeFolder = Callable[[], Path]


def inspect(folder: Path) -> tuple[int, Any]:
    """Return the exit code and the JSON of the command."""
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def write_shards(folder: Path, digits: int = 4, columns: tuple[str, ...] = ("image_path", "caption")) -> None:
    """Write arrays and metadata as clip-retrieval does, with texts near their images."""
    for shard in range(SHARDS):
        random = np.random.default_rng(shard)
        image = random.normal(size=(ROWS, DIM))
        arrays = {"img_emb": unit(image), "text_emb": unit(image + 0.5 * random.normal(size=(ROWS, DIM)))}
        number = f"{shard:0{digits}d}"
        for kind, values in arrays.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / kind / f"{kind}_{number}.npy", values)
        keys = [f"{shard:05d}{row:04d}" for row in range(ROWS)]
        table = {name: [f"a caption of {key}" for key in keys] if name == "caption" else keys for name in columns}
        (folder / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{number}.parquet")


def record(folder: Path) -> None:
    """Update the manifest to the bytes of the files, as if a faulty program had written and recorded them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"].values():
        for name in entry["files"]:
            if (folder / name).exists():
                data = (folder / name).read_bytes()
                entry["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder as `embed` writes it, with token states, norms and failures; tests get copies."""
    folder = tmp_path_factory.mktemp("sound") / "ours"
    write_shards(folder, columns=("image_path", "caption", "key"))
    (folder / "token_states").mkdir()
    (folder / "failures").mkdir()
    shards = {}
    for shard in range(SHARDS):
        name = f"{shard:04d}"
        lengths = 1 + np.arange(ROWS) % 3
        np.save(folder / f"token_states/token_states_{name}.npy", np.ones((lengths.sum(), WIDTH), np.float16))
        np.save(folder / f"token_states/offsets_{name}.npy", np.cumsum([0, *lengths]))
        path = folder / f"metadata/metadata_{name}.parquet"
        norms = pa.array(np.full(ROWS, 9.5, np.float32))
        pq.write_table(pq.read_table(path).append_column("image_norm", norms).append_column("text_norm", norms), path)
        failures = pa.table({"key": ["lost"], "error": ["missing_caption"]})
        pq.write_table(failures, folder / f"failures/failures_{name}.parquet")
        files = [path.relative_to(folder).as_posix() for path in folder.rglob(f"*_{name}.*")]
        shards[name] = {
            "name": name, "rows": ROWS, "input": "", "settings": "", "counts": {"success": ROWS, "missing_caption": 1},
            "logs": [], "files": {file: {"bytes": 0, "sha256": ""} for file in sorted(files)},
        }  # fmt: skip
    manifest = {
        "format_version": 1, "stage": "embed", "settings": {"token_states": True}, "input": {"shards": SHARDS},
        "about": {"clip": {"embed_dim": DIM, "token_width": WIDTH}, "clip_settings": {"model": "none"}},
        "shards": shards,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    record(folder)
    return folder


@pytest.fixture
def ours(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "ours")


@pytest.fixture
def clip_retrieval(tmp_path: Path) -> Path:
    folder = tmp_path / "clip_retrieval"
    write_shards(folder, digits=1)
    return folder


def encoded(width: int = 24, height: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (width, height, 9)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def img2dataset(tmp_path: Path) -> Path:
    """Two shards of five rows, the third of which failed, with tables and statistics."""
    folder = tmp_path / "img2dataset"
    folder.mkdir()
    for shard in range(2):
        keys = [f"{shard:05d}{row:04d}" for row in range(5)]
        done = [row != 2 for row in range(5)]
        table = {
            "key": keys,
            "caption": [f"caption {key}" for key in keys],
            "status": ["success" if ok else "failed_to_download" for ok in done],
            "error_message": [None if ok else "HTTP Error 404: Not Found" for ok in done],
            "width": [24 if ok else None for ok in done],
            "height": [16 if ok else None for ok in done],
            "original_width": [48 if ok else None for ok in done],
        }
        pq.write_table(pa.table(table), folder / f"{shard:05d}.parquet")
        good = [key for key, ok in zip(keys, done, strict=True) if ok]
        samples = [((f"{key}.jpg", encoded()), (f"{key}.txt", f"caption {key}".encode())) for key in good]
        write_tar(folder / f"{shard:05d}.tar", [member for sample in samples for member in sample])
        status = {"success": 4, "HTTP Error 404: Not Found": 1}
        statistics = {"count": 5, "successes": 4, "failed_to_download": 1, "status_dict": status}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(statistics))
    return folder


def array(name: str, change: Change) -> Damage:
    """Damage an array: `change` changes its values, or returns others."""

    def damage(folder: Path) -> None:
        values = np.load(folder / name)
        changed = change(values)
        np.save(folder / name, values if changed is None else changed)

    return damage


def row(number: int, value: Any) -> Change:
    return lambda values: values.__setitem__(number, value)


def table(name: str, change: Change) -> Damage:
    """Damage a parquet file."""
    return lambda folder: pq.write_table(change(pq.read_table(folder / name)), folder / name)


def column(name: str, number: int, value: Any) -> Change:
    """Put another value into one row of a column."""

    def change(rows: pa.Table) -> pa.Table:
        values = rows[name].to_pylist()
        values[number] = value
        return rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, rows.schema.field(name).type))

    return change


def not_utf8(name: str) -> Change:
    """Put bytes that are not UTF-8 into a column of text, which pyarrow reads without an error."""

    def change(rows: pa.Table) -> pa.Table:
        values = pa.array([b"\xff", *(str(value).encode() for value in rows[name].to_pylist()[1:])])
        return rows.set_column(rows.schema.get_field_index(name), name, values.view(pa.string()))

    return change


def content(name: str, change: Change) -> Damage:
    """Damage the bytes of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def copy(name: str, to: str) -> Damage:
    return lambda folder: (folder / to).write_bytes((folder / name).read_bytes()) and None


def swap(one: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
        (folder / one).write_bytes(second)
        (folder / other).write_bytes(first)

    return damage


def forget(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"]["0001"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in folder.rglob("*_0001.*"):
        path.unlink()


IMAGE, TEXT, META = "img_emb/img_emb_0001.npy", "text_emb/text_emb_0001.npy", "metadata/metadata_0001.parquet"
STATES, OFFSETS = "token_states/token_states_0001.npy", "token_states/offsets_0001.npy"
FAILURES = "failures/failures_0001.parquet"

RECORDED_DAMAGE: dict[str, tuple[Damage, list[str]]] = {
    "NaN": (array(IMAGE, row(7, np.nan)), ["shard 0001, row 7: image embedding holds NaN"]),
    "infinity": (array(TEXT, row((8, 3), np.inf)), ["shard 0001, row 8: text embedding holds infinity"]),
    "zeros": (array(IMAGE, row(0, 0)), ["shard 0001, row 0: image embedding is all zeros"]),
    "no unit vector": (array(TEXT, lambda v: v.__setitem__(59, v[59] * 1.5)), ["shard 0001, row 59: ", "norm 1.5"]),
    "rows missing": (array(IMAGE, lambda v: v[:-1]), ["shard 0001: ", IMAGE, "has 59 rows, its record says 60"]),
    "another size": (array(TEXT, lambda v: v[:, :-1]), ["shard 0001: ", TEXT, "embeddings of 31", "manifest says 32"]),
    "not an array": (content(IMAGE, lambda data: b"no array" + data[8:]), ["shard 0001: ", IMAGE, "not an array"]),
    "cut array": (content(IMAGE, lambda data: data[:-9]), ["shard 0001: ", IMAGE, "bytes instead of"]),
    "pickled array": (array(IMAGE, lambda v: v.astype(object)), ["shard 0001: ", IMAGE, "object"]),
    "texts of another shard": (swap(TEXT, TEXT.replace("0001", "0002")), ["shard 0001, rows 0 to 59: ", "belong"]),
    "shifted texts": (array(TEXT, lambda v: np.roll(v, 1, axis=0)), ["shard 0001, rows 0 to 59: ", "shifted"]),
    "shifted keys": (table(META, column("key", 5, "000019999")), ["shard 0001, row 5: ", "'000019999'"]),
    "no key": (table(META, column("key", 6, None)), ["shard 0001, row 6: no key"]),
    "no column of keys": (table(META, lambda t: t.drop_columns(["key", "image_path"])), ["shard 0001: ", "'key'"]),
    "no captions": (table(META, lambda t: t.drop_columns(["caption"])), ["shard 0001: ", META, "no column 'caption'"]),
    "captions of numbers": (table(META, lambda t: t.set_column(1, "caption", pa.array(range(ROWS)))),
                            ["shard 0001: ", "holds int64, not text"]),
    "bad norm": (table(META, column("text_norm", 3, float("nan"))), ["shard 0001, row 3: text_norm is nan"]),
    "metadata short": (table(META, lambda t: t.slice(1)), ["shard 0001: ", META, "59 rows, its record says 60"]),
    "metadata cut": (content(META, lambda data: data[:-30]), ["shard 0001: ", META, "is damaged"]),
    "metadata damaged inside": (content(META, lambda data: data[:4] + b"\xff" * 300 + data[304:]),
                                ["shard 0001: ", META, "is damaged"]),
    "states of NaN": (array(STATES, row((6, 1), np.nan)), ["shard 0001, row 3: token states hold NaN"]),
    "states short": (array(STATES, lambda v: v[:-2]), ["shard 0001, row 59: ", "has 118", "ends at 120"]),
    "offsets go back": (array(OFFSETS, row(5, 2)), ["shard 0001, row 4: ", "goes from 7 to 2"]),
    "offsets start late": (array(OFFSETS, row(0, 1)), ["shard 0001, row 0: ", "starts at 1"]),
    "offsets short": (array(OFFSETS, lambda v: v[:-1]), ["shard 0001: ", OFFSETS, "instead of 61 whole numbers"]),
    "offsets of floats": (array(OFFSETS, lambda v: v.astype(float)), ["shard 0001: ", OFFSETS, "float64"]),
    "failures short": (table(FAILURES, lambda t: t.slice(1)), ["shard 0001: ", "0 rows, its record says 1"]),
    "missing file": (remove(TEXT), [f"shard 0001: {TEXT} is missing"]),
    "missing metadata": (remove(META), [f"shard 0001: {META} is missing"]),
    "extra file": (copy(IMAGE, "img_emb/img_emb_0003.npy"), ["img_emb/img_emb_0003.npy is in no record"]),
    "missing shard": (forget, ["holds 2 of 3 shards"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDED_DAMAGE)
def test_damage_in_recorded_embeddings_is_named(ours: Path, kind: str) -> None:
    """Damage is found even if the records agree with the damaged files."""
    damage, named = RECORDED_DAMAGE[kind]
    damage(ours)
    record(ours)
    code, found = inspect(ours)
    assert code == 1
    assert any(all(part in problem for part in named) for problem in found["problems"]), found["problems"]
    # nothing else is blamed
    assert all("0001" in problem or "0002, rows" in problem or "in no record" in problem or "of 3 shards" in problem
               for problem in found["problems"]), found["problems"]  # fmt: skip
    assert found["problem_count"] == len(found["problems"])


def test_a_repeated_key_is_noted(ours: Path) -> None:
    """A repeated key is no damage: the input may have several captions of an image."""
    change = column("key", 9, "000010004")
    table(META, lambda rows: column("image_path", 9, "000010004")(change(rows)))(ours)
    record(ours)
    code, found = inspect(ours)
    assert (code, found["problems"]) == (0, [])
    expected = "1 rows have the key of an earlier one, such as shard 0001, row 9 and shard 0001, row 4"
    assert expected in found["notes"]


def test_bytes_that_differ_from_the_record_are_named(ours: Path) -> None:
    for name in (IMAGE, META, OFFSETS, FAILURES):
        whole = (ours / name).read_bytes()
        (ours / name).write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        code, found = inspect(ours)
        assert (code, found["problems"]) == (1, [f"shard 0001: {name} differs from what was committed"])
        (ours / name).write_bytes(whole)
    assert inspect(ours)[0] == 0


def test_a_damaged_manifest_is_named(ours: Path) -> None:
    path = ours / "manifest.json"
    whole = path.read_text()
    for content in (whole[:-40], "[]", whole.replace('"rows": 60', '"rows": "60"'), whole.replace("img_emb/", "../")):
        path.write_text(content)
        result = CliRunner().invoke(app, ["inspect", str(ours), "--json"])
        assert result.exit_code == 1
        assert "manifest" in result.stderr
        assert result.stderr.startswith("error: ")


IMAGE_1, TEXT_1, META_1 = "img_emb/img_emb_1.npy", "text_emb/text_emb_1.npy", "metadata/metadata_1.parquet"
CLIP_RETRIEVAL_DAMAGE: dict[str, tuple[Damage, list[str]]] = {
    "NaN": (array(IMAGE_1, row((7, 2), np.nan)), ["shard 1, row 7: image embedding holds NaN"]),
    "zeros": (array(TEXT_1, row(8, 0)), ["shard 1, row 8: text embedding is all zeros"]),
    "no unit vector": (array(IMAGE_1, lambda v: v.__setitem__(9, v[9] / 2)), ["shard 1, row 9: ", "norm 0.5"]),
    "missing images": (remove(IMAGE_1), [IMAGE_1, "is missing, though there is metadata/metadata_1.parquet"]),
    "missing texts": (remove(TEXT_1), [TEXT_1, "is missing, though there is img_emb/img_emb_1.npy"]),
    "missing metadata": (remove(META_1), [META_1, "is missing"]),
    "extra texts": (copy(TEXT_1, "text_emb/text_emb_7.npy"), ["img_emb_7.npy is missing, though there is text_emb"]),
    "two of a number": (copy(TEXT_1, "text_emb/text_emb_01.npy"), ["text_emb_01.npy", "the same number"]),
    "no number": (copy(TEXT_1, "text_emb/copy.npy"), ["text_emb/copy.npy is not named"]),
    "texts short": (array(TEXT_1, lambda v: v[1:]), ["shard 1: ", TEXT_1, f"has 59 rows, {IMAGE_1} has 60"]),
    "metadata short": (table(META_1, lambda t: t.slice(1)), ["shard 1: ", META_1, "59 rows"]),
    "another size": (array(TEXT_1, lambda v: v[:, 1:]), ["shard 1: ", TEXT_1, "embeddings of 31"]),
    "cut array": (content(TEXT_1, lambda data: data[:-1]), ["shard 1: ", TEXT_1, "bytes instead of"]),
    "cut metadata": (content(META_1, lambda data: data[:-1]), ["shard 1: ", META_1, "is damaged"]),
    "no captions": (table(META_1, lambda t: t.drop_columns(["caption"])), ["shard 1: ", META_1, "'caption'"]),
    "texts of another shard": (swap(TEXT_1, "text_emb/text_emb_2.npy"), ["shard 1, rows 0 to 59: ", "belong"]),
    "header of an array": (content(TEXT_1, lambda data: data[:10] + b"\xff" * 30 + data[40:]),
                           ["shard 1: ", TEXT_1, "is not an array of numbers"]),
    "beyond all numbers": (array(IMAGE_1, lambda v: v.astype(np.float32) * 1e30), ["shard 1, row 0: ", "norm inf"]),
    "names that are no text": (table(META_1, not_utf8("image_path")), ["shard 1: ", META_1, "is damaged", "UTF8"]),
    "captions that are no text": (table(META_1, not_utf8("caption")), ["shard 1: ", META_1, "is damaged", "UTF8"]),
    "lists of names": (table(META_1, lambda t: t.set_column(0, "image_path", pa.array([["x"]] * ROWS))),
                       ["shard 1: ", "'image_path' holds list", "not text"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLIP_RETRIEVAL_DAMAGE)
def test_damage_in_embeddings_of_clip_retrieval_is_named(clip_retrieval: Path, kind: str) -> None:
    damage, named = CLIP_RETRIEVAL_DAMAGE[kind]
    damage(clip_retrieval)
    code, found = inspect(clip_retrieval)
    assert code == 1
    assert any(all(part in problem for part in named) for problem in found["problems"]), found["problems"]
    assert not [problem for problem in found["problems"] if "shard 0" in problem], found["problems"]


def all_damage(folder: Path) -> None:
    for name in ("NaN", "no number", "extra texts"):
        CLIP_RETRIEVAL_DAMAGE[name][0](folder)
    array("text_emb/text_emb_0.npy", row(3, 0))(folder)
    content("metadata/metadata_2.parquet", lambda data: data[:50])(folder)


def test_one_problem_hides_no_other(clip_retrieval: Path) -> None:
    all_damage(clip_retrieval)
    problems = "\n".join(inspect(clip_retrieval)[1]["problems"])
    for named in ("shard 1, row 7", "copy.npy", "img_emb_7.npy is missing", "shard 0, row 3",
                  "metadata_2.parquet is damaged"):  # fmt: skip
        assert named in problems, named


def members(folder: Path, name: str) -> list[tuple[str, bytes]]:
    with tarfile.open(folder / name) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def tar(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Damage:
    """Damage the second tar: `change` gets its members, an image and a caption in turn."""
    return lambda folder: write_tar(folder / "00001.tar", change(members(folder, "00001.tar")))


def member(number: int, data: bytes) -> Damage:
    return tar(lambda old: [*old[:number], (old[number][0], data), *old[number + 1 :]])


IMAGE_DAMAGE: dict[str, tuple[Damage, list[str]]] = {
    "cut tar": (content("00001.tar", lambda data: data[:1600]), ["shard 00001, after ", "00001.tar is damaged"]),
    "no tar": (content("00001.tar", lambda data: b"none" * 500), ["shard 00001, after 0 samples", "is damaged"]),
    "missing tar": (remove("00001.tar"), ["shard 00001: 00001.tar is missing"]),
    "missing table": (remove("00001.parquet"), ["shard 00001: 00001.parquet is missing"]),
    "cut table": (content("00001.parquet", lambda data: data[:-1]), ["shard 00001: ", "00001.parquet is damaged"]),
    "image missing": (tar(lambda old: [*old[:2], *old[3:]]), ["shard 00001, row 1: sample '000010001' has no image"]),
    "sample missing": (tar(lambda old: old[:-2]), ["shard 00001: 3 images, its parquet says 4"]),
    "sample too many": (tar(lambda old: [*old, ("000010009.jpg", encoded())]), ["shard 00001, row 5: ", "'000010009'"]),
    "another sample": (tar(lambda old: [*old[:4], ("x.jpg", encoded()), ("x.txt", b""), *old[6:]]),
                       ["shard 00001, row 3: the tar has key 'x' where its parquet has '000010003'"]),
    "empty image": (member(4, b""), ["shard 00001, row 3: sample '000010003' has an empty image"]),
    "no image": (member(4, b"<html>no image</html>"), ["shard 00001, row 3: ", "'000010003' cannot be read"]),
    "another size": (member(0, encoded(32, 32)), ["shard 00001, row 0: ", "is 32x32, its table says 24x16"]),
    "another caption": (member(7, b"of another"), ["shard 00001, row 4: the caption of '000010004'"]),
    "tar of another shard": (copy("00000.tar", "00001.tar"), ["shard 00001, row 0: ", "'000000000'", "'000010000'"]),
    "keys that are no text": (table("00001.parquet", not_utf8("key")), ["shard 00001: ", "00001.parquet is damaged"]),
    "statistics": (content("00001_stats.json", lambda data: data.replace(b"4", b"3")), ["shard 00001: ", "3 images"]),
    "cut statistics": (content("00001_stats.json", lambda data: data[:9]), ["shard 00001: ", "is damaged"]),
    "no table": (copy("00001.tar", "extra.tar"), ["shard extra: extra.parquet is missing"]),
    "same name": (copy("00001.tar", "00001.tgz"), ["00001.tgz: 00001.tar is there too"]),
    "compression": (copy("00001.tar", "2.tar.xz"), ["2.tar.xz: its compression is not read; unpack it by `unxz"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGE_DAMAGE)
def test_damage_in_images_of_img2dataset_is_named(img2dataset: Path, kind: str) -> None:
    damage, named = IMAGE_DAMAGE[kind]
    damage(img2dataset)
    code, found = inspect(img2dataset)
    assert code == 1
    assert any(all(part in problem for part in named) for problem in found["problems"]), found["problems"]
    assert not [problem for problem in found["problems"] if "00000" in problem.split(":")[0]], found["problems"]


@pytest.fixture
def our_images(img2dataset: Path) -> Path:
    """Folder with the same images, as `download` writes it."""
    shards = {}
    for name in ("00000", "00001"):
        files = {f"{name}.{ending}": {"bytes": 0, "sha256": ""} for ending in ("parquet", "tar")}
        shards[name] = {
            "name": name, "rows": 5, "input": "", "settings": "", "counts": {"success": 4, "http_4xx": 1},
            "logs": [f"{name}_stats.json"], "files": files,
        }  # fmt: skip
    manifest = {"format_version": 1, "stage": "download", "settings": {}, "input": {"rows": 10}, "about": {}}
    (img2dataset / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
    record(img2dataset)
    return img2dataset


FOREIGN_ONLY = ("statistics", "cut statistics", "no table", "same name", "compression")


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_DAMAGE if kind not in FOREIGN_ONLY])
def test_damage_in_recorded_images_is_named(our_images: Path, kind: str) -> None:
    damage, named = IMAGE_DAMAGE[kind]
    damage(our_images)
    record(our_images)
    code, found = inspect(our_images)
    assert code == 1
    assert any(all(part in problem for part in named) for problem in found["problems"]), found["problems"]


def test_keys_order_counts_and_files_of_recorded_images_are_checked(our_images: Path) -> None:
    for damage, named in (
        (
            table("00001.parquet", column("key", 4, "000000004")),
            "row 4: has the key of shard 00000, row 4",
        ),
        (tar(lambda old: [*old[2:4], *old[:2], *old[4:]]), "shard 00001, row 0: the tar has key '000010001' where"),
        (table("00001.parquet", lambda t: t.slice(0, 4)), "shard 00001: 00001.parquet has 4 rows, its record says 5"),
        (table("00001.parquet", column("status", 4, "failed_to_resize")), "has 3 images, its record says 4"),
        (copy("00001.tar", "00002.tar"), "00002.tar is in no record"),
    ):
        before = {path: path.read_bytes() for path in our_images.iterdir()}
        damage(our_images)
        record(our_images)
        code, found = inspect(our_images)
        assert code == 1
        assert any(named in problem for problem in found["problems"]), found["problems"]
        for path in our_images.iterdir():
            path.write_bytes(before[path]) if path in before else path.unlink()
    assert inspect(our_images)[0] == 0
    manifest = json.loads((our_images / "manifest.json").read_text())
    manifest["input"]["rows"] = 11
    (our_images / "manifest.json").write_text(json.dumps(manifest))
    assert "holds 10 of 11 rows" in inspect(our_images)[1]["problems"][0]


def test_sound_folders_have_exit_code_0(ours: Path, clip_retrieval: Path, our_images: Path) -> None:
    for folder, rows in ((ours, 180), (clip_retrieval, 180), (our_images, 10)):
        code, found = inspect(folder)
        assert (code, found["problems"], found["rows"]) == (0, [], rows)
        assert CliRunner().invoke(app, ["inspect", str(folder)]).exit_code == 0
    (our_images / "manifest.json").unlink()
    code, found = inspect(our_images)
    assert (code, found["problems"], found["counts"]) == (0, [], {"success": 8, "failed_to_download": 2})
    assert found["errors"] == {"HTTP Error 404: Not Found": 2}


def test_folders_that_the_reader_refuses_are_damaged(ours: Path, clip_retrieval: Path) -> None:
    """Also the reverse: the reader opens folders without problems."""
    for folder in (ours, clip_retrieval):
        assert inspect(folder)[0] == 0
        assert read_embeddings(str(folder)).count == 180


def test_tars_without_tables_are_sound(img2dataset: Path) -> None:
    for path in [*img2dataset.glob("*.parquet"), *img2dataset.glob("*.json")]:
        path.unlink()
    code, found = inspect(img2dataset)
    assert (code, found["rows"], found["counts"]) == (0, 8, {"success": 8})
    assert "parquet" not in json.dumps(found)
    member(0, b"no image")(img2dataset)
    code, found = inspect(img2dataset)
    assert code == 1
    assert found["problems"] == ["shard 00001, row 0: the image of '000010000' cannot be read (UnidentifiedImageError)"]


@pytest.mark.parametrize("lost", ["img_emb", "text_emb", "metadata"])
def test_a_missing_kind_of_clip_retrieval_is_noted(clip_retrieval: Path, lost: str) -> None:
    for path in (clip_retrieval / lost).iterdir():
        path.unlink()
    if lost == "text_emb":
        for number in range(SHARDS):
            table(f"metadata/metadata_{number}.parquet", lambda t: t.drop_columns(["caption"]))(clip_retrieval)
    code, found = inspect(clip_retrieval)
    assert (code, found["rows"]) == (0, 180)
    assert any(f"the folder has no {lost}" in note for note in found["notes"])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_recorded_folders_of_one_tower_are_sound(ours: Path, tower: str) -> None:
    other = {"image": "text_emb", "text": "img_emb"}[tower]
    manifest = json.loads((ours / "manifest.json").read_text())
    manifest["settings"] = {"image": tower == "image", "text": tower == "text", "token_states": True}
    for name, entry in manifest["shards"].items():
        del entry["files"][f"{other}/{other}_{name}.npy"]
    (ours / "manifest.json").write_text(json.dumps(manifest))
    code, found = inspect(ours)
    assert code == 1
    assert len(found["problems"]) == 3
    assert all(f"{other}/{other}_000" in problem and "in no record" in problem for problem in found["problems"])
    for path in (ours / other).iterdir():
        path.unlink()
    assert inspect(ours)[0] == 0
    remaining = "img_emb" if tower == "image" else "text_emb"
    array(f"{remaining}/{remaining}_0001.npy", row(5, 0))(ours)
    record(ours)
    assert inspect(ours)[1]["problems"] == [f"shard 0001, row 5: {tower} embedding is all zeros"]


def test_a_record_without_an_expected_file_is_damaged(ours: Path) -> None:
    manifest = json.loads((ours / "manifest.json").read_text())
    del manifest["shards"]["0001"]["files"][TEXT]
    (ours / "manifest.json").write_text(json.dumps(manifest))
    (ours / TEXT).unlink()
    assert inspect(ours)[1]["problems"] == ["shard 0001: its record has no file of text_emb"]


def test_duplicates_and_empty_captions_are_notes(ours: Path, clip_retrieval: Path) -> None:
    for folder, one, two in ((ours, "0000", "0001"), (clip_retrieval, "0", "1")):
        first = np.load(folder / f"img_emb/img_emb_{one}.npy")
        array(f"img_emb/img_emb_{two}.npy", row(4, first[2]))(folder)
        near = unit(first[3:4].astype(np.float32) + 0.02 * np.eye(DIM)[:1])[0]
        array(f"img_emb/img_emb_{two}.npy", row(5, near))(folder)
        captions = f"metadata/metadata_{two}.parquet"
        table(captions, column("caption", 7, " \n"))(folder)
        table(captions, column("caption", 8, None))(folder)
        if folder is ours:
            record(folder)
        else:
            table(captions, column("image_path", 6, "000000006"))(folder)
        code, found = inspect(folder)
        notes = "\n".join(found["notes"])
        assert (code, found["problems"]) == (0, [])
        assert (
            f"1 image embeddings are exact duplicates of earlier ones, such as shard {two}, row 4 of shard {one}"
            in notes
        )
        assert (
            f"1 pairs of near duplicate images (cosine of 0.98 or more) in a bank of 180 rows, such as shard {one}"
            in notes
        )
        assert f"2 captions are empty, such as shard {two}, row 7; shard {two}, row 8" in notes
        assert ("1 rows have the key of an earlier one" in notes) == (folder is clip_retrieval)
        assert found["looked_at"]["image embeddings, for near duplicates: bank of rows"] == 180


def test_the_number_of_listed_problems_is_bounded(clip_retrieval: Path) -> None:
    for number in range(20):
        for kind in ("img_emb", "text_emb"):
            np.save(clip_retrieval / kind / f"{kind}_{number}.npy", np.zeros((ROWS, DIM), np.float16))
        table(f"metadata/metadata_{number % 3}.parquet", lambda t: t)(clip_retrieval)
        pq.write_table(pq.read_table(clip_retrieval / "metadata/metadata_0.parquet"),
                       clip_retrieval / f"metadata/metadata_{number}.parquet")  # fmt: skip
    code, found = inspect(clip_retrieval)
    assert (code, len(found["problems"]), found["problem_count"]) == (1, 1000, 20 * 2 * ROWS)
    shown = CliRunner().invoke(app, ["inspect", str(clip_retrieval)]).stdout
    assert "2,400 problems" in shown
    assert "and 2,380 more" in shown


def test_distributions_match_the_data(ours: Path, our_images: Path) -> None:
    found = inspect(ours)[1]["distributions"]
    image, text = (
        np.concatenate([np.load(ours / f"{kind}/{kind}_000{shard}.npy") for shard in range(SHARDS)]).astype(np.float32)
        for kind in ("img_emb", "text_emb")
    )
    assert found["cosine of image and text"]["mean"] == pytest.approx((image * text).sum(1).mean(), abs=1e-3)
    assert found["cosine of unrelated image and text"]["mean"] < 0.2
    assert found["norm of image embeddings"]["mean"] == pytest.approx(np.linalg.norm(image, axis=1).mean(), abs=1e-6)
    assert found["token states of a caption"]["mean"] == 2
    assert found["norm of text embeddings before normalisation"]["mean"] == pytest.approx(9.5)
    length = pc.utf8_length(pq.read_table(ours / META)["caption"])[0].as_py()
    assert (found["caption length in characters"]["min"], found["caption length in characters"]["rows"]) == (
        length,
        180,
    )
    found = inspect(our_images)[1]["distributions"]
    assert {name: (values["rows"], values["max"]) for name, values in found.items() if "pixels" in name} == {
        "width in pixels": (8, 24), "height in pixels": (8, 16), "original width in pixels": (8, 48),
    }  # fmt: skip
    assert found["bytes of an image"]["mean"] == len(encoded())


def test_remote_folders_are_inspected_like_local_ones(ours: Path, our_images: Path) -> None:
    for folder, name in ((ours, "ours"), (our_images, "images")):
        remote, local = Store(f"memory://inspected_{name}"), Store(str(folder))
        for file in local.names():
            with local.open(file) as source, remote.create(file) as target:
                target.write(source.read())
        one, other = inspect_folder(remote.url), inspect_folder(str(folder))
        assert (one.problems, one.rows, one.distributions) == ([], other.rows, other.distributions)
