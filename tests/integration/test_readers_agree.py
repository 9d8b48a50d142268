"""One verdict on a folder of embeddings from every reader: `inspect`, `read`, `train`, `evaluate` and `sample`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from priorkit import read_embeddings
from priorkit.cli import app
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.stage import train
from priorkit.prior.train.step import NotFinite

from .synthetic import SMALL_TRAIN, D, changed, unit

SHARDS, ROWS = 2, 60
Change = Callable[[Path], None]
READ = ReadSettings(validation_fraction=0.1, test_fraction=0.3)
QUICK = changed(SMALL_TRAIN, steps=2, batch_size=100, validate_every=2, checkpoint_every=2)
SCORED = EvaluateSettings(
    draws=2, sample=SampleSettings(steps=2), bootstrap_samples=100, loss_bins=1, device="cpu", threads=1
)
CLIP = ClipSettings(model="ViT-B-32", pretrained="openai")


@pytest.fixture
def small_train() -> TrainSettings:
    return QUICK


def write_folder(folder: Path) -> Path:
    """What clip-retrieval writes: float16, and metadata with image_path, caption and url."""
    random = np.random.default_rng(0)
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for shard in range(SHARDS):
        image = unit(random.standard_normal((ROWS, D)))
        text = unit(image + 0.3 * random.standard_normal((ROWS, D)))
        np.save(folder / f"img_emb/img_emb_{shard}.npy", image.astype(np.float16))
        np.save(folder / f"text_emb/text_emb_{shard}.npy", text.astype(np.float16))
        names = [f"{shard}{row:04d}" for row in range(ROWS)]
        table = {"image_path": names, "caption": [f"a {name}" for name in names], "url": names}
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{shard}.parquet")
    return folder


def arrays(change: Callable[[np.ndarray], np.ndarray], kinds: str = "img text", shards: str = "01") -> Change:
    """Change arrays of some kinds in some shards."""

    def apply(folder: Path) -> None:
        for kind in kinds.split():
            for shard in shards:
                path = folder / f"{kind}_emb/{kind}_emb_{shard}.npy"
                np.save(path, change(np.load(path)))

    return apply


def columns(shards: str = "01", **values: Callable[[list[str]], Any]) -> Change:
    """Replace or add columns of the metadata of some shards, made from the rows' names."""

    def apply(folder: Path) -> None:
        for shard in shards:
            path = folder / f"metadata/metadata_{shard}.parquet"
            table = pq.read_table(path)
            names = table["image_path"].to_pylist()
            for name, make in values.items():
                made = make(names)
                if name in table.column_names:
                    table = table.set_column(table.column_names.index(name), name, made)
                else:
                    table = table.append_column(name, made)
            pq.write_table(table, path)

    return apply


def repeated(name: str) -> Change:
    """Write a column twice."""

    def apply(folder: Path) -> None:
        for path in (folder / "metadata").iterdir():
            table = pq.read_table(path)
            pq.write_table(table.append_column(name, table[name]), path)

    return apply


def without(name: str, shards: str = "01") -> Change:
    def apply(folder: Path) -> None:
        for shard in shards:
            path = folder / f"metadata/metadata_{shard}.parquet"
            pq.write_table(pq.read_table(path).drop_columns([name]), path)

    return apply


def removed(*names: str) -> Change:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return apply


def every_file_of(kind: str) -> Change:
    return removed(*(f"{kind}/{kind}_{s}.{'parquet' if kind == 'metadata' else 'npy'}" for s in range(SHARDS)))


