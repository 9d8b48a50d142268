"""Embed against open_clip itself, on hand-built tars, and through the readers' eyes."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from priorkit.pipeline.contract import storage
from priorkit.pipeline.contract.empty_inputs import FILE_NAME as EMPTY_INPUTS
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed, plan_embed
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

FolderBytes = Callable[[Path], dict[str, bytes]]
END_OF_TEXT = 49407
CAPTIONS = ["a cat", "", "一只猫 🐈", "word " * 40, "a red square with a rather long description, and more"]


def picture(index: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(index).integers(0, 255, (30 + index % 7, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    """A tar whose sample `i` has the key `000i` and the members given by extension."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for extension, data in sample.items():
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def load(folder: Path, kind: str, shard: str = "0000") -> np.ndarray:
    return np.load(folder / kind.replace("offsets", "token_states") / f"{kind}_{shard}.npy")


def keys(folder: Path, shard: str = "0000") -> list[str]:
    return pq.read_table(folder / f"metadata/metadata_{shard}.parquet").column("key").to_pylist()


def failures(folder: Path, shard: str = "0000") -> dict[str, str]:
    table = pq.read_table(folder / f"failures/failures_{shard}.parquet")
    return {row["key"]: row["error"] for row in table.to_pylist()}


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """A shard of five pairs without manifest or parquet: short, empty, Chinese, overlong and ordinary captions."""
    kinds = [("PNG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")]
    images = [picture(number, *kind) for number, kind in enumerate(kinds)]
    extensions = ["png", "jpg", "png", "png", "webp"]
    samples = [{e: i, "txt": c.encode()} for e, i, c in zip(extensions, images, CAPTIONS, strict=True)]
    write_tar(tmp_path / "captioned/00000.tar", samples)
    return tmp_path / "captioned"


@pytest.fixture
def by_hand(tiny_clip: Path) -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer straight from open_clip."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{tiny_clip}")


