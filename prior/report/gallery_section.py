"""What a prior makes of captions, for a report: its predictions among embeddings, and the images that they find."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...pipeline.display import page
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingDataset
from . import plots as draw
from .gallery import nearest, read_images

CAPTIONS = 12
FOUND_IMAGES = 5
"""Nearest images that are shown for a caption."""
SEARCHED_ROWS = 20_000
"""Rows that the nearest images are looked for among, at most."""
_THUMBNAIL = 128
"""Pixels of the longer side."""


def find_rows(known: np.ndarray, by_id: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions `[N]` of wanted ids `[N]` among known ones `[M]`, the first of equal ones; -1 of one that is not there.

    Args:
        by_id: `[M]`, the positions in ascending order of `known`.
    """
    place = np.minimum(np.searchsorted(known, wanted, sorter=by_id), len(known) - 1)
    return np.asarray(np.where(known[by_id[place]] == wanted, by_id[place], -1))


def principal_axes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `[D]`, the two axes of most variance `[2, D]` and their shares of it `[2]`, of values `[N, D]`.

    The greatest coordinate of an axis is positive, so that the picture has one orientation.
    """
    mean = values.mean(axis=0)
    _, scales, axes = np.linalg.svd(values - mean, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:2]
    return mean, axes[:2] * signs[:, None], scales[:2] ** 2 / max(float((scales**2).sum()), 1e-12)


def projection(image: np.ndarray, text: np.ndarray, predicted: np.ndarray | None, split: str) -> list[str]:
    """Embeddings `[N, D]` on the two principal axes of the true images, as fragments."""
    mean, axes, shares = principal_axes(image)
    of = {"true image": image, "text": text} | ({} if predicted is None else {"predicted": predicted})
    flat = {name: (values - mean) @ axes.T for name, values in of.items()}
    every = np.concatenate(list(flat.values()))
    limits = np.stack([every.min(axis=0), every.max(axis=0)])
    names = (f"first axis ({shares[0]:.0%} of the variance)", f"second axis ({shares[1]:.0%})")
    drawn = [
        draw.scatter(f"True images and {other}, {split}", names, limits, {"true image": flat["true image"], other: to})
        for other, to in flat.items()
        if other != "true image"
    ]
    said = f"{len(image):,} rows on the two principal axes of their true image embeddings; one draw for each caption."
    return [page.plots(drawn), page.paragraph(said)]


def gallery(
    dataset: EmbeddingDataset, images: str, shown: np.ndarray, searched: np.ndarray, queries: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """A card for each caption, as fragments; and sentences that say what is missing.

    Args:
        images: folder of the images.
        shown: `[C]` rows whose captions are shown.
        searched: `[S]` rows among whose images the nearest are looked for.
        queries: `[C, D]` of norm 1, by what is said of them.
    """
    bank = dataset.take(searched).image_embed
    found = {name: searched[nearest(query, bank, FOUND_IMAGES)] for name, query in queries.items()}
    every = np.unique(np.concatenate([shown, *(rows.ravel() for rows in found.values())]))
    shelf, lacks = _Shelf.of(dataset, every, images)
    cards = []
    for position, row in enumerate(shown.tolist()):
        strips = [page.strip("true image", [shelf.image(row)])]
        for name, rows in found.items():
            strips.append(page.strip(name, [shelf.image(other, other == row) for other in rows[position].tolist()]))
        if url := shelf.urls.get(row):
            strips.append(f"<p>{page.link(str(url), str(url))}</p>")
        cards.append(page.card(str(shelf.captions.get(row) or f"row {row}, which has no caption"), strips))
    said = (
        f"Nearest images by cosine among {len(searched):,} of {dataset.count:,}; a green frame marks the true one."
    )  # fmt: skip
    return [page.paragraph(said), page.plots(cards)], lacks


@dataclass(frozen=True)
class _Shelf:
    """What is known of rows, by row: where something is not known, it has no entry."""

    keys: dict[int, Any]
    captions: dict[int, Any]
    urls: dict[int, Any]
    thumbnails: dict[str, bytes]
    """JPEG by key."""

    @staticmethod
    def of(dataset: EmbeddingDataset, rows: np.ndarray, images: str) -> tuple[_Shelf, list[str]]:
        """With sentences that say what is missing."""
        keys, captions, urls = (_column(dataset, rows, name) for name in ("key", "caption", "url"))
        lacks = [] if captions else [f"{dataset.store.url} holds no captions."]
        wanted, thumbnails = {str(key) for key in keys.values()}, {}
        if not keys:
            lacks.append(f"{dataset.store.url} holds no keys to find images by.")
        else:
            try:
                thumbnails = {key: _thumbnail(image) for key, image in sorted(read_images(images, wanted).items())}
            except (InputError, OSError, Image.DecompressionBombError) as error:
                lacks.append(f"There are no images to show: {error}.")
            else:
                if lost := len(wanted - thumbnails.keys()):
                    lacks.append(f"{images} lacks {lost:,} of the {len(wanted):,} images that are shown.")
        return _Shelf(keys, captions, urls, thumbnails), lacks

    def image(self, row: int, marked: bool = False) -> str:
        """The image of a row, or in its place what is known of it."""
        key = str(self.keys.get(row))
        said = str(self.captions.get(row) or self.keys.get(row) or f"row {row}")
        if key in self.thumbnails:
            return page.picture(self.thumbnails[key], "jpeg", said, marked)
        return page.text(f"[{said}]{' (the true one)' if marked else ''}")


def _column(dataset: EmbeddingDataset, rows: np.ndarray, name: str) -> dict[int, Any]:
    """What a column of the metadata holds, by row; nothing where there is no such column."""
    try:
        values = dataset.metadata(rows, [name]).column(name).to_pylist()
    except InputError:
        return {}
    return {row: value for row, value in zip(rows.tolist(), values, strict=True) if value not in (None, "")}


def _thumbnail(image: Image.Image) -> bytes:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()
