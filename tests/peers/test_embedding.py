"""Embeddings against the installed clip-retrieval and DALLE2-pytorch, and each other's folders, with one CLIP.

The CLIP is a small one of open_clip with random weights, in a file that all of them can name.
"""

from __future__ import annotations

import functools
import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.contract.empty_inputs import FILE_NAME
from priorkit.pipeline.contract.image_shards import list_image_shards, read_samples
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.read.dataset import read_embeddings

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

MODEL, BATCH, SHARDS, PAIRS = "ViT-S-32-alt", 16, 3, 40
WORDS = ("a", "photo", "of", "the", "red", "house", "near", "river", "with", "two", "dogs", "at", "night", "painting")
BAR = {"float32": 0.99999, "bfloat16": 0.999}
KINDS = {"img_emb": "image_embs", "text_emb": "text_embs"}


def jpeg(number: int, kind: str = "JPEG") -> bytes:
    """Blocks of random colours: with random weights, smooth pictures all look the same."""
    coarse = np.random.default_rng(number).integers(0, 256, (3 + number % 5, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    size = (240 + number % 40, 250)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(file, kind, quality=95)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "random.pt"
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pairs; captions have 2 to 40 tokens."""
    folder = tmp_path_factory.mktemp("work") / "images"
    choose = random.Random(0)
    for shard in range(SHARDS):
        members = []
        for row in range(PAIRS):
            number = shard * PAIRS + row
            caption = " ".join(choose.choice(WORDS) for _ in range(number % 39))
            members += [(f"{number:06d}.jpg", jpeg(number)), (f"{number:06d}.txt", caption.encode())]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def settings_of(checkpoint: Path, **changed: Any) -> EmbedSettings:
    clip = ClipSettings(model=MODEL, pretrained=str(checkpoint))
    return EmbedSettings(**{"clip": clip, "device": "cpu", "threads": 1, "batch_size": BATCH, **changed})


@functools.lru_cache
def clip_retrieval(checkpoint: Path) -> tuple[Any, Any, Any]:
    """clip-retrieval's mapper, and the preprocessing and tokenizer that its reader takes."""
    from all_clip import load_clip
    from clip_retrieval.clip_inference.mapper import ClipMapper

    name = f"open_clip:{MODEL}/{checkpoint}"
    model, preprocess, tokenizer = load_clip(clip_model=name, use_jit=False, warmup_batch_size=1)
    model.eval()  # all_clip leaves it in training mode, in which attention sums in another order
    return ClipMapper(True, True, False, False, name, False, None), preprocess, tokenizer


def upstream_rows(checkpoint: Path, shard: Path) -> dict[str, Any]:
    """What clip-retrieval's reader and mapper make of one shard: vectors of both kinds, keys, captions."""
    from clip_retrieval.clip_inference.reader import WebdatasetReader

    mapper, preprocess, tokenizer = clip_retrieval(checkpoint)
    made = [mapper(batch) for batch in WebdatasetReader(lambda a: a, preprocess, tokenizer, [str(shard)], BATCH, 1)]
    vectors = {kind: np.concatenate([part[name] for part in made]) for kind, name in KINDS.items()}
    keys = [key for part in made for key in part["image_filename"]]
    return {**vectors, "keys": keys, "captions": [text for part in made for text in part["text"]]}


@pytest.fixture(scope="module")
def theirs(checkpoint: Path, images: Path) -> list[dict[str, Any]]:
    return [upstream_rows(checkpoint, path) for path in sorted(images.glob("*.tar"))]


@pytest.fixture(scope="module")
def ours(checkpoint: Path, images: Path) -> Path:
    """Our folder in float32, with token states."""
    out = images.parent / "ours"
    embed(str(images), str(out), settings_of(checkpoint, token_states=True))
    return out


@pytest.fixture(scope="module")
def by_engine(checkpoint: Path, images: Path) -> Path:
    """Our folder by clip-retrieval's code."""
    out = images.parent / "by_engine"
    embed(str(images), str(out), settings_of(checkpoint, engine="clip-retrieval"))
    return out


def load(folder: Path, kind: str, shard: int) -> np.ndarray:
    return np.load(folder / kind / f"{kind}_{shard:04d}.npy")


def metadata(folder: Path, shard: int = 0) -> dict[str, list[Any]]:
    return pq.read_table(folder / f"metadata/metadata_{shard:04d}.parquet").to_pydict()


def failures(folder: Path, shard: int = 0) -> dict[str, str]:
    rows = pq.read_table(folder / f"failures/failures_{shard:04d}.parquet").to_pylist()
    return {row["key"]: row["error"].partition(":")[0] for row in rows}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_captions_have_2_to_40_tokens(images: Path) -> None:
    import open_clip

    store = Store(str(images))
    captions = [(s.caption or b"").decode() for shard in list_image_shards(store) for s in read_samples(store, shard)]
    tokens = (open_clip.get_tokenizer(MODEL)(captions) != 0).sum(-1)
    assert (tokens.min(), tokens.max()) == (2, 40)


@pytest.mark.parametrize("dtype", BAR)
def test_vectors_are_clip_retrievals(
    dtype: str,
    checkpoint: Path,
    images: Path,
    theirs: list[dict[str, Any]],
    ours: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    folder = ours
    if dtype != "float32":
        folder = tmp_path / "out"
        embed(str(images), str(folder), settings_of(checkpoint, dtype=dtype))
    for kind in KINDS:
        mine = np.concatenate([load(folder, kind, shard) for shard in range(SHARDS)])
        other = np.concatenate([shard[kind] for shard in theirs])
        found = cosines(mine, other)
        record_property(f"smallest cosine, {kind}", found.min())
        print(f"{dtype} {kind}: smallest cosine {found.min():.7f}, of neighbours {cosines(mine[1:], other[:-1]).max()}")
        assert found.min() >= BAR[dtype]
        assert np.median(cosines(mine[1:], other[:-1])) < BAR[dtype]  # the bar can tell rows apart
    for shard, rows in enumerate(theirs):
        assert metadata(folder, shard)["image_path"] == rows["keys"]
        assert metadata(folder, shard)["caption"] == rows["captions"]


def row_by_row(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Image vector, text vector and caption of each row, from the files."""
    for shard in range(SHARDS):
        captions = metadata(folder, shard)["caption"]
        yield from zip(load(folder, "img_emb", shard), load(folder, "text_emb", shard), captions, strict=True)


@pytest.mark.parametrize("engine", ["ours", "by_engine"])
def test_embedding_reader_reads_our_folder(engine: str, request: pytest.FixtureRequest) -> None:
    from embedding_reader import EmbeddingReader

    folder = request.getfixturevalue(engine)
    rows = list(row_by_row(folder))
    for place, kind in enumerate(KINDS):
        reader = EmbeddingReader(
            embeddings_folder=str(folder / kind), file_format="parquet_npy",
            metadata_folder=str(folder / "metadata"), meta_columns=["caption", "key"],
        )  # fmt: skip
        read = [
            (vector, caption, key)
            for vectors, meta in reader(batch_size=7, show_progress=False)
            for vector, caption, key in zip(vectors, meta["caption"], meta["key"], strict=True)
        ]
        assert reader.count == len(read) == len(rows) == SHARDS * PAIRS
        for number, ((vector, caption, key), row) in enumerate(zip(read, rows, strict=True)):
            assert np.array_equal(vector, row[place].astype(np.float32))
            assert (caption, key) == (row[2], f"{number:06d}")


def test_dalle2s_splits_read_our_folder(ours: Path) -> None:
    from clip import tokenize
    from dalle2_pytorch.dataloaders.prior_loader import get_reader, make_splits

    image, text, captions = (list(column) for column in zip(*row_by_row(ours), strict=True))
    shares = {"batch_size": 8, "num_data_points": SHARDS * PAIRS, "train_split": 0.5, "eval_split": 0.25}
    image_url, text_url, metadata_url = (str(ours / kind) for kind in (*KINDS, "metadata"))
    reader = get_reader(text_conditioned=True, img_url=image_url, meta_url=metadata_url)
    splits = [list(loader) for loader in make_splits(text_conditioned=True, image_reader=reader, **shares)]
    assert [sum(len(batch) for batch, _ in split) for split in splits] == [60, 30, 30]
    pairs = [pair for split in splits for pair in split]
    assert np.array_equal(torch.cat([embeds for embeds, _ in pairs]).numpy(), np.float32(image))
    assert torch.equal(torch.cat([tokens for _, tokens in pairs]), tokenize(captions, truncate=True))

    image_reader, text_reader = get_reader(text_conditioned=False, img_url=image_url, txt_url=text_url)
    loaders = make_splits(text_conditioned=False, image_reader=image_reader, text_reader=text_reader, **shares)
    pairs = [pair for loader in loaders for pair in loader]
    assert np.array_equal(torch.cat([embeds for embeds, _ in pairs]).numpy(), np.float32(image))
    assert np.array_equal(torch.cat([embeds for _, embeds in pairs]).numpy(), np.float32(text))


def test_autofaiss_indexes_our_folder(ours: Path, tmp_path: Path) -> None:
    from autofaiss import build_index

    index, _ = build_index(
        str(ours / "text_emb"), str(tmp_path / "knn.index"), str(tmp_path / "infos.json"), index_key="Flat",
        max_index_memory_usage="1G", current_memory_available="2G", nb_cores=1,
    )  # fmt: skip
    text = np.float32([row[1] for row in row_by_row(ours)])
    assert (index.ntotal, index.d) == text.shape
    similarity, nearest = index.search(text, 1)
    np.testing.assert_allclose(similarity[:, 0], 1, atol=2e-3)
    np.testing.assert_allclose(cosines(text[nearest[:, 0]], text), 1, atol=1e-6)  # some captions are the same


def token_states_of(folder: Path, captions: list[str]) -> np.ndarray:
    """Ours, padded with zeros to the context's length: `[N, 77, D_text]`."""
    dataset = read_embeddings(str(folder))
    rows = np.arange(dataset.count)
    assert dataset.metadata(rows, ["caption"]).column("caption").to_pylist() == captions
    states = dataset.take(rows, max_text_len=77).token_states
    assert states is not None
    return states


def assert_within_half_rounding(mine: np.ndarray, other: np.ndarray) -> None:
    """The difference is what float16 cannot hold, and of float32 sums in another order."""
    np.testing.assert_allclose(mine, other, rtol=2**-11 + 1e-5, atol=2e-5)


def dalle2_embed_text(checkpoint: Path, captions: list[str]) -> tuple[torch.Tensor, Any]:
    """Tokens, and what DALLE2-pytorch's adapter makes of them."""
    import open_clip
    from dalle2_pytorch import OpenClipAdapter

    tokens = open_clip.get_tokenizer(MODEL)(captions)
    return tokens, OpenClipAdapter(MODEL, pretrained=str(checkpoint)).eval().embed_text(tokens)


def test_token_states_are_dalle2s(ours: Path, checkpoint: Path) -> None:
    captions = [row[2] for row in row_by_row(ours)]
    _, expected = dalle2_embed_text(checkpoint, captions)
    found = token_states_of(ours, captions)
    assert_within_half_rounding(found, expected.text_encodings.numpy())
    assert np.array_equal((found != 0).any(-1), (expected.text_encodings != 0).any(-1).numpy())
    text = np.float32([row[1] for row in row_by_row(ours)])
    assert_within_half_rounding(text, expected.text_embed.numpy())


def test_dalle2_drops_the_state_of_an_exclamation_mark_and_we_do_not(checkpoint: Path, tmp_path: Path) -> None:
    """`!` before another sign is token 0, which is the padding's too; DALLE2-pytorch takes all of it for padding."""
    captions = ["¡!¿ now", "!/ !+", "a dog!&", "one alone !", "none"]
    members = [m for n, c in enumerate(captions) for m in ((f"{n}.jpg", jpeg(n)), (f"{n}.txt", c.encode()))]
    write_tar(tmp_path / "images/00000.tar", members)
    embed(str(tmp_path / "images"), str(tmp_path / "out"), settings_of(checkpoint, token_states=True))
    found = token_states_of(tmp_path / "out", captions)
    tokens, theirs = dalle2_embed_text(checkpoint, captions)
    expected = theirs.text_encodings.numpy()
    ends = tokens.argmax(-1, keepdim=True)
    dropped = ((tokens == 0) & (torch.arange(tokens.shape[1]) < ends)).numpy()
    assert dropped.sum(-1).tolist() == [1, 2, 1, 0, 0]  # alone, at the end of a word, it is token 256
    assert (expected[dropped] == 0).all()
    assert (np.abs(found[dropped]).sum(-1) > 1).all()
    assert_within_half_rounding(np.where(dropped[..., None], 0, found), expected)


def test_the_engine_clip_retrieval_gives_its_vectors_to_the_bit(
    by_engine: Path, ours: Path, theirs: list[dict[str, Any]]
) -> None:
    for shard, rows in enumerate(theirs):
        for kind in KINDS:
            assert load(by_engine, kind, shard).dtype == np.float16
            assert np.array_equal(load(by_engine, kind, shard), rows[kind])
        found, native = metadata(by_engine, shard), metadata(ours, shard)
        assert found == {name: native[name] for name in ("image_path", "caption", "key")}

    def names(folder: Path) -> list[str]:
        left_out = ("token_states/", FILE_NAME)  # which only the native engine writes
        return sorted(name for name in Store(str(folder)).names() if not name.startswith(left_out))

    assert names(by_engine) == names(ours)
    assert read_embeddings(str(by_engine)).clip == {**read_embeddings(str(ours)).clip}


def test_a_rerun_of_the_engine_does_nothing(by_engine: Path, images: Path, checkpoint: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in by_engine.rglob("*.npy")}
    result = embed(str(images), str(by_engine), settings_of(checkpoint, engine="clip-retrieval"))
    assert (result.rows, result.units, result.done_now) == (SHARDS * PAIRS, SHARDS, 0)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in by_engine.rglob("*.npy")} == before


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Samples that give no row, of every kind; three images of other extensions; a shard of nothing but broken ones."""
    good, caption = jpeg(3), b"a dog"
    samples = {
        "good": {"jpg": good, "txt": caption},
        "cut": {"jpg": good[: len(good) // 3], "txt": caption},
        "none": {"jpg": b"", "txt": caption},
        "wordless": {"jpg": good},
        "imageless": {"txt": caption},
        "latin": {"jpg": good, "txt": "é".encode("latin-1")},
        "png": {"png": jpeg(4, "PNG"), "txt": b"another"},
        "sub/upper": {"JPG": jpeg(5), "txt": "一只猫".encode()},
        "last": {"jpg": jpeg(6), "txt": b""},
    }
    members = [(f"{key}.{extension}", data) for key, parts in samples.items() for extension, data in parts.items()]
    write_tar(tmp_path / "hostile/00000.tar", [*members, ("good.jpg", jpeg(7)), ("good.txt", b"again")])
    write_tar(tmp_path / "hostile/00001.tar", [("bad.jpg", b"bad"), ("bad.txt", caption), ("worse.txt", caption)])
    write_tar(tmp_path / "hostile/00002.tar", [])
    write_tar(
        tmp_path / "hostile/00003.tar",
        [(f"{n}.{e}", d) for n in range(3) for e, d in (("jpg", good), ("txt", caption))],
    )
    whole = (tmp_path / "hostile/00003.tar").read_bytes()
    (tmp_path / "hostile/00003.tar").write_bytes(whole[: len(good) * 2])
    return tmp_path / "hostile"


def test_every_sample_of_the_engine_is_a_row_or_a_counted_failure(
    hostile: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, native = tmp_path / "out", tmp_path / "native"
    result = embed(str(hostile), str(out), settings_of(checkpoint, engine="clip-retrieval"))
    assert failures(out) == {
        "cut": "image_decode", "none": "image_decode", "wordless": "missing_caption", "imageless": "missing_image",
        "latin": "caption_not_utf8",
    }  # fmt: skip
    assert failures(out, 1) == {"bad": "image_decode", "worse": "missing_image"}
    assert failures(out, 2) == {}
    assert "00003.tar" in failures(out, 3)
    embed(str(hostile), str(native), settings_of(checkpoint))
    assert all(failures(out, shard) == failures(native, shard) for shard in range(4))
    assert metadata(out)["key"] == metadata(native)["key"] == ["good", "png", "sub/upper", "last", "good"]
    assert metadata(out)["caption"] == metadata(native)["caption"]
    assert metadata(out, 3)["key"] == metadata(native, 3)["key"]
    assert result.counts["success"] == 5 + len(metadata(native, 3)["key"])
    for kind in KINDS:
        assert cosines(load(out, kind, 0), load(native, kind, 0)).min() > BAR["float32"]
    assert read_embeddings(str(out)).count == result.rows


@pytest.mark.parametrize("kinds", [{"image": False}, {"text": False}], ids=["text only", "images only"])
def test_the_engine_embeds_one_kind_alone(
    kinds: dict[str, bool], checkpoint: Path, images: Path, theirs: list[dict[str, Any]], tmp_path: Path
) -> None:
    embed(str(images), str(tmp_path), settings_of(checkpoint, engine="clip-retrieval", **kinds), limit=PAIRS + 5)
    kept, left_out = ("text_emb", "img_emb") if "image" in kinds else ("img_emb", "text_emb")
    assert np.array_equal(load(tmp_path, kept, 0), theirs[0][kept])
    assert load(tmp_path, kept, 1).shape == (5, theirs[1][kept].shape[1])
    assert metadata(tmp_path, 1)["caption"] == theirs[1]["captions"][:5]
    assert not (tmp_path / left_out).exists()


def test_the_engine_reads_remote_shards(checkpoint: Path, images: Path, by_engine: Path) -> None:
    remote = Store("memory://embedding/images")
    with remote.create("00001.tar") as file:
        file.write((images / "00001.tar").read_bytes())
    embed(remote.url, "memory://embedding/out", settings_of(checkpoint, engine="clip-retrieval"))
    with Store("memory://embedding/out").open("text_emb/text_emb_0001.npy") as file:
        assert file.read() == (by_engine / "text_emb/text_emb_0001.npy").read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "bfloat16"}, "embed.dtype=bfloat16"),
        ({"token_states": True}, "embed.token_states=True"),
    ],
)
def test_what_the_engine_cannot_do_is_named(
    changed: dict[str, Any], named: str, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    settings = settings_of(checkpoint, engine="clip-retrieval", **changed)
    with pytest.raises(SettingsError, match=f"{named}: embed.engine=clip-retrieval can only do"):
        embed(str(images), str(tmp_path / "out"), settings)
    embed(str(images), str(tmp_path / "out"), settings_of(checkpoint), limit=1)  # the folder is not taken


def test_the_engine_embeds_files(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "files/a.txt").write_text("a")
    embed(str(tmp_path / "files"), str(tmp_path / "out"), settings_of(checkpoint, engine="clip-retrieval"))
    assert metadata(tmp_path / "out")["caption"] == ["a"]


@pytest.fixture(scope="module")
def written_by_clip_retrieval(checkpoint: Path, images: Path) -> Path:
    """What its own command writes, in two partitions, which take the shards in turns."""
    out = images.parent / "clip_retrieval"
    command = [
        str(Path(sys.executable).with_name("clip-retrieval")), "inference",
        f"--input_dataset={images}/{{00000..{SHARDS - 1:05d}}}.tar", f"--output_folder={out}",
        "--input_format=webdataset", f"--clip_model=open_clip:{MODEL}/{checkpoint}", f"--batch_size={BATCH}",
        "--num_prepro_workers=1",  # with fewer shards than workers it hangs
        f"--wds_number_file_per_input_file={PAIRS}", f"--write_batch_size={2 * PAIRS}", "--enable_wandb=False",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return out


def test_we_read_what_the_real_command_wrote(written_by_clip_retrieval: Path, ours: Path) -> None:
    folder = written_by_clip_retrieval
    assert sorted(path.name for path in (folder / "img_emb").iterdir()) == ["img_emb_0.npy", "img_emb_1.npy"]
    mine, theirs = read_embeddings(str(ours)), read_embeddings(str(folder))
    assert (theirs.count, theirs.embed_dim) == (mine.count, mine.embed_dim) == (SHARDS * PAIRS, 256)
    rows, columns = np.arange(mine.count), ["key", "image_path", "caption"]
    place = {key: row for row, key in enumerate(theirs.metadata(rows, ["key"]).column("key").to_pylist())}
    same = np.array([place[key] for key in mine.metadata(rows, ["key"]).column("key").to_pylist()])
    assert theirs.metadata(same, columns).to_pydict() == mine.metadata(rows, columns).to_pydict()
    one, other = mine.take(rows), theirs.take(same)
    assert cosines(one.image_embed, other.image_embed).min() >= BAR["float32"]
    assert cosines(one.text_embed, other.text_embed).min() >= BAR["float32"]
    assert len(theirs.split_plan) == mine.count