def scaled(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """Rows of norms from `low` to `high`."""
    return lambda v: (v.astype(np.float32) * np.linspace(low, high, len(v))[:, None]).astype(v.dtype)


def one_in_three(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(values: np.ndarray) -> np.ndarray:
        values[::3] = value
        return values

    return apply


def as_type(name: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: v.astype(name)


def structured(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view([("x", "<f4")])


def renumbered(folder: Path) -> None:
    for kind, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        (folder / f"{kind}/{kind}_1.{suffix}").rename(folder / f"{kind}/{kind}_3.{suffix}")


def emptied(folder: Path) -> None:
    arrays(lambda v: v[:0])(folder)
    for path in (folder / "metadata").iterdir():
        pq.write_table(pq.read_table(path)[:0], path)


def categories(names: list[str]) -> pa.Array:
    return pa.array(names).dictionary_encode()


def views(names: list[str]) -> pa.Array:
    make = getattr(pa, "string_view", pa.large_string)  # PyArrow before 16 has no views
    return pa.array(names, make())


VALID: dict[str, Change] = {
    "as clip-retrieval writes it": lambda folder: None,
    "float32": arrays(as_type("float32")),
    "float64": arrays(as_type("float64")),
    "float16 beside float32": arrays(as_type("float32"), shards="1"),
    "float16 beside float64 images": arrays(as_type("float64"), "img", "0"),
    "norms of bfloat16": arrays(scaled(0.996, 1.004)),
    "a number is missing": renumbered,
    "categories": columns(caption=categories, image_path=categories, url=categories),
    "categories in one shard": columns("1", caption=categories),
    "large text": columns(**{c: lambda n: pa.array(n, pa.large_string()) for c in ("caption", "url", "image_path")}),
    "views of text": columns(caption=views, image_path=views, url=views),
    "views in one shard": columns("0", caption=views, image_path=views, url=views),
    "binary": columns(**{c: lambda n: pa.array([x.encode() for x in n]) for c in ("caption", "url", "image_path")}),
    "hashes in bytes": columns(sha256=lambda n: pa.array([bytes([255, *x.encode()]) for x in n], pa.binary(6))),
    "numbers as keys": columns(key=lambda n: pa.array([int(x) for x in n])),
    "numbers in one shard": columns("0", image_path=lambda n: pa.array([int(x) for x in n])),
    "null keys": columns(key=lambda n: pa.array([None, *n[1:]])),
    "only null keys": columns(key=lambda n: pa.nulls(len(n))),
    "numbers as captions": columns(caption=lambda n: pa.array(range(len(n)))),
    "truth values": columns(caption=lambda n: pa.array([True] * len(n)), safe=lambda n: pa.array([True] * len(n))),
    "lists as captions": columns(caption=lambda n: pa.array([[x] for x in n])),
    "URLs that are NaN": columns(url=lambda n: pa.array([float("nan")] * len(n))),
    "timestamps as URLs": columns(url=lambda n: pa.array(range(1, len(n) + 1), pa.timestamp("ns"))),
    "lists as URLs": columns(url=lambda n: pa.array([[x] for x in n])),
    "no captions": without("caption"),
    "no keys": without("image_path"),
    "no metadata": every_file_of("metadata"),
}  # fmt: skip

NO_UNITS = "has norm|are not unit vectors"
INVALID: dict[str, tuple[Change, str]] = {
    "longdouble": (arrays(as_type("longdouble")), str(np.dtype(np.longdouble))),
    "int8": (arrays(lambda v: (v * 100).astype(np.int8)), "int8"),
    "complex": (arrays(as_type("complex64")), "complex64"),
    "bool": (arrays(lambda v: v > 0), "bool"),
    "structured": (arrays(structured), "'x', '<f4'"),
    "big-endian": (arrays(as_type(">f4")), "another machine's order of bytes"),
    "Fortran's order": (arrays(np.asfortranarray), "Fortran's order"),
    "one dimension": (arrays(lambda v: v[:, 0]), "of shape"),
    "norms beyond bfloat16": (arrays(scaled(0.97, 0.985)), NO_UNITS),
    "raw vectors": (arrays(scaled(9, 11)), NO_UNITS),
    "images alone are raw": (arrays(scaled(9, 11), "img"), NO_UNITS),
    "texts alone are raw": (arrays(scaled(9, 11), "text"), NO_UNITS),
    "zeros": (arrays(one_in_three(0)), "zeros|unit vectors"),
    "NaN": (arrays(one_in_three(np.nan)), "NaN"),
    "infinity": (arrays(one_in_three(np.inf)), "infinity"),
    "beyond float32": (arrays(lambda v: v.astype(np.float64) * 1e300), "infinity"),
    "another size": (arrays(lambda v: v[:, 1:], shards="1"), f"embeddings of {D - 1}"),
    "fewer rows": (arrays(lambda v: v[1:], "text", "1"), "has 59 rows"),
    "no rows": (emptied, "holds no (rows|embeddings)"),
    "a missing array": (removed("text_emb/text_emb_1.npy"), "text_emb_1.npy is missing"),
    "missing metadata": (removed("metadata/metadata_1.parquet"), "metadata_1.parquet is missing"),
    "captions in one shard": (without("caption", "1"), "has no column 'caption', though"),
    "keys in one shard": (columns("1", key=pa.array), "has no column 'key', though"),
    "two columns of captions": (repeated("caption"), "has 2 columns 'caption'; keep one"),
    "two columns of URLs": (repeated("url"), "has 2 columns 'url'; keep one"),
    "lists as keys": (columns(key=lambda n: pa.array([[x] for x in n])), "column 'key' holds list"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior trained on the unchanged folder."""
    root = tmp_path_factory.mktemp("trained")
    train(str(write_folder(root / "folder")), str(root / "prior"), QUICK, READ, clip=CLIP)
    return root / "prior"


def readers(folder: Path, prior: Path, scratch: Path) -> dict[str, Callable[[], object]]:
    """Each reader of a folder, as a call that fails if it refuses the folder."""
    array = str(scratch / "samples.npy")

    def read() -> None:
        dataset = read_embeddings(str(folder))
        dataset.take(np.arange(dataset.count))

    def inspect() -> None:
        found = inspect_folder(str(folder))
        if found.problem_count:
            raise InputError("\n".join(found.problems))

    def sample() -> None:
        done = CliRunner().invoke(
            app, ["sample", str(prior), "--embeddings", str(folder), "--steps", "2", "--output", array, "--json"]
        )
        if done.exit_code:
            assert isinstance(done.exception, SystemExit), done.exception
            raise InputError(done.stderr)

    return {
        "inspect": inspect,
        "read": read,
        "train": lambda: train(str(folder), str(scratch / "prior"), QUICK, READ, clip=CLIP),
        "evaluate": lambda: evaluate(str(prior), str(folder), str(scratch / "evaluation"), SCORED),
        "sample": sample,
    }


@pytest.mark.parametrize("case", VALID)
def test_every_reader_takes_a_valid_folder(case: str, trained: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    VALID[case](folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for read in readers(folder, trained, tmp_path).values():
            read()


@pytest.mark.parametrize("case", INVALID)
def test_every_reader_refuses_an_invalid_folder(case: str, trained: Path, tmp_path: Path) -> None:
    change, named = INVALID[case]
    folder = write_folder(tmp_path / "folder")
    change(folder)
    for name, read in readers(folder, trained, tmp_path).items():
        with pytest.raises(InputError, match=named) as refused:
            read()
        assert "Traceback" not in str(refused.value), name


def test_rounded_norms_are_normalised_and_counted_and_exact_ones_keep_their_bits(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    exact = read_embeddings(str(folder)).take(np.arange(SHARDS * ROWS))
    arrays(scaled(0.996, 1.004), "img", "1")(folder)
    dataset = read_embeddings(str(folder))
    found = dataset.take(np.arange(SHARDS * ROWS))
    assert np.array_equal(found.text_embed, exact.text_embed)
    assert np.array_equal(found.image_embed[:ROWS], exact.image_embed[:ROWS])
    norms = np.linalg.norm(np.load(folder / "img_emb/img_emb_1.npy").astype(np.float32), axis=1)
    rounded = np.abs(norms - 1) > 2e-3
    assert 20 < rounded.sum() < 50
    assert np.allclose(np.linalg.norm(found.image_embed[ROWS:][rounded], axis=1), 1, atol=1e-6)
    said = "have norms within 0.01 of 1, as bfloat16 rounds them, and are normalised on reading"
    assert dataset.notes == [f"{folder}: {rounded.sum()} image embeddings that were read {said}"]
    notes = inspect_folder(str(folder)).notes
    assert any(note.startswith(f"{rounded.sum()} image embeddings {said}, such as shard 1, row 0") for note in notes)
    read = ReadSettings(validation_fraction=0, test_fraction=0)
    result = train(str(folder), str(tmp_path / "prior"), changed(QUICK, batch_size=SHARDS * ROWS), read, clip=CLIP)
    assert len(result.notes) == 1
    assert said in result.notes[0]


def test_a_sample_from_another_folder_without_a_manifest_says_what_is_not_known(trained: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    command = ["sample", str(trained), "--steps", "2", "--output", str(tmp_path / "a.npy"), "--json", "--embeddings"]
    own = CliRunner().invoke(app, [*command, str(folder)])
    assert json.loads(own.stdout)["notes"] == []  # the prior was trained on just such a folder
    without("caption")(folder)
    other = CliRunner().invoke(app, [*command, str(folder)])
    assert other.exit_code == 0
    found = json.loads(other.stdout)
    assert found["notes"] == [
        f"it is not known that the prior's CLIP, ViT-B-32 (openai), made {folder}; it is taken to have"
    ]
    assert found["labels"][:2] == ["row 0", "row 1"]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (lambda n: pa.array([None, *range(1, len(n))]), "rows 0, 61, keys none, 1"),
        (lambda n: pa.array([None, b"\xff", *[b"x"] * (len(n) - 2)]), "rows 0, 61, keys none, ff"),
    ],
)
def test_a_loss_that_is_not_finite_names_keys_of_any_type(keys: Any, named: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    columns(key=keys)(folder)
    said = str(NotFinite("the loss is not finite", [0, 61]).with_keys(read_embeddings(str(folder))))
    assert said.startswith(f"the loss is not finite ({named});")
    every_file_of("metadata")(folder)
    assert "(rows 0, 61);" in str(NotFinite("the loss", [0, 61]).with_keys(read_embeddings(str(folder))))


def test_rows_without_a_hash_or_url_are_images_of_their_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    columns(url=lambda n: pa.array([float("nan")] * len(n)), md5=lambda n: pa.nulls(len(n)))(folder)
    assert len(np.unique(read_embeddings(str(folder)).group_ids)) == SHARDS * ROWS


@pytest.mark.parametrize("name", ["longdouble", "int8", "complex64", "bool"])
def test_arrays_of_predictions_and_texts_follow_the_same_rule(name: str, trained: Path, tmp_path: Path) -> None:
    folder, array = write_folder(tmp_path / "folder"), tmp_path / "a.npy"
    rows = unit(np.random.default_rng(0).standard_normal((SHARDS * ROWS, D)))
    named = f"holds {np.dtype(name)}"
    np.save(array, rows.astype(name))
    with pytest.raises(InputError, match=named):
        evaluate(str(array), str(folder), str(tmp_path / "evaluation"), SCORED, READ)
    command = ["sample", str(trained), "--steps", "2", "--output", str(tmp_path / "b.npy"), "--embeddings", str(array)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert named in refused.stderr.replace("\n", " ")
    np.save(array, rows)  # float64
    evaluate(str(array), str(folder), str(tmp_path / "evaluation"), SCORED, READ)
    assert CliRunner().invoke(app, command).exit_code == 0
