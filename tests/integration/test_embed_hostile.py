"""Embed on hostile input: nothing crashes or hangs, every sample is a right row or a named failure."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from priorkit.pipeline.contract.image_shards import list_image_shards
from priorkit.pipeline.contract.manifest import ShardRecord, read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

FolderBytes = Callable[[Path], dict[str, bytes]]
Embed = Callable[[Sequence[bytes], Sequence[str]], tuple[np.ndarray, np.ndarray]]


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (50, 40), seed: int = 0, **options: Any) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    values[: size[1] // 2] //= 4  # the upper half dark, so that no rotation is without consequence
    file = io.BytesIO()
    Image.fromarray(values, "RGBA").convert(mode).save(file, kind, **options)
    return file.getvalue()


def black_png(width: int, height: int) -> bytes:
    """One bit for each pixel, compressed row by row: cheap to make however large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sixteen_bit() -> tuple[bytes, bytes]:
    """A 16-bit PNG, and the upper 8 bits of it."""
    values = np.random.default_rng(5).integers(0, 1 << 16, (40, 50), dtype=np.uint16)
    files = io.BytesIO(), io.BytesIO()
    Image.fromarray(values).save(files[0], "PNG")
    Image.fromarray((values >> 8).astype(np.uint8)).save(files[1], "PNG")
    return files[0].getvalue(), files[1].getvalue()


