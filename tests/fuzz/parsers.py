"""What is fuzzed: for each kind of input, files to start from and the calls that a command makes to read them."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import random
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import plan_download
from priorkit.pipeline.embed.inputs import list_input_shards, open_input
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings
from priorkit.pipeline.urls.digest import rows_digest
from priorkit.pipeline.urls.url_list import open_url_list
from priorkit.recipes.recipe import load_recipe, recipe_names, recipe_text
from priorkit.recipes.status import stage_states

TESTS = Path(__file__).resolve().parents[1]


def _sibling(name: str) -> ModuleType:
    """A module beside this one, whatever runs it: a script or pytest."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


damage = _sibling("mutations")


@dataclass(frozen=True)
class Parser:
    """One kind of input."""

    prepare: Callable[[random.Random, Path], None]
    """Writes a damaged input into an empty folder."""
    parse: Callable[[Path], None]
    """Reads it, as the commands do."""


ROWS = [{"url": f"http://127.0.0.1/{row}.jpg", "caption": f'a "{row}", cat', "width": row} for row in range(12)]


def _parquet(rows: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=5)
    return buffer.getvalue()


def _delimited(mark: str) -> bytes:
    lines = [mark.join(ROWS[0])]
    lines += [mark.join((str(row["url"]), '"a ""quoted"" cat"', str(row["width"]))) for row in ROWS]
    return "\n".join(lines).encode()


LISTS = {
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "txt": "\n".join(str(row["url"]) for row in ROWS).encode(),
    "jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "json": json.dumps(ROWS).encode(),
    "parquet": _parquet(ROWS),
}
LISTS |= {f"{kind}.gz": gzip.compress(data) for kind, data in LISTS.items()}


def _prepare_list(chance: random.Random, folder: Path) -> None:
    kind = chance.choice(sorted(LISTS))
    plain = kind.removesuffix(".gz")
    if plain == "parquet" and chance.random() < 0.5:
        data = damage.random_table(chance, ("url", "caption", "width", "key"), 12)
    elif plain == "json" and chance.random() < 0.5:
        data = damage.damage_json(chance, LISTS[plain])
    else:
        data = damage.damage_bytes(chance, LISTS[plain], list(LISTS.values()))
    if kind.endswith(".gz"):
        data = gzip.compress(data)
        data = damage.damage_bytes(chance, data, [data]) if chance.random() < 0.2 else data
    (folder / f"list.{kind}").write_bytes(data)
    if chance.random() < 0.2:  # a list of two files
        (folder / f"other.{plain}").write_bytes(LISTS[plain])


def _parse_list(folder: Path) -> None:
    files = sorted(folder.iterdir())
    source = str(files[0] if len(files) == 1 else folder)
    settings = DownloadSettings(rows_per_shard=5)
    plan_download(source, str(folder.with_name("images")), settings)
    for _, table in open_url_list(source, settings).shards(5):
        rows_digest(table)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


IMAGE = _jpeg()
TABLE = _parquet([{"image": IMAGE, "caption": f"cat {row}", "key": str(row)} for row in range(8)])


def _prepare_table(chance: random.Random, folder: Path) -> None:
    if chance.random() < 0.6:
        data = damage.random_table(chance, ("image", "caption", "key", "status", "url", "error_message"), 8)
    else:
        data = damage.damage_bytes(chance, TABLE, [TABLE])
    (folder / "table.parquet").write_bytes(data)
    if chance.random() < 0.2:
        (folder / "second.parquet").write_bytes(TABLE)


def _parse_input(folder: Path, settings: EmbedSettings) -> None:
    store = open_input(str(folder))
    for shard in list_input_shards(str(folder), settings):
        for _ in shard.read(store):
            pass
        shard.tables(store)


