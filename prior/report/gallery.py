"""Functions that find the images nearest to text embeddings and to a prior's predictions, and draw them in a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...pipeline.contract.image_shards import list_image_shards, read_samples
from ...pipeline.display.terminal import clean
from ...pipeline.embed.patterns import locate
from ...pipeline.images.upright import opened_rgb
from ...pipeline.images.wrap import wrap_text
from ...pipeline.read.dataset import EmbeddingDataset
from ..model.prior import Prior

_TILE = 96
"""Side length of an image tile in pixels."""
_MARGIN = 12
"""Gap between images in pixels."""
_HEADER = 64
"""Height in pixels of the area for the title and the column headings."""
_LABEL_WIDTH = 260
"""Width of the caption column in pixels."""
_LINES = 5
"""Maximum number of lines of a caption."""
_BACKGROUND, _INK, _FAINT, _TRUE = "white", "#1b1b1b", "#6b6b6b", "#1a8f3c"


@dataclass(frozen=True)
class GalleryRow:
    """Row of the gallery: a caption, the key (name) of its own image, and the keys of the nearest images."""

    caption: str
    true_key: str
    """Key of the caption's own image."""
    nearest_to_text: Sequence[str]
    """Keys of the images nearest to the caption's text embedding, nearest first."""
    nearest_to_prior: Sequence[str]
    """Keys of the images nearest to the prior's prediction, nearest first."""


def nearest(queries: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """Find the images with the highest cosine similarity to each query embedding.

    Args:
        queries: C query embeddings of norm 1, `[C, D]`, where D is the embedding dimension.
        images: embeddings of norm 1 of the S images to search, `[S, D]`.
        count: number of images to find per query. If it is greater than S, all images are returned.

    Returns:
        Positions in `images` of the images found, nearest first, `[C, min(count, S)]`.
    """
    return np.asarray(np.argsort(-(queries.astype(np.float32) @ images.T), axis=1, kind="stable")[:, :count])


def nearest_images(
    prior: Prior, dataset: EmbeddingDataset, rows: np.ndarray, count: int, seed: int
) -> list[GalleryRow]:
    """Find, for each caption, the images nearest to its text embedding and those nearest to the prior's prediction.

    All images of the dataset are searched. For each prediction, two embeddings are sampled, and the one with the higher
    cosine similarity to the text is used; see `Prior.sample`.

    Args:
        prior: prior to sample predictions from.
        dataset: embeddings, with keys and captions.
        rows: row numbers of the captions.
        count: number of images to find for each text embedding, and for each prediction.
        seed: seed for sampling the predictions.

    Returns:
        One gallery row per caption, in the order of `rows`.
    """
    whole = dataset.take(np.arange(dataset.count))
    keys = dataset.metadata(whole.rows, ["key"]).column("key").to_pylist()
    captions = dataset.metadata(rows, ["caption"]).column("caption").to_pylist()
    batch = prior.read(dataset, rows)
    states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
    predicted = prior.sample(
        text_embed=torch.from_numpy(batch.text_embed), token_states=states, num_candidates=2, steps=32, seed=seed,
        norm="unit",
    ).numpy()  # fmt: skip

    to_text, to_prior = (nearest(query, whole.image_embed, count) for query in (batch.text_embed, predicted))
    return [
        GalleryRow(
            captions[i], keys[row], [keys[other] for other in to_text[i]], [keys[other] for other in to_prior[i]]
        )
        for i, row in enumerate(rows)
    ]


def read_images(images: str, keys: set[str]) -> dict[str, Image.Image]:
    """Read the images with the given keys from webdataset shards, and return them by key.

    Keys without an image in the folder are left out of the result.
    """
    store, names = locate(images)
    pictures: dict[str, Image.Image] = {}
    for shard in list_image_shards(store, names):
        for sample in read_samples(store, shard):
            if sample.key in keys and sample.image is not None:
                pictures[sample.key] = opened_rgb(sample.image)
    return pictures


def draw_gallery(rows: Sequence[GalleryRow], images: dict[str, Image.Image], title: str) -> bytes:
    """Draw a gallery, and return it as the bytes of a PNG file.

    Each row shows a caption, the images nearest to its text embedding, and the images nearest to the prior's
    prediction. A green frame marks the caption's own image.

    Args:
        rows: captions and the keys of their nearest images; at least one row.
        images: images by key, with an entry for every key in `rows`.
        title: title of the figure.
    """
    count = len(rows[0].nearest_to_text)
    block = count * (_TILE + _MARGIN)
    width = _LABEL_WIDTH + 2 * block + 3 * _MARGIN
    height = _HEADER + len(rows) * (_TILE + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    left, right = _LABEL_WIDTH + _MARGIN, _LABEL_WIDTH + block + 2 * _MARGIN
    draw.text((_MARGIN, 10), clean(title), fill=_INK, font=large)
    draw.text((left, 38), "nearest images by the raw text embedding", fill=_FAINT, font=small)
    draw.text((right, 38), "nearest images by the prior's prediction", fill=_FAINT, font=small)
    for index, row in enumerate(rows):
        top = _HEADER + index * (_TILE + _MARGIN)
        for line, text in enumerate(wrap_text(clean(row.caption), _LABEL_WIDTH - 2 * _MARGIN, small, _LINES)):
            draw.text((_MARGIN, top + 18 * line), text, fill=_INK, font=small)
        for start, keys in ((left, row.nearest_to_text), (right, row.nearest_to_prior)):
            for position, key in enumerate(keys):
                x = start + position * (_TILE + _MARGIN)
                canvas.paste(images[key].resize((_TILE, _TILE)), (x, top))
                if key == row.true_key:
                    draw.rectangle((x - 3, top - 3, x + _TILE + 2, top + _TILE + 2), outline=_TRUE, width=3)
    encoded = io.BytesIO()
    canvas.save(encoded, "PNG")
    return encoded.getvalue()