def test_vectors_are_those_of_open_clip_called_directly(
    captioned: Path, by_hand: tuple[Any, Any, Any], embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    result = embed(str(captioned), str(tmp_path / "out"), embed_settings)
    assert (result.rows, result.counts) == (5, {"success": 5})
    model, preprocess, tokenizer = by_hand
    metadata = pq.read_table(tmp_path / "out/metadata/metadata_0000.parquet").to_pydict()
    assert metadata["caption"] == CAPTIONS
    assert metadata["key"] == metadata["image_path"] == ["0000", "0001", "0002", "0003", "0004"]
    with torch.no_grad(), tarfile.open(captioned / "00000.tar") as tar:
        files = [member for member in tar.getmembers() if not member.name.endswith("txt")]
        pixels = [preprocess(Image.open(tar.extractfile(member))) for member in files]  # type: ignore[arg-type]
        image = torch.cat([model.encode_image(one[None]) for one in pixels])
        text = torch.cat([model.encode_text(tokenizer([caption])) for caption in CAPTIONS])
    for kind, norm_column, raw in (("img_emb", "image_norm", image), ("text_emb", "text_norm", text)):
        stored = load(tmp_path / "out", kind)
        assert (stored.dtype, stored.shape) == (np.float16, (5, 16))
        unit = torch.nn.functional.normalize(raw, dim=-1)
        np.testing.assert_allclose(stored, unit.numpy(), atol=3e-4)
        np.testing.assert_allclose(metadata[norm_column], raw.norm(dim=-1).numpy(), rtol=1e-5)
    assert len(np.unique(load(tmp_path / "out", "img_emb"), axis=0)) == 5


def test_token_states_are_those_of_the_text_tower_up_to_the_end_of_text(
    captioned: Path, by_hand: tuple[Any, Any, Any], embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    """Each caption alone through the bare tower, cut after its end of text: in a causal tower nothing else matters."""
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    model, _, tokenizer = by_hand
    offsets, states = load(tmp_path / "out", "offsets"), load(tmp_path / "out", "token_states")
    assert (offsets.dtype, states.dtype) == (np.int64, np.float16)
    assert offsets[0] == 0
    assert len(states) == offsets[-1]
    for row, caption in enumerate(CAPTIONS):
        tokens = tokenizer([caption])[0]
        length = tokens.tolist().index(END_OF_TEXT) + 1
        assert offsets[row + 1] - offsets[row] == length
        with torch.no_grad():
            x = model.token_embedding(tokens[:length])[None] + model.positional_embedding[:length]
            mask = torch.full((length, length), float("-inf")).triu(1)
            expected = model.ln_final(model.transformer(x, attn_mask=mask))[0]
            pooled = torch.nn.functional.normalize(expected[-1] @ model.text_projection, dim=-1)
        np.testing.assert_allclose(states[offsets[row] : offsets[row + 1]], expected.numpy(), atol=2e-3, rtol=1e-3)
        np.testing.assert_allclose(load(tmp_path / "out", "text_emb")[row], pooled.numpy(), atol=3e-4)
    lengths = np.diff(offsets)
    assert lengths[1] == 2
    assert lengths[3] == 24


def test_token_states_are_left_out_unless_asked_for(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings.model_copy(update={"token_states": False}))
    assert not (tmp_path / "out/token_states").exists()
    assert read_embeddings(str(tmp_path / "out")).token_width is None


def test_samples_that_give_no_row_are_counted_and_named(
    embed_settings: EmbedSettings, tmp_path: Path, captioned: Path
) -> None:
    good = {"png": picture(1), "txt": b"good"}
    samples = [
        good,
        {"png": picture(2)[:-40], "txt": b"cut"},
        {"png": picture(3)},
        {"png": picture(4), "txt": b"\xff\xfe bad"},
        {"txt": b"no image"},
        {"png": b"", "txt": b"empty"},
        {"png": b"<svg/>", "txt": b"no image"},
        {"json": b"{}"},
        good,
    ]
    write_tar(tmp_path / "images/00000.tar", samples)
    result = embed(str(tmp_path / "images"), str(tmp_path / "out"), embed_settings)
    assert result.counts == {
        "success": 2, "image_decode": 3, "missing_caption": 1, "missing_image": 2, "caption_not_utf8": 1
    }  # fmt: skip
    assert result.rows == 2
    assert keys(tmp_path / "out") == ["0000", "0008"]
    reasons = {key: reason.partition(":")[0] for key, reason in failures(tmp_path / "out").items()}
    assert reasons == {
        "0001": "image_decode", "0002": "missing_caption", "0003": "caption_not_utf8", "0004": "missing_image",
        "0005": "image_decode", "0006": "image_decode", "0007": "missing_image",
    }  # fmt: skip
    vectors = load(tmp_path / "out", "img_emb")
    assert np.array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize("samples", [[], [{"txt": b"only text"}]])
def test_a_shard_without_a_single_pair_is_an_empty_shard(
    embed_settings: EmbedSettings, tmp_path: Path, captioned: Path, samples: list[dict[str, bytes]]
) -> None:
    write_tar(captioned / "00001.tar", samples)
    write_tar(captioned / "00002.tar", [{"png": picture(9), "txt": b"after"}])
    result = embed(str(captioned), str(tmp_path / "out"), embed_settings)
    assert (result.units, result.rows) == (3, 6)
    assert load(tmp_path / "out", "img_emb", "0001").shape == (0, 16)
    assert load(tmp_path / "out", "offsets", "0001").tolist() == [0]
    dataset = read_embeddings(str(tmp_path / "out"))
    assert dataset.metadata(np.arange(6), ["caption"]).column("caption").to_pylist() == [*CAPTIONS, "after"]
    assert np.isfinite(dataset.take(np.arange(6), max_text_len=4).image_embed).all()


def test_a_folder_without_any_pair_cannot_be_read_and_says_so(embed_settings: EmbedSettings, tmp_path: Path) -> None:
    write_tar(tmp_path / "images/00000.tar", [])
    with pytest.raises(InputError, match="no row gave an embedding"):
        embed(str(tmp_path / "images"), str(tmp_path / "out"), embed_settings)
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(str(tmp_path / "out"))


def test_columns_of_the_list_and_the_image_hash_come_along_by_key(images_folder: Path, embeddings_folder: Path) -> None:
    for number in range(4):
        rows = pq.read_table(images_folder / f"0000{number}.parquet").to_pylist()
        kept = {row["key"]: row for row in rows if row["status"] == "success"}
        metadata = pq.read_table(embeddings_folder / f"metadata/metadata_000{number}.parquet").to_pylist()
        assert [row["key"] for row in metadata] == list(kept)
        for row in metadata:
            for column in ("url", "caption", "licence", "sha256", "original_width"):
                assert row[column] == kept[row["key"]][column]


def test_rows_of_one_key_are_each_embedded_with_what_is_known_of_them(
    embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    keys, rows = ["a", "b", "a", "c"], ["row0", "row1", "row2", "row3"]
    (tmp_path / "list").mkdir()
    pq.write_table(pa.table({"key": keys, "caption": rows, "source": rows}), tmp_path / "list/t.parquet")
    settings = embed_settings.model_copy(update={"image": False})
    result = embed(str(tmp_path / "list"), str(tmp_path / "out"), settings)
    assert result.counts == {"success": 4}
    found = pq.read_table(tmp_path / "out/metadata/metadata_0000.parquet").to_pydict()
    assert found["caption"] == found["source"] == rows
    assert found["key"] == keys


def test_limited_runs_then_the_full_one_give_the_bytes_of_the_full_one(
    images_folder: Path,
    embeddings_folder: Path,
    embed_settings: EmbedSettings,
    tmp_path: Path,
    folder_bytes: FolderBytes,
) -> None:
    limited = tmp_path / "limited"
    for limit in (1, 19, 30):
        result = embed(str(images_folder), str(limited), embed_settings, limit=limit)
        assert result.rows == limit
        assert embed(str(images_folder), str(limited), embed_settings, limit=limit).done_now == 0
    before = folder_bytes(limited)
    for limit in (5, 25):
        assert embed(str(images_folder), str(limited), embed_settings, limit=limit).done_now == 0
        assert folder_bytes(limited) == before
    embed(str(images_folder), str(limited), embed_settings)
    assert folder_bytes(limited) == folder_bytes(embeddings_folder)
    for limit in (5, 60):
        assert embed(str(images_folder), str(limited), embed_settings, limit=limit).done_now == 0
        assert folder_bytes(limited) == folder_bytes(embeddings_folder)


def test_a_new_image_shard_is_the_only_one_embedded(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    before = folder_bytes(tmp_path / "out")
    write_tar(captioned / "00001.tar", [{"png": picture(number), "txt": b"new"} for number in range(3)])
    result = embed(str(captioned), str(tmp_path / "out"), embed_settings)
    assert (result.done_now, result.units, result.rows) == (1, 2, 8)
    after = folder_bytes(tmp_path / "out")
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }


def test_a_changed_image_shard_is_embedded_again(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    write_tar(captioned / "00000.tar", [{"png": picture(50), "txt": b"another"}])
    result = embed(str(captioned), str(tmp_path / "out"), embed_settings)
    assert (result.done_now, result.rows) == (1, 1)
    assert keys(tmp_path / "out") == ["0000"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.slow
def test_a_kill_at_any_instant_changes_no_byte(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A kill before each rename and removal, then the same command again."""
    write_tar(captioned / "00001.tar", [{"png": picture(7), "txt": b"another"}])
    embed(str(captioned), str(tmp_path / "whole"), embed_settings)
    expected = folder_bytes(tmp_path / "whole")
    assert {EMPTY_INPUTS, "manifest.json"} < expected.keys()
    left = [0]

    def counted(action: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            action(*arguments)

        return act

    replace, remove = os.replace, os.remove
    left_behind = []
    for instants in range(100):
        out, left[0] = tmp_path / f"out{instants}", instants
        with monkeypatch.context() as patched:
            patched.setattr(storage.os, "replace", counted(replace))
            patched.setattr(storage.os, "remove", counted(remove))  # temporary files stay
            try:
                embed(str(captioned), str(out), embed_settings)
            except Killed:
                left_behind.append(any(out.glob(f"{EMPTY_INPUTS}.*")) or (out / EMPTY_INPUTS).exists())
        if len(left_behind) == instants:
            break
        embed(str(captioned), str(out), embed_settings)
        assert folder_bytes(out) == expected, f"killed before action {instants}"
    assert instants > 10
    assert left_behind.count(True) >= 2  # before the file gets its name, and before the manifest records it


def test_a_complete_folder_gets_its_empty_inputs_and_keeps_its_shards(
    captioned: Path, embed_settings: EmbedSettings, tiny_clip: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    out = tmp_path / "out"
    embed(str(captioned), str(out), embed_settings)
    expected = folder_bytes(out)
    fingerprint = read_embeddings(str(out)).content_fingerprint
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["about"]["empty_inputs"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / EMPTY_INPUTS).unlink()
    assert read_embeddings(str(out)).empty_inputs is None
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*_0000.*")}
    assert embed(str(captioned), str(out), embed_settings).done_now == 0
    assert folder_bytes(out) == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert read_embeddings(str(out)).content_fingerprint == fingerprint
    (out / EMPTY_INPUTS).unlink()
    assert any(EMPTY_INPUTS in problem for problem in inspect_folder(str(out)).problems)
    embed(str(captioned), str(out), embed_settings)
    assert folder_bytes(out) == expected
    assert inspect_folder(str(out)).problems == []


def test_raw_embeddings_and_empty_inputs_are_those_of_open_clip(
    captioned: Path, by_hand: tuple[Any, Any, Any], embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings.model_copy(update={"token_states": False}))
    model, _, tokenizer = by_hand
    dataset = read_embeddings(str(tmp_path / "out"))
    with torch.no_grad():
        zero = model.encode_image(torch.zeros(1, 3, 32, 32))[0].numpy()
        text = model.encode_text(tokenizer(["", *CAPTIONS])).numpy()
    empty = dataset.empty_inputs
    assert empty is not None
    assert empty.token_states is not None
    assert (empty.token_states.shape, dataset.token_width) == ((2, 16), None)
    np.testing.assert_allclose(empty.image_embed, zero, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(empty.text_embed, text[0], rtol=1e-5, atol=1e-6)
    raw = dataset.take(np.arange(5), raw_text=True).text_embed
    assert np.linalg.norm(raw - text[1:]) < 1e-3 * np.linalg.norm(text[1:])


def test_a_folder_that_is_overwritten_by_another_engine_or_clip_keeps_no_empty_inputs(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    embed(str(captioned), str(out), embed_settings)
    before = read_embeddings(str(out)).empty_inputs
    half = embed_settings.model_copy(update={"dtype": "bfloat16"})
    monkeypatch.setattr("priorkit.pipeline.embed.stage.run_shards", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        embed(str(captioned), str(out), half, overwrite=True)
    assert not (out / EMPTY_INPUTS).exists()
    monkeypatch.undo()
    embed(str(captioned), str(out), half)
    after = read_embeddings(str(out)).empty_inputs
    assert before is not None
    assert after is not None
    assert not np.array_equal(before.image_embed, after.image_embed)


def test_a_lost_image_shard_is_refused(captioned: Path, embed_settings: EmbedSettings, tmp_path: Path) -> None:
    write_tar(captioned / "00001.tar", [{"png": picture(1), "txt": b"x"}])
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    (captioned / "00000.tar").unlink()
    with pytest.raises(FolderError, match=r"holds shard 0000, for which .* has no input"):
        embed(str(captioned), str(tmp_path / "out"), embed_settings)


def test_decode_threads_do_not_change_a_byte_and_are_no_other_setting(
    images_folder: Path,
    embeddings_folder: Path,
    embed_settings: EmbedSettings,
    tmp_path: Path,
    folder_bytes: FolderBytes,
) -> None:
    for threads in (1, 4):
        other = embed_settings.model_copy(update={"decode_threads": threads})
        embed(str(images_folder), str(tmp_path / f"threads{threads}"), other)
        assert folder_bytes(tmp_path / f"threads{threads}") == folder_bytes(embeddings_folder)
    assert embed(str(images_folder), str(tmp_path / "threads1"), other).done_now == 0


def test_other_settings_and_other_weights_are_refused(
    captioned: Path, embed_settings: EmbedSettings, tiny_clip: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    out = tmp_path / "out"
    embed(str(captioned), str(out), embed_settings)
    before = folder_bytes(out)
    with pytest.raises(FolderError, match="batch_size: 8 -> 4"):
        embed(str(captioned), str(out), embed_settings.model_copy(update={"batch_size": 4}))
    other = tmp_path / "other_clip"
    other.mkdir()
    weights = safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors")
    weights["text_projection"] = weights["text_projection"] * 2
    safetensors.torch.save_file(weights, other / "open_clip_model.safetensors")
    (other / "open_clip_config.json").write_text((tiny_clip / "open_clip_config.json").read_text())
    changed = embed_settings.model_copy(
        update={"clip": embed_settings.clip.model_copy(update={"model": f"local-dir:{other}"})}
    )
    with pytest.raises(FolderError, match=r"open_clip_model\.safetensors"):
        embed(str(captioned), str(out), changed)
    assert folder_bytes(out) == before


def test_the_same_weights_at_another_path_are_the_same_clip(
    captioned: Path, embed_settings: EmbedSettings, tiny_clip: Path, tmp_path: Path
) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    moved = tmp_path / "moved"
    os.symlink(tiny_clip, moved)
    clip = embed_settings.clip.model_copy(update={"model": f"local-dir:{moved}"})
    assert embed(str(captioned), str(tmp_path / "out"), embed_settings.model_copy(update={"clip": clip})).done_now == 0


def test_a_folder_goes_on_with_the_same_clip_under_another_name(
    captioned: Path, embed_settings: EmbedSettings, tiny_clip: Path, tmp_path: Path
) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    before = (tmp_path / "out/manifest.json").read_bytes()
    folder = tmp_path / "clip"
    folder.mkdir()
    shutil.copy(tiny_clip / "open_clip_config.json", folder)
    torch.save(safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors"), folder / "epoch_1.pt")
    clip = embed_settings.clip.model_copy(update={"model": f"local-dir:{folder}"})
    same = embed_settings.model_copy(update={"clip": clip})
    assert embed(str(captioned), str(tmp_path / "out"), same).done_now == 0
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    write_tar(captioned / "00001.tar", [{"png": picture(9), "txt": b"x"}])
    assert embed(str(captioned), str(tmp_path / "out"), same).done_now == 1
    after = json.loads((tmp_path / "out/manifest.json").read_text())
    assert after["about"]["clip"] == json.loads(before)["about"]["clip"]
    assert after["settings"] == json.loads(before)["settings"]


def test_the_manifest_identifies_the_clip(captioned: Path, embed_settings: EmbedSettings, tmp_path: Path) -> None:
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    clip = json.loads((tmp_path / "out/manifest.json").read_text())["about"]["clip"]
    assert (clip["embed_dim"], clip["token_width"], clip["context_length"]) == (16, 16, 24)
    assert (clip["activation"], clip["dtype"], clip["normalised"]) == ("gelu", "float32", True)
    assert len(clip["weights_sha256"]) == 64
    assert clip["preprocess"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("model", ["ViT-B-33", "local-dir:/nowhere", "priorkit:nowhere"])
def test_a_clip_that_is_not_there_is_a_clear_error_before_anything_is_written(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path, model: str
) -> None:
    pretrained = None if ":" in model else "x"
    clip = embed_settings.clip.model_copy(update={"model": model, "pretrained": pretrained})
    with pytest.raises(InputError, match=model.rpartition("/")[2]):
        embed(str(captioned), str(tmp_path / "out"), embed_settings.model_copy(update={"clip": clip}))
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_of_a_damaged_tar_what_is_before_the_damage_is_embedded_and_the_rest_counted(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    write_tar(captioned / "00001.tar", [{"png": picture(number), "txt": b"x"} for number in range(3)])
    whole = (captioned / "00001.tar").read_bytes()
    (captioned / "00001.tar").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    result = embed(str(captioned), str(out), embed_settings)
    assert result.counts["damaged_shard"] == 1
    assert result.counts["success"] == 5 + len(keys(out, "0001")) == 6
    assert "00001.tar is damaged" in failures(out, "0001")["00001.tar"]
    (captioned / "00001.tar").write_bytes(whole)  # mended, it is another input
    again = embed(str(captioned), str(out), embed_settings)
    assert (again.done_now, again.counts) == (1, {"success": 8})


def test_a_plan_counts_and_does_nothing(images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path) -> None:
    plan = plan_embed(str(images_folder), str(tmp_path / "out"), embed_settings)
    assert (plan.units, plan.pending_units, plan.pending_rows) == (4, 4, 60)
    plan = plan_embed(str(images_folder), str(tmp_path / "out"), embed_settings, limit=25)
    assert (plan.units, plan.pending_rows) == (2, 25)
    assert not (tmp_path / "out").exists()


def test_an_object_store_holds_the_same_files(
    captioned: Path, embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    images, out = Store(f"memory://{uuid.uuid4().hex}"), Store(f"memory://{uuid.uuid4().hex}")
    with images.create("00000.tar") as file:
        file.write((captioned / "00000.tar").read_bytes())
    embed(images.url, out.url, embed_settings)
    embed(str(captioned), str(tmp_path / "out"), embed_settings)
    found = {}
    for name in out.names():
        with out.open(name) as stored:
            found[name] = stored.read()
    with_times = ("stats/", "inputs/")
    compared = {name: data for name, data in found.items() if not name.startswith(with_times)}
    assert compared == folder_bytes(tmp_path / "out")
    rows = np.arange(5)
    remote, local = read_embeddings(out.url).take(rows, 24), read_embeddings(str(tmp_path / "out")).take(rows, 24)
    assert np.array_equal(remote.image_embed, local.image_embed)
    assert remote.token_states is not None
    assert local.token_states is not None
    assert np.array_equal(remote.token_states, local.token_states)