def animation() -> bytes:
    frames = [Image.open(io.BytesIO(encoded("PNG", seed=seed))) for seed in (6, 7)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    return encoded("JPEG", exif=exif, quality=95)


WIDE, WIDE_AS_8_BIT = sixteen_bit()
GOOD_IMAGES = {
    "jpeg": encoded("JPEG"),
    "cmyk": encoded("JPEG", "CMYK"),
    "palette_with_alpha": encoded("PNG", "P", transparency=3),
    "alpha": encoded("PNG", "RGBA"),
    "grey_with_alpha": encoded("PNG", "LA"),
    "16_bit": WIDE,
    "animation": animation(),
    "rotated": rotated(),
    "tall": encoded("PNG", size=(1, 3000)),
    "wide": encoded("JPEG", size=(3000, 1)),
    "one_pixel": encoded("PNG", size=(1, 1)),
    "webp": encoded("WEBP"),
}
EXTENSIONS = {"jpeg": "jpg", "cmyk": "jpeg", "animation": "gif", "rotated": "jpg", "wide": "jpg", "webp": "webp"}
BAD_IMAGES = {
    "truncated_jpeg": (encoded("JPEG")[:-400], "image_decode"),
    "truncated_png": (encoded("PNG")[:300], "image_decode"),
    "empty_image": (b"", "image_decode"),
    "html": (b"<html>not found</html>", "image_decode"),
    "bomb": (black_png(20_000, 20_000), "image_too_large"),
    "smaller_bomb": (black_png(10_000, 9_000), "image_too_large"),
    "too_thin": (black_png(100_000, 1), "image_too_thin"),
}
GOOD_CAPTIONS = {
    "long": "a word that is long, " * 4762,
    "chinese": "一只戴着太阳镜的猫，在雪地里奔跑。",
    "emoji": "👩‍👩‍👧‍👦 and 🏳️‍🌈 at the 🏖️",
    "empty_caption": "",
    "spaces": " \t\n ",
    "nul": "before\0after",
    "markup": "&amp;amp; <|endoftext|> <|startoftext|> [bold]x[/bold]",
}
ORDINARY = encoded("PNG", seed=1)


@dataclass(frozen=True)
class Case:
    """A sample and what is to come of it."""

    key: str
    members: dict[str, bytes]
    """By extension."""
    outcome: str = "success"


CASES = [
    *(Case(name, {EXTENSIONS.get(name, "png"): data, "txt": name.encode()}) for name, data in GOOD_IMAGES.items()),
    *(Case(name, {"jpg": data, "txt": b"bad"}, outcome) for name, (data, outcome) in BAD_IMAGES.items()),
    *(Case(name, {"png": ORDINARY, "txt": caption.encode()}) for name, caption in GOOD_CAPTIONS.items()),
    Case("latin", {"png": ORDINARY, "txt": "café".encode("latin-1")}, "caption_not_utf8"),
    Case("no_caption", {"png": ORDINARY, "json": b"{}"}, "missing_caption"),
    Case("no_image", {"txt": b"an image that is not there"}, "missing_image"),
    Case("neither", {"json": b"{}"}, "missing_image"),
    Case("upper", {"PNG": ORDINARY, "TXT": b"upper case"}),
]  # fmt: skip


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def members(cases: Iterable[Case]) -> list[tuple[str, bytes]]:
    return [(f"{case.key}.{extension}", data) for case in cases for extension, data in case.members.items()]


def pairs(*keys: str) -> list[tuple[str, bytes]]:
    return members(Case(key, {"png": ORDINARY, "txt": b"a pair"}) for key in keys)


def load(folder: Path, kind: str, shard: str = "0000") -> np.ndarray:
    return np.load(folder / kind / f"{kind}_{shard}.npy")


def metadata(folder: Path, shard: str = "0000") -> dict[str, list[Any]]:
    return pq.read_table(folder / f"metadata/metadata_{shard}.parquet").to_pydict()


def failures(folder: Path, shard: str = "0000") -> list[tuple[str, str]]:
    """Key and outcome of each failure."""
    table = pq.read_table(folder / f"failures/failures_{shard}.parquet").to_pydict()
    return [(key, error.partition(":")[0]) for key, error in zip(table["key"], table["error"], strict=True)]


def records(folder: Path) -> dict[str, ShardRecord]:
    manifest = read_manifest(Store(str(folder)))
    assert manifest is not None
    return manifest.shards


def check_accounts(folder: Path, shard: str, samples: int) -> None:
    """Every sample is a row of every array or a failure, and the record counts the same."""
    record, failed = records(folder)[shard], failures(folder, shard)
    assert record.rows + len(failed) == samples
    counts = Counter(outcome for _, outcome in failed)
    assert record.counts == {"success": record.rows, **counts}
    assert len(metadata(folder, shard)["key"]) == record.rows
    for kind in ("img_emb", "text_emb"):
        if (folder / kind).exists():
            assert len(load(folder, kind, shard)) == record.rows


@pytest.fixture
def by_hand(tiny_clip: Path) -> Embed:
    """Normalised embeddings of upright images and of captions, each alone through open_clip."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    model.eval()

    def run(images: Sequence[bytes], captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pixels = [preprocess(ImageOps.exif_transpose(Image.open(io.BytesIO(image)))) for image in images]
        with torch.no_grad():
            image = [model.encode_image(one[None], normalize=True) for one in pixels]
            text = [model.encode_text(tokenizer([caption]), normalize=True) for caption in captions]
        empty = torch.empty(0, 16)
        return torch.cat([empty, *image]).numpy(), torch.cat([empty, *text]).numpy()

    return run


def check_vectors(folder: Path, cases: Sequence[Case], by_hand: Embed) -> None:
    images = [next(data for kind, data in case.members.items() if kind.lower() != "txt") for case in cases]
    captions = [next(data.decode() for kind, data in case.members.items() if kind.lower() == "txt") for case in cases]
    image, text = by_hand([WIDE_AS_8_BIT if data == WIDE else data for data in images], captions)
    if (folder / "img_emb").exists():
        np.testing.assert_allclose(load(folder, "img_emb"), image, atol=3e-4)
    if (folder / "text_emb").exists():
        np.testing.assert_allclose(load(folder, "text_emb"), text, atol=3e-4)
        assert metadata(folder)["caption"] == captions


def test_of_a_hostile_shard_every_sample_is_accounted_for_and_the_good_ones_are_right(
    by_hand: Embed, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    write_tar(tmp_path / "images/00000.tar", members(CASES))
    result = embed(str(tmp_path / "images"), str(tmp_path / "out"), embed_settings)
    assert result.counts == Counter(case.outcome for case in CASES)
    check_accounts(tmp_path / "out", "0000", len(CASES))
    good = [case for case in CASES if case.outcome == "success"]
    assert metadata(tmp_path / "out")["key"] == [case.key for case in good]
    expected = [(case.key, case.outcome) for case in CASES if case.outcome != "success"]
    assert failures(tmp_path / "out") == expected
    check_vectors(tmp_path / "out", good, by_hand)
    assert inspect_folder(str(tmp_path / "out")).problems == []


def test_the_good_images_tell_right_from_wrong(by_hand: Embed) -> None:
    """Vectors of the wrong orientation, frame or bits are far from those of the right ones."""
    turned, frame = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.asarray(Image.open(io.BytesIO(GOOD_IMAGES["rotated"])))).save(turned, "PNG")
    moving = Image.open(io.BytesIO(GOOD_IMAGES["animation"]))
    moving.seek(1)
    moving.convert("RGB").save(frame, "PNG")
    right, _ = by_hand([GOOD_IMAGES["rotated"], GOOD_IMAGES["animation"], WIDE_AS_8_BIT], [])
    wrong, _ = by_hand([turned.getvalue(), frame.getvalue(), WIDE], [])
    assert (np.abs(right - wrong).max(axis=1) > 3e-3).all()


def test_failures_too_are_the_same_bytes_in_every_run(
    embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    write_tar(tmp_path / "images/00000.tar", members(CASES))
    (tmp_path / "images/00001.tar").write_bytes((tmp_path / "images/00000.tar").read_bytes()[:3000])
    kept = [b"x" * n for n in range(1000)]  # so that what is made next is elsewhere in memory
    embed(str(tmp_path / "images"), str(tmp_path / "first"), embed_settings)
    del kept
    embed(str(tmp_path / "images"), str(tmp_path / "second"), embed_settings)
    assert folder_bytes(tmp_path / "first") == folder_bytes(tmp_path / "second")
    errors = pq.read_table(tmp_path / "first/failures/failures_0000.parquet").column("error").to_pylist()
    assert not [error for error in errors if " at 0x" in error]


def test_shards_without_a_good_sample_stand_between_good_ones(embed_settings: EmbedSettings, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    corrupt = [Case(f"{n}", {"jpg": data, "txt": b"x"}, why) for n, (data, why) in enumerate(BAD_IMAGES.values())]
    write_tar(images / "00000.tar", pairs("a", "b"))
    write_tar(images / "00001.tar", [])
    (images / "00002.tar").write_bytes(b"")
    write_tar(images / "00003.tar", members(corrupt))
    (images / "00004.tar").write_bytes(b"no tar at all, " * 200)
    write_tar(images / "00005.tar", pairs("c"))
    (images / "00006.tar").write_bytes(bytes(10_240))
    embed(str(images), str(out), embed_settings)
    for number, samples in enumerate((2, 0, 1, len(corrupt), 1, 1, 0)):
        check_accounts(out, f"{number:04d}", samples)
    assert failures(out, "0002") == [("00002.tar", "damaged_shard")]
    assert failures(out, "0003") == [(case.key, case.outcome) for case in corrupt]
    assert failures(out, "0004") == [("00004.tar", "damaged_shard")]
    assert inspect_folder(str(out)).problems == []
    assert read_embeddings(str(out)).count == 3


def test_of_a_cut_tar_what_is_whole_is_embedded_wherever_it_is_cut(
    embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    whole = tmp_path / "whole/00000.tar"
    write_tar(whole, pairs("0", "1", "2"))
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        ends = {member.name: (member.offset, member.offset_data + member.size) for member in tar}
    starts = [start for start, _ in ends.values()]
    cuts = {at + shift for at in (*starts, *(end for _, end in ends.values())) for shift in (-1, 0, 1, 100, 512, 700)}
    last = max(end for _, end in ends.values())
    ordered = sorted(cut for cut in cuts if 0 <= cut < last + 512)
    (tmp_path / "cut").mkdir()
    for number, cut in enumerate(ordered):
        (tmp_path / f"cut/{number:05d}.tar").write_bytes(data[:cut])
    out = tmp_path / "out"
    embed(str(tmp_path / "cut"), str(out), embed_settings)
    for number, cut in enumerate(ordered):
        shard = f"{number:04d}"
        there = [name for name, (_, end) in ends.items() if end <= cut]
        keys = sorted({name[0] for name in there})
        good = [key for key in keys if f"{key}.txt" in there]
        assert metadata(out, shard)["key"] == good, cut
        lost = [(key, "missing_caption") for key in keys if key not in good]
        assert failures(out, shard) == [*lost, (f"{number:05d}.tar", "damaged_shard")], cut
        check_accounts(out, shard, len(keys) + 1)


@pytest.mark.parametrize("size", [b"\x80" + bytes(3) + b"\x7f" * 8, b"\xff" * 12, b"77777777777\0"])
def test_a_header_that_lies_about_the_size_neither_hangs_nor_fills_the_memory(
    embed_settings: EmbedSettings, tmp_path: Path, size: bytes
) -> None:
    """Sizes of 2^63 bytes, of -1 and of 8 GB, with a checksum that agrees."""
    path = tmp_path / "images/00000.tar"
    write_tar(path, pairs("0", "1", "2"))
    with tarfile.open(path) as tar:
        at = tar.getmember("2.png").offset
    data = bytearray(path.read_bytes())
    data[at + 124 : at + 136] = size
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    embed(str(tmp_path / "images"), str(tmp_path / "out"), embed_settings)
    assert metadata(tmp_path / "out")["key"] == ["0", "1"]
    assert failures(tmp_path / "out") == [("00000.tar", "damaged_shard")]


def test_odd_names_of_members_are_accounted_for(embed_settings: EmbedSettings, tmp_path: Path) -> None:
    """Folders are part of the key, names that are no UTF-8 get through, and files of no sample are as if not there."""
    write_tar(
        tmp_path / "images/00000.tar",
        [
            ("README", b"not a sample"),
            ("._0.png", b"what macOS adds"), *pairs("0")[:1], ("._0.txt", b"here too"), *pairs("0")[1:],
            *pairs("a/1", "./a/b/2"),
            *pairs("a/3")[:1], *pairs("b/3")[1:],
            *pairs(b"caf\xe9".decode(errors="surrogateescape"), "一", "d.e"),
        ],
    )  # fmt: skip
    out = tmp_path / "out"
    embed(str(tmp_path / "images"), str(out), embed_settings)
    assert metadata(out)["key"] == ["0", "a/1", "a/b/2", "caf\\udce9", "一"]
    assert failures(out) == [("a/3", "missing_caption"), ("b/3", "missing_image"), ("d", "missing_image")]
    check_accounts(out, "0000", 8)


def test_samples_of_one_key_are_all_rows(by_hand: Embed, embed_settings: EmbedSettings, tmp_path: Path) -> None:
    cases = [Case(key, {"png": encoded("PNG", seed=n), "txt": b"%d" % n}) for n, key in enumerate("aabcabcc")]
    write_tar(tmp_path / "images/00000.tar", members(cases))
    out = tmp_path / "out"
    result = embed(str(tmp_path / "images"), str(out), embed_settings)
    assert result.counts == {"success": 8}
    assert metadata(out)["key"] == [*"aabcabcc"]
    check_vectors(out, cases, by_hand)
    check_accounts(out, "0000", 8)


SETTINGS_OF_ONE = [{"text": False, "token_states": False}, {"image": False}]
FAILURES_OF_IMAGES = {"image_decode", "image_too_large", "image_too_thin", "missing_image"}


@pytest.mark.parametrize("only", SETTINGS_OF_ONE, ids=["images", "captions"])
def test_images_or_captions_alone_fail_only_for_what_is_embedded(
    by_hand: Embed, embed_settings: EmbedSettings, tmp_path: Path, only: dict[str, bool]
) -> None:
    write_tar(tmp_path / "images/00000.tar", members(CASES))
    (tmp_path / "images/00001.tar").write_bytes(b"")
    out = tmp_path / "out"
    embed(str(tmp_path / "images"), str(out), embed_settings.model_copy(update=only))
    check_accounts(out, "0000", len(CASES))
    if "text" in only:
        kind, other, of_the_other = "img_emb", "text_emb", {"caption_not_utf8", "missing_caption"}
    else:
        kind, other, of_the_other = "text_emb", "img_emb", FAILURES_OF_IMAGES
    rows = [case for case in CASES if case.outcome == "success" or case.outcome in of_the_other]
    rows = [case for case in rows if case.key != "neither"]
    assert metadata(out)["key"] == [case.key for case in rows]
    outcomes = {case.key: case.outcome for case in CASES if case not in rows}
    outcomes["neither"] = "missing_image" if "text" in only else "missing_caption"
    assert dict(failures(out)) == outcomes
    good = [case for case in rows if case.outcome == "success"]
    at = [row for row, case in enumerate(rows) if case.outcome == "success"]
    assert not (out / other).exists()
    images = [WIDE_AS_8_BIT if data == WIDE else data for case in good for data in list(case.members.values())[:1]]
    captions = [list(case.members.values())[1].decode() for case in good]
    expected = by_hand(images, captions)["text" not in only]
    np.testing.assert_allclose(load(out, kind)[at], expected, atol=3e-4)
    assert ("image_norm" in metadata(out), "text_norm" in metadata(out)) == ("text" in only, "text" not in only)

    if "text" in only:  # images alone can be trained on, with captions through the text tower
        with pytest.raises(InputError, match=r"stores no text embeddings; embed with embed\.text=true"):
            read_embeddings(str(out)).take(np.arange(1))
    else:
        with pytest.raises(InputError, match=r"holds no img_emb: it was embedded with embed\.image=false"):
            read_embeddings(str(out))
    assert inspect_folder(str(out)).problems == []


@pytest.mark.parametrize("only", SETTINGS_OF_ONE, ids=["images", "captions"])
def test_damage_of_images_or_captions_alone_is_found(
    embed_settings: EmbedSettings, tmp_path: Path, only: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "images/00000.tar", pairs("a", "b", "c"))
    out = tmp_path / "out"
    embed(str(tmp_path / "images"), str(out), embed_settings.model_copy(update=only))
    kind = "img_emb" if "text" in only else "text_emb"
    vectors = load(out, kind)
    vectors[1] *= 2
    np.save(out / kind / f"{kind}_0000.npy", vectors)
    name = f"{kind}/{kind}_0000.npy"
    assert inspect_folder(str(out)).problems == [f"shard 0000: {name} differs from what was committed"]
    monkeypatch.setattr("priorkit.pipeline.inspect.folder.differing_files", lambda store, record: [])
    word = "image" if "text" in only else "text"
    assert inspect_folder(str(out)).problems == [f"shard 0000, row 1: {word} embedding has norm 2, not 1"]


def test_a_hostile_folder_of_files(by_hand: Embed, embed_settings: EmbedSettings, tmp_path: Path) -> None:
    cases = [case for case in CASES if len(case.members) == 2 and case.key != "no_caption"]
    for name, data in members(cases):
        path = tmp_path / "files" / f"sub 一/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "files/z_alone.png").write_bytes(ORDINARY)
    (tmp_path / "files/notes.md").write_bytes(b"not a sample")
    out = tmp_path / "out"
    settings = embed_settings.model_copy(update={"input_format": "files"})
    embed(str(tmp_path / "files"), str(out), settings)
    cases.sort(key=lambda case: case.key)
    good = [case for case in cases if case.outcome == "success"]
    assert metadata(out)["key"] == [f"sub 一/{case.key}" for case in good]
    bad = [(f"sub 一/{case.key}", case.outcome) for case in cases if case.outcome != "success"]
    assert failures(out) == [*bad, ("z_alone", "missing_caption")]
    check_accounts(out, "0000", len(cases) + 1)
    check_vectors(out, good, by_hand)

    alone = tmp_path / "images_alone"
    embed(str(tmp_path / "files"), str(alone), settings.model_copy(update=SETTINGS_OF_ONE[0]))
    assert metadata(alone)["key"][-1] == "z_alone"
    assert {outcome for _, outcome in failures(alone)} <= FAILURES_OF_IMAGES
    check_accounts(alone, "0000", len(cases) + 1)


@pytest.mark.parametrize("nested", [False, True], ids=["bytes", "struct"])
def test_a_hostile_parquet_of_images(
    by_hand: Embed, embed_settings: EmbedSettings, tmp_path: Path, nested: bool
) -> None:
    """Captions are text there, so never of another encoding."""
    cases = [case for case in CASES if case.key not in ("latin", "neither", "upper")]
    images = [
        next((data for kind, data in case.members.items() if kind not in ("txt", "json")), None) for case in cases
    ]
    texts = [case.members["txt"].decode() if "txt" in case.members else None for case in cases]
    rows: Any = [None if image is None else {"bytes": image, "path": "x"} for image in images] if nested else images
    keys = [case.key for case in cases]
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"key": keys, "image": rows, "caption": texts}), tmp_path / "tables/0.parquet")
    out = tmp_path / "out"
    embed(str(tmp_path / "tables"), str(out), embed_settings)
    good = [case for case in cases if case.outcome == "success"]
    assert metadata(out)["key"] == [case.key for case in good]
    assert failures(out) == [(case.key, case.outcome) for case in cases if case.outcome != "success"]
    check_accounts(out, "0000", len(cases))
    check_vectors(out, good, by_hand)
    alone = tmp_path / "captions_alone"
    embed(str(tmp_path / "tables"), str(alone), embed_settings.model_copy(update=SETTINGS_OF_ONE[1]))
    assert failures(alone) == [("no_caption", "missing_caption")]
    assert not (alone / "img_emb").exists()


def test_reading_a_tar_keeps_nothing_of_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "images/00000.tar", ((f"{number:05d}.jpg", b"x" * 100) for number in range(5000)))
    store = Store(str(tmp_path / "images"))
    tracemalloc.start()
    (shard,) = list_image_shards(store)
    assert sum(1 for _ in shard.read(store)) == shard.samples == 5000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_500_000, most


MEASURE = """
import sys
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed

images, out, settings = sys.argv[1:]
result = embed(images, out, EmbedSettings.model_validate_json(settings))
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(result.rows, peak)
"""


@pytest.mark.slow
def test_peak_memory_depends_neither_on_the_number_nor_on_the_size_of_shards(
    embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    """Ten times the data takes less than a tenth more; each shard is several windows of 16 batches."""
    pictures = [encoded("JPEG", size=(64, 48), seed=seed) for seed in range(50)]
    rng = np.random.default_rng(0)
    settings = embed_settings.model_dump_json()

    def peak(name: str, shards: int, rows: int) -> int:
        for number in range(shards):
            words = rng.integers(97, 123, (rows, 3, 7), dtype=np.uint8)
            captions = [b" ".join(word.tobytes() for word in three) for three in words]
            samples = [Case(f"{n:06d}", {"jpg": pictures[n % 50], "txt": captions[n]}) for n in range(rows)]
            write_tar(tmp_path / name / f"{number:05d}.tar", members(samples))
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / name), str(tmp_path / f"{name}_out"), settings],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found, kilobytes = done.stdout.split()
        assert int(found) == shards * rows
        return int(kilobytes)

    peaks = {"few": peak("few", 2, 640), "many": peak("many", 20, 640), "large": peak("large", 2, 6400)}
    print(json.dumps(peaks))
    assert peaks["many"] < 1.1 * peaks["few"], peaks
    assert peaks["large"] < 1.1 * peaks["few"], peaks
