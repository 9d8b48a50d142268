"""Readers that users already have, on our folders: embedding-reader, and clip-retrieval's way of joining."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from embedding_reader import EmbeddingReader
from PIL import Image

from priorkit.pipeline.read.dataset import read_embeddings


@functools.lru_cache
def image_vectors(images: Path, clip: Path) -> dict[str, np.ndarray]:
    """Unit image vectors by key, by open_clip alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    found = {}
    for path in images.glob("*.tar"):
        with tarfile.open(path) as tar, torch.no_grad():
            for member in tar:
                if member.name.endswith(".jpg"):
                    with Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                        vector = model.eval().encode_image(preprocess(image)[None])[0]
                    found[member.name.removesuffix(".jpg")] = torch.nn.functional.normalize(vector, dim=-1).numpy()
    return found


@pytest.mark.parametrize("kind", ["img_emb", "text_emb"])
def test_embedding_reader_reads_our_folder_and_its_rows_align(
    images_folder: Path, embeddings_folder: Path, tiny_clip: Path, kind: str
) -> None:
    columns = ["image_path", "caption", "key", "url", "sha256"]
    reader = EmbeddingReader(
        embeddings_folder=str(embeddings_folder / kind),
        metadata_folder=str(embeddings_folder / "metadata"),
        meta_columns=columns,
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (60, 16)
    dataset = read_embeddings(str(embeddings_folder))
    expected = image_vectors(images_folder, tiny_clip)
    seen = 0
    for vectors, meta in reader(batch_size=7, show_progress=False):
        rows = np.arange(seen, seen + len(vectors))
        batch = dataset.take(rows)
        ours = batch.image_embed if kind == "img_emb" else batch.text_embed
        assert np.array_equal(vectors.astype(np.float32), ours)
        assert meta["key"].tolist() == dataset.metadata(rows, ["key"]).column("key").to_pylist()
        assert meta["image_path"].tolist() == meta["key"].tolist()
        if kind == "img_emb":
            for key, vector in zip(meta["key"], vectors, strict=True):
                np.testing.assert_allclose(vector, expected[key], atol=3e-4)
        seen += len(vectors)
    assert seen == 60


def test_embedding_reader_reads_the_vectors_alone(embeddings_folder: Path) -> None:
    reader = EmbeddingReader(str(embeddings_folder / "text_emb"), file_format="npy")
    vectors = np.concatenate([vectors for vectors, _ in reader(batch_size=64, show_progress=False)])
    assert np.array_equal(vectors, read_embeddings(str(embeddings_folder)).take(np.arange(60)).text_embed)


def test_files_are_named_and_laid_out_as_by_clip_retrieval(embeddings_folder: Path) -> None:
    for number in range(4):
        image = np.load(embeddings_folder / f"img_emb/img_emb_{number:04d}.npy")
        text = np.load(embeddings_folder / f"text_emb/text_emb_{number:04d}.npy")
        metadata = pq.ParquetFile(embeddings_folder / f"metadata/metadata_{number:04d}.parquet")
        assert len(image) == len(text) == metadata.metadata.num_rows
        assert metadata.schema_arrow.names[:2] == ["image_path", "caption"]
        np.testing.assert_allclose(np.linalg.norm(image.astype(np.float32), axis=-1), 1, atol=2e-3)
    for kind, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        names = sorted(path.name for path in (embeddings_folder / kind).iterdir())
        assert names == [f"{kind}_{number:04d}.{suffix}" for number in range(4)]
