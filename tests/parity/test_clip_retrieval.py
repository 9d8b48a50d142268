"""The engine clip-retrieval against the native one and against clip-retrieval itself, beside current packages."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings
from priorkit.pipeline.embed.clip_retrieval_package import import_package
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.read.dataset import read_embeddings

from ..conftest import COLOURS, TINY_CLIP_CONFIG, tar_bytes

BAR = 0.9999
BATCH, PAIRS, SHARDS = 8, 20, 2
DEMO = ClipSettings(model="priorkit:demo")
NAME = "priorkit-parity"
KINDS = ("img_emb", "text_emb")
IDENTITY = ("key", "image_path", "caption")


def picture(number: int, kind: str = "JPEG") -> bytes:
    """Blocks of random colours: a CLIP tells them apart better than smooth pictures."""
    coarse = np.random.default_rng(number).integers(0, 256, (3 + number % 5, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    size = (90 + number % 40, 100)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(file, kind, quality=95)
    return file.getvalue()


def caption(number: int) -> bytes:
    return f"{'a very ' * (number % 12)}{COLOURS[number % 8]} house with {number} dogs, 猫".encode()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image shards of pairs, all of them JPEGs."""
    folder = tmp_path_factory.mktemp("parity") / "images"
    folder.mkdir()
    for shard in range(SHARDS):
        numbers = range(shard * PAIRS, (shard + 1) * PAIRS)
        members = [(f"{n:06d}.{e}", d) for n in numbers for e, d in (("jpg", picture(n)), ("txt", caption(n)))]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Iterator[Path]:
    """Weights of the tiny CLIP in a file, and its architecture under a name that open_clip knows."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(TINY_CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(folder)
    weights = folder / "weights.pt"
    torch.save(safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors"), weights)
    yield weights
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    del open_clip.factory._MODEL_CONFIGS[NAME]


def run(source: Path, out: Path, clip: ClipSettings, **changed: Any) -> Path:
    settings = EmbedSettings(clip=clip, device="cpu", threads=1, batch_size=BATCH, **changed)
    embed(str(source), str(out), settings)
    return out


def both(source: Path, out: Path, clip: ClipSettings, **changed: Any) -> tuple[Path, Path]:
    """Embed with each engine: the native one, and clip-retrieval."""
    engines = {"native": out / "native", "clip-retrieval": out / "by_clip_retrieval"}
    for engine, folder in engines.items():
        run(source, folder, clip, engine=engine, **changed)
    return engines["native"], engines["clip-retrieval"]


def load(folder: Path, kind: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((folder / kind).glob("*.npy"))])


def table(folder: Path, kind: str = "metadata") -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / kind).glob("*.parquet"))])


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def assert_equal_rows(native: Path, made: Path, *kinds: str) -> None:
    for kind in kinds or KINDS:
        one, other = load(native, kind), load(made, kind)
        assert other.dtype == np.float16
        assert cosines(one, other).min() >= BAR
        assert np.median(cosines(one[1:], other[:-1])) < BAR, "the bar cannot tell rows apart"
    assert table(native).select(IDENTITY).equals(table(made).select(IDENTITY))
    assert table(native, "failures").column("key").equals(table(made, "failures").column("key"))


def test_the_demos_clip_gives_the_rows_of_the_native_engine(images: Path, tmp_path: Path) -> None:
    native, made = both(images, tmp_path, DEMO)
    assert_equal_rows(native, made)
    assert table(made).column("key").to_pylist() == [f"{number:06d}" for number in range(SHARDS * PAIRS)]
    assert read_embeddings(str(made)).clip == read_embeddings(str(native)).clip


CLIPS = ("a folder", "the hub", "a name and a file", "another preprocessing", "another activation")


@pytest.mark.parametrize("kind", CLIPS)
def test_every_kind_of_clip_gives_the_rows_of_the_native_engine(
    kind: str, images: Path, tiny_clip: Path, architecture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub/models--org--tiny"
    shutil.copytree(tiny_clip, cached / "snapshots/1")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    clip = {
        "a folder": ClipSettings(model=f"local-dir:{tiny_clip}"),
        "the hub": ClipSettings(model="hf-hub:org/tiny"),
        "a name and a file": ClipSettings(model=NAME, pretrained=str(architecture)),
        "another preprocessing": ClipSettings(
            model=f"local-dir:{tiny_clip}",
            preprocess=PreprocessSettings(mean=(0.1, 0.2, 0.3), interpolation="bilinear", resize_mode="squash"),
        ),
        "another activation": ClipSettings(model=NAME, pretrained=str(architecture), quick_gelu=True),
    }[kind]
    assert_equal_rows(*both(images, tmp_path, clip))
    if kind.startswith("another"):
        plain = run(images, tmp_path / "plain", ClipSettings(model=f"local-dir:{tiny_clip}"), engine="clip-retrieval")
        assert cosines(load(plain, "img_emb"), load(tmp_path / "by_clip_retrieval", "img_emb")).max() < BAR


def test_vectors_and_files_are_those_of_clip_retrieval_itself(images: Path, architecture: Path, tmp_path: Path) -> None:
    """Its reader, mapper and writer on each shard, with the CLIP that all_clip itself loads by name."""
    made = run(
        images, tmp_path / "out", ClipSettings(model=NAME, pretrained=str(architecture)), engine="clip-retrieval"
    )
    package, name = import_package(), f"open_clip:{NAME}/{architecture}"
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, preprocess, tokenizer = package.all_clip.load_clip(clip_model=name, use_jit=False)
        model.eval()  # all_clip leaves it in training mode
        mapper = package.mapper(True, True, False, False, name, False, None)
        for number, shard in enumerate(sorted(images.glob("*.tar"))):
            writer = package.writer(number, str(tmp_path / "theirs"), True, True, False, SHARDS)
            for batch in package.reader(lambda urls: urls, preprocess, tokenizer, [str(shard)], BATCH, 1):
                writer(mapper(batch))
            writer.flush()
    for number in range(SHARDS):
        for kind in KINDS:
            theirs = tmp_path / "theirs" / kind / f"{kind}_{number}.npy"
            assert (made / kind / f"{kind}_{number:04d}.npy").read_bytes() == theirs.read_bytes()
        theirs = pq.read_table(tmp_path / f"theirs/metadata/metadata_{number}.parquet")
        ours = pq.read_table(made / f"metadata/metadata_{number:04d}.parquet")
        assert ours.select(["image_path", "caption"]).to_pydict() == theirs.to_pydict()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A shard of samples that give no row, repeated keys and several kinds of images; then a shard of a cut tar."""
    good = picture(3)
    samples = [
        ("good.jpg", good), ("good.txt", b"a dog"), ("cut.jpg", good[: len(good) // 3]), ("cut.txt", b"a dog"),
        ("none.jpg", b""), ("none.txt", b"a dog"), ("wordless.jpg", good), ("imageless.txt", b"a dog"),
        ("latin.jpg", good), ("latin.txt", "é".encode("latin-1")), ("png.png", picture(4, "PNG")), ("png.txt", b"b"),
        ("sub/upper.JPG", picture(5)), ("sub/upper.txt", "一只猫".encode()), ("long.webp", picture(6, "WEBP")),
        ("long.txt", b"x" * 100_000), ("empty.jpg", picture(7)), ("empty.txt", b""), ("good.jpg", picture(8)),
        ("good.txt", b"again"),
    ]  # fmt: skip
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(tar_bytes(samples))
    whole = tar_bytes([(f"{n}.{e}", d) for n in range(3) for e, d in (("jpg", good), ("txt", b"a"))])
    (folder / "00001.tar").write_bytes(whole[: len(good) * 2])
    return folder


def test_every_sample_has_the_outcome_of_the_native_engine(hostile: Path, tmp_path: Path) -> None:
    native, made = both(hostile, tmp_path, DEMO)
    assert_equal_rows(native, made)
    assert table(made).column("key").to_pylist()[:6] == ["good", "png", "sub/upper", "long", "empty", "good"]
    assert table(native, "failures").equals(table(made, "failures"))
    outcomes = [error.partition(":")[0] for error in table(made, "failures").column("error").to_pylist()]
    assert outcomes[:5] == ["image_decode", "image_decode", "missing_caption", "missing_image", "caption_not_utf8"]
    assert "damaged_shard" in outcomes[5:]


@pytest.mark.parametrize(("kinds", "kept"), [({"image": False}, "text_emb"), ({"text": False}, "img_emb")])
def test_one_kind_alone(kinds: dict[str, bool], kept: str, images: Path, tmp_path: Path) -> None:
    native, made = both(images, tmp_path, DEMO, **kinds)
    assert_equal_rows(native, made, kept)
    assert [kind for kind in KINDS if (made / kind).exists()] == [kept]


def test_joined_shards_files_and_tables(images: Path, tmp_path: Path) -> None:
    for shard in images.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                (tmp_path / "files").mkdir(exist_ok=True)
                (tmp_path / "files" / member.name).write_bytes(file.read())
    numbers = range(PAIRS)
    columns = {"caption": [caption(n).decode() for n in numbers], "image": [picture(n) for n in numbers]}
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({**columns, "licence": ["cc0"] * PAIRS}), tmp_path / "tables/a.parquet")
    for source, rows in ((images, 30), (tmp_path / "files", 15), (tmp_path / "tables", 8)):
        native, made = both(source, tmp_path / f"out of {source.name}", DEMO, rows_per_shard=rows)
        assert_equal_rows(native, made)
        lost = set(table(native).column_names) - set(table(made).column_names)
        assert lost == {"image_norm", "text_norm"}, "clip-retrieval returns normalised embeddings alone"


def test_a_rerun_does_nothing_and_a_lost_shard_is_made_again_with_the_same_bytes(images: Path, tmp_path: Path) -> None:
    made = run(images, tmp_path / "out", DEMO, engine="clip-retrieval")
    first = {path: path.read_bytes() for path in made.rglob("*") if path.suffix in (".npy", ".parquet")}
    settings = EmbedSettings(clip=DEMO, device="cpu", threads=1, batch_size=BATCH, engine="clip-retrieval")
    assert embed(str(images), str(made), settings).done_now == 0
    (made / "img_emb/img_emb_0001.npy").unlink()
    assert embed(str(images), str(made), settings).done_now == 1
    assert {path: path.read_bytes() for path in made.rglob("*") if path.suffix in (".npy", ".parquet")} == first


def test_temporary_files_are_removed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    run(images, tmp_path / "out", DEMO, engine="clip-retrieval")
    assert list((tmp_path / "temporary").iterdir()) == []
