"""The files and the record of one embedding shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from priorkit.pipeline.clip.encoder import load_encoder
from priorkit.pipeline.clip.text_tower import TextEmbeds
from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.samples import FIRST
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.contract.vectors.spool import RowSpool
from priorkit.pipeline.embed.engines import EmbedTask, Window
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.worker import EmbedWorker, _add_window, _Embedded, failures_name
from priorkit.pipeline.errors import InputError

from .conftest import png, shards_of, write


def window(image: torch.Tensor | None, text: TextEmbeds | None = None, normalised: bool = False) -> Window:
    return Window(["a", "b"], [FIRST, FIRST], ["one", "two"], image, text, normalised)


@pytest.fixture
def spools() -> Iterator[dict[str, RowSpool]]:
    """Spools for embeddings and token states of width 2."""
    spools = {name: RowSpool(np.float16, (2,)) for name in ("img_emb", "text_emb", "token_states")}
    yield spools
    for spool in spools.values():
        spool.close()


def test_rows_are_normalised_and_their_norms_are_kept(spools: dict[str, RowSpool]) -> None:
    done = _Embedded()
    text = TextEmbeds(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[9.0, 8.0]] * 3), [1, 2])
    _add_window(window(torch.tensor([[3.0, 4.0], [0.0, -2.0]]), text), done, spools)
    assert spools["img_emb"].mapped().tolist() == np.array([[0.6, 0.8], [0, -1]], np.float16).tolist()
    assert spools["text_emb"].mapped().tolist() == [[0, 1], [1, 0]]
    assert spools["token_states"].mapped().tolist() == [[9, 8]] * 3
    assert {name: norms[0].tolist() for name, norms in done.norms.items()} == {"img_emb": [5, 2], "text_emb": [2, 1]}
    assert (done.keys, done.captions, done.lengths) == (["a", "b"], ["one", "two"], [1, 2])


def test_normalised_embeddings_have_no_norms(spools: dict[str, RowSpool]) -> None:
    done = _Embedded()
    _add_window(window(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), normalised=True), done, spools)
    assert spools["img_emb"].mapped().tolist() == [[0, 1], [1, 0]]
    assert done.norms == {}


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_zero_and_infinite_embeddings_are_an_error(value: float, spools: dict[str, RowSpool]) -> None:
    with pytest.raises(InputError, match=r"NaN, infinity or only zeros for sample b; try embed\.dtype=float32"):
        _add_window(window(torch.tensor([[1.0, 0.0], [0.0, value]])), _Embedded(), spools)


def manifest_of(settings: EmbedSettings) -> Manifest:
    return Manifest("embed", {}, {}, {"clip": load_encoder(settings.encoder_settings()).identity})


def test_a_shard_is_written_with_every_sample_accounted_for(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    pairs = write(
        tmp_path / "pairs",
        {"a.png": png("red"), "a.txt": b"a red square", "b.png": png("blue"), "c.png": png("blue"), "c.txt": b"c"},
    )
    source, store, manifest = Store(str(pairs)), Store(str(tmp_path / "out")), manifest_of(embed_settings)
    (shard,) = shards_of(pairs)
    with EmbedWorker(source, store, embed_settings, manifest) as worker:
        record = worker(EmbedTask(shard, "", None))
    assert (record.name, record.rows, record.threads) == ("0000", 2, 1)
    assert dict(record.counts) == {"missing_caption": 1, "success": 2}
    assert record.settings == manifest.settings_fingerprint
    out = tmp_path / "out"
    encoder = load_encoder(embed_settings.encoder_settings())
    raw = encoder.encode_images([encoder.decode(png(colour)) for colour in ("red", "blue")])
    expected = torch.nn.functional.normalize(raw, dim=-1).numpy()
    np.testing.assert_allclose(np.load(out / "img_emb/img_emb_0000.npy"), expected, atol=1e-3)
    texts = encoder.encode_texts(["a red square", "c"], token_states=True)
    offsets = np.load(out / "token_states/offsets_0000.npy")
    assert offsets.tolist() == [0, texts.lengths[0], sum(texts.lengths)]
    assert np.load(out / "token_states/token_states_0000.npy").shape == (sum(texts.lengths), 16)
    metadata = pq.read_table(out / "metadata/metadata_0000.parquet")
    assert metadata.column_names == ["image_path", "caption", "key", "image_norm", "text_norm"]
    assert metadata.column("key").to_pylist() == metadata.column("image_path").to_pylist() == ["a", "c"]
    np.testing.assert_allclose(metadata.column("image_norm").to_numpy(), raw.norm(dim=-1).numpy(), rtol=1e-4)
    (failure,) = pq.read_table(out / failures_name("0000")).to_pylist()
    assert failure["key"] == "b"
    assert failure["error"].startswith("missing_caption: ")


def test_the_record_of_samples_with_several_captions_has_their_number(
    tmp_path: Path, embed_settings: EmbedSettings
) -> None:
    captions = {"a.json": b'{"c": ["red", "a red square", "a square"]}', "b.json": b'{"c": "blue"}', "d.json": b"{}"}
    images = {f"{name[0]}.png": png("red") for name in captions}
    settings = embed_settings.model_copy(update={"caption_key": "c"})
    source, store = Store(str(write(tmp_path / "pairs", {**images, **captions}))), Store(str(tmp_path / "out"))
    (shard,) = shards_of(tmp_path / "pairs", caption_key="c")
    with EmbedWorker(source, store, settings, manifest_of(settings)) as worker:
        record = worker(EmbedTask(shard, "", None))
        assert (record.rows, dict(record.counts)) == (4, {"missing_caption": 1, "success": 4})
        assert (record.samples, record.input_samples) == (3, 3)
        assert ShardRecord.from_json(record.to_json()) == record
        single = worker(EmbedTask(shard, "", 0))
    assert single.samples is None
    assert "samples" not in single.to_json()


def test_columns_of_the_input_table_are_copied(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    folder = write(tmp_path / "tables", {})
    folder.mkdir()
    columns = {"lang": ["en", "de", "fr"], "caption": ["one", None, "trois"], "status": ["success"] * 3}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    settings = embed_settings.model_copy(update={"image": False, "token_states": False})
    (shard,) = shards_of(folder, image=False)
    with EmbedWorker(Store(str(folder)), Store(str(tmp_path / "out")), settings, manifest_of(settings)) as worker:
        worker(EmbedTask(shard, "", None))
    metadata = pq.read_table(tmp_path / "out/metadata/metadata_0000.parquet")
    assert metadata.column_names == ["image_path", "caption", "lang", "key", "text_norm"]
    assert metadata.column("lang").to_pylist() == ["en", "fr"]
    assert metadata.column("caption").to_pylist() == ["one", "trois"]


def test_a_worker_with_other_weights_is_refused(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    manifest = manifest_of(embed_settings)
    manifest.about["clip"] = {**manifest.about["clip"], "weights_sha256": "other"}
    store = Store(str(tmp_path))
    with pytest.raises(InputError, match="has other weights on this worker than on the driver"):
        EmbedWorker(store, store, embed_settings, manifest)