def _parse_table(folder: Path) -> None:
    _parse_input(folder, EmbedSettings(input_format="parquet"))


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in range(6):
            for ending, data in (("jpg", IMAGE), ("txt", b"a cat"), ("json", b'{"key": "0"}')):
                info = tarfile.TarInfo(f"{row:09d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TAR = _tar()
SIDECAR = ("key", "status", "caption", "url", "error_message", "width", "height", "original_width", "sha256", "exif")


def _prepare_tar(chance: random.Random, folder: Path) -> None:
    built = chance.random() < 0.5
    data = damage.random_tar(chance, IMAGE) if built else damage.damage_bytes(chance, TAR, [TAR])
    (folder / "00000.tar").write_bytes(data)
    if chance.random() < 0.5:
        (folder / "00000.parquet").write_bytes(damage.random_table(chance, SIDECAR, 6))
    if chance.random() < 0.2:
        stats = json.dumps({"count": 6, "successes": 6, "failed_to_download": 0, "status_dict": {"success": 6}})
        (folder / "00000_stats.json").write_bytes(damage.damage_json(chance, stats.encode()))


def _parse_tar(folder: Path) -> None:
    inspect_folder(str(folder))
    _parse_input(folder, EmbedSettings(input_format="webdataset"))


def _prepare_arrays(chance: random.Random, folder: Path) -> None:
    import priorkit.prior.model.texts  # noqa: F401  # here, since loading torch is no part of a case

    rows, width = 20, 8
    generator = np.random.default_rng(1)
    for kind in ("img", "text"):
        (folder / f"{kind}_emb").mkdir()
        for shard in range(2):
            values = generator.standard_normal((rows, width))
            buffer = io.BytesIO()
            np.save(buffer, (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("float16"))
            (folder / f"{kind}_emb" / f"{kind}_emb_{shard}.npy").write_bytes(buffer.getvalue())
    (folder / "metadata").mkdir()
    for shard in range(2):
        table = _parquet([{"image_path": f"{shard}/{row}", "caption": f"cat {row}"} for row in range(rows)])
        (folder / "metadata" / f"metadata_{shard}.parquet").write_bytes(table)
    target = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = target.read_bytes()
    if chance.random() < 0.4:
        target.write_bytes(damage.damage_bytes(chance, data, [data]))
    elif target.suffix == ".npy":
        target.write_bytes(damage.random_array(chance, rows, width))
    else:
        target.write_bytes(damage.random_table(chance, ("image_path", "caption", "key", "url", "md5"), rows))
    if chance.random() < 0.1:
        target.rename(
            target.with_name(chance.choice(("x.npy", "img_emb_7.npy", "metadata_.parquet", "text_emb_00.npy")))
        )


def _parse_embeddings(folder: Path) -> None:
    try:
        dataset = read_embeddings(str(folder))
        rows = dataset.rows("train")
        dataset.visits("train")
        dataset.content_order("validation", 1)
        dataset.embeds("img_emb", rows[:9])
        if dataset.has_text_embed:
            dataset.take(rows[:9])
        dataset.metadata(rows[:5], ["caption"])
    finally:
        inspect_folder(str(folder))


def _parse_arrays(folder: Path) -> None:
    from priorkit.prior.model.texts import stored_texts

    for path in sorted((folder / "text_emb").glob("*.npy")):
        _ignoring_refusals(lambda path=path: stored_texts(str(path)))  # type: ignore[misc]
    _parse_embeddings(folder)


def _ignoring_refusals(call: Callable[[], object]) -> None:
    from priorkit.pipeline.errors import PriorkitError

    try:
        call()
    except PriorkitError:
        return


RECIPES = [recipe_text(name).encode() for name in recipe_names()]
RECIPES += [
    b"a: &a {steps: 5}\ntrain:\n  <<: *a\n  network: {width: 64}\n",
    b"train: {sweep: [1, 2], steps: 1e5}\n",
]


def _prepare_recipe(chance: random.Random, folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(damage.damage_bytes(chance, chance.choice(RECIPES), RECIPES))
    text = chance.choice(
        ("train.steps=5", "embed.clip={model: x}", "evaluate.sweep.steps=[1]", "folders.prior=a")
    ).encode()
    (folder / "override").write_bytes(damage.damage_bytes(chance, text, [text]))


def _parse_recipe(folder: Path) -> None:
    override = (folder / "override").read_bytes().decode("utf-8", "surrogateescape")
    _ignoring_refusals(lambda: load_recipe(None, [override], ("train", "embed", "compute")))
    load_recipe(str(folder / "recipe.yaml"))


def _seed_folder(kind: str) -> Path:
    """A folder of a stage, written once by its own code into the folder beside the cases."""
    from tempfile import mkdtemp

    folder = Path(mkdtemp(prefix=f"priorkit-fuzz-{kind}-")) / kind
    if kind == "prior":
        load_and_write_prior(folder)
    else:
        spec = importlib.util.spec_from_file_location("synthetic", TESTS / "integration" / "synthetic.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.write_embeddings(folder, rows=30, token_states=True)
    return folder


def load_and_write_prior(folder: Path) -> None:
    """The smallest checkpoint of the parity tests as a prior's folder."""
    from priorkit.prior.interchange.load import convert

    checkpoints = TESTS / "parity" / "checkpoints"
    convert(str(checkpoints / "plain.pth"), str(folder), config=str(checkpoints / "plain.json"), weights="online")


_SEEDS: dict[str, Path] = {}


def _copy_seed(kind: str, folder: Path) -> None:
    if kind not in _SEEDS:
        _SEEDS[kind] = _seed_folder(kind)
    shutil.copytree(_SEEDS[kind], folder, dirs_exist_ok=True)


def _prepare_manifest(chance: random.Random, folder: Path) -> None:
    _copy_seed("embeddings", folder)
    target = chance.choice(sorted(folder.rglob("*.json")) * 3 + sorted(folder.rglob("*.npy"))[:2])
    data = target.read_bytes()
    if target.suffix == ".json" and chance.random() < 0.7:
        target.write_bytes(damage.damage_json(chance, data))
    else:
        target.write_bytes(damage.damage_bytes(chance, data, [data]))


def _parse_manifest(folder: Path) -> None:
    places = [f"folders.{stage}={json.dumps(str(folder))}" for stage in ("embeddings",)]
    _ignoring_refusals(lambda: stage_states(load_recipe(None, places), plan_too=False))
    _ignoring_refusals(lambda: list_input_shards(str(folder), EmbedSettings()))
    _parse_embeddings(folder)


def _prepare_prior(chance: random.Random, folder: Path) -> None:
    _copy_seed("prior", folder)
    target = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = target.read_bytes()
    if target.suffix == ".json" and chance.random() < 0.7:
        target.write_bytes(damage.damage_json(chance, data))
    else:
        head = damage.damage_bytes(chance, data[:4096], [data[:4096]])
        target.write_bytes(head + data[4096:])


def _parse_prior(folder: Path) -> None:
    from priorkit.prior.interchange.load import load_prior  # torch is loaded by the parsers that need it

    _ignoring_refusals(lambda: inspect_folder(str(folder)))
    load_prior(str(folder))


PARSERS = {
    "lists": Parser(_prepare_list, _parse_list),
    "tables": Parser(_prepare_table, _parse_table),
    "tars": Parser(_prepare_tar, _parse_tar),
    "npy": Parser(_prepare_arrays, _parse_arrays),
    "recipes": Parser(_prepare_recipe, _parse_recipe),
    "manifests": Parser(_prepare_manifest, _parse_manifest),
    "priors": Parser(_prepare_prior, _parse_prior),
}
