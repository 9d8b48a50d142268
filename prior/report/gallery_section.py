"""Report sections about predictions: plots of embeddings projected to two dimensions, and an image gallery."""

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
"""Number of captions in the gallery."""
FOUND_IMAGES = 5
"""Number of nearest images shown per query. The queries are a caption's text embedding and its predicted embedding."""
SEARCHED_ROWS = 20_000
"""Maximum number of rows searched for nearest images, which limits memory use."""
_THUMBNAIL = 128
"""Maximum side length of a gallery image in pixels."""


def find_rows(ids: np.ndarray, order: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the position of each wanted id in `ids`, or -1 for an id that is missing.

    Args:
        ids: ids of all M rows, `[M]`. If an id occurs more than once, its first position is returned.
        order: order that sorts `ids`, `[M]`, computed by `np.argsort(ids, kind="stable")`.
        wanted: N ids to look up, `[N]`.

    Returns:
        Positions of the wanted ids, `[N]`.
    """
    candidates = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.asarray(np.where(ids[candidates] == wanted, candidates, -1))


def principal_axes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of N vectors, their first two principal axes and each axis's share of the total variance.

    The sign of each axis is chosen so that its coordinate of largest magnitude is positive. Plots of the same vectors
    therefore always have the same orientation.

    Args:
        values: N vectors of dimension D, `[N, D]`.

    Returns:
        The mean `[D]`, the axes `[2, D]` and their shares of the variance `[2]`.
    """
    mean = values.mean(axis=0)
    _, scales, axes = np.linalg.svd(values - mean, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:2]
    return mean, axes[:2] * signs[:, None], scales[:2] ** 2 / max(float((scales**2).sum()), 1e-12)


def projection(image: np.ndarray, text: np.ndarray | None, predicted: np.ndarray | None, split: str) -> list[str]:
    """Plot embeddings on the first two principal axes of the true image embeddings, and return HTML fragments.

    One plot shows the true images and the texts. A second plot shows the true images and the predictions.

    Args:
        image: true image embeddings, `[N, D]`: N rows of embedding dimension D.
        text: text embeddings of the same rows, `[N, D]`; None to leave out their plot, if they are in another space.
        predicted: predicted embeddings, `[N, D]`; None to leave out the second plot.
        split: name of the evaluation split, for the plot titles.
    """
    mean, axes, shares = principal_axes(image)
    optional = {"text": text, "predicted": predicted}
    embeds = {"true image": image, **{name: values for name, values in optional.items() if values is not None}}
    projected = {name: (values - mean) @ axes.T for name, values in embeds.items()}
    points = np.concatenate(list(projected.values()))
    limits = np.stack([points.min(axis=0), points.max(axis=0)])
    true = projected.pop("true image")
    names = (f"first axis ({shares[0]:.0%} of the variance)", f"second axis ({shares[1]:.0%})")
    drawn = [
        draw.scatter(f"True images and {name}, {split}", names, limits, {"true image": true, name: values})
        for name, values in projected.items()
    ]
    note = f"{len(image):,} rows on the two principal axes of their true image embeddings; one draw for each caption."
    return [page.plots(drawn), page.paragraph(note)]


def gallery(
    dataset: EmbeddingDataset, images: str, shown: np.ndarray, searched: np.ndarray, queries: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """Return HTML fragments of an image gallery, with one card per caption.

    Each card shows the caption's own image, and the images nearest to each of the caption's query embeddings. The query
    embeddings are, for example, the caption's text embedding and its predicted embedding.

    Args:
        dataset: embeddings.
        images: folder with the images, as webdataset shards.
        shown: row numbers of the C captions to show, `[C]`.
        searched: row numbers of the S images to search, `[S]`.
        queries: one or more arrays of query embeddings, keyed by the heading to show above the images found. Each array
            contains one embedding of norm 1 per caption, `[C, D]`, where D is the embedding dimension.

    Returns:
        HTML fragments, and a list of sentences about missing content: some or all images, all captions, or all keys.
        The list is empty if nothing is missing.
    """
    bank = dataset.take(searched).image_embed
    neighbours = {name: searched[nearest(query, bank, FOUND_IMAGES)] for name, query in queries.items()}
    needed = np.unique(np.concatenate([shown, *(rows.ravel() for rows in neighbours.values())]))
    content, missing = _RowContent.read(dataset, needed, images)
    cards = []
    for position, row in enumerate(shown.tolist()):
        strips = [page.strip("true image", [content.image(row)])]
        for name, rows in neighbours.items():
            strips.append(page.strip(name, [content.image(other, other == row) for other in rows[position].tolist()]))
        if url := content.urls.get(row):
            strips.append(f"<p>{page.link(str(url), str(url))}</p>")
        cards.append(page.card(str(content.captions.get(row) or f"row {row}, which has no caption"), strips))
    note = (
        f"Nearest images by cosine among {len(searched):,} of {dataset.count:,}; a green frame marks the true one."
    )  # fmt: skip
    return [page.paragraph(note), page.plots(cards)], missing


@dataclass(frozen=True)
class _RowContent:
    """Content to show for dataset rows: keys, captions and URLs by row number, and thumbnails by key.

    Missing values have no entry.
    """

    keys: dict[int, Any]
    captions: dict[int, Any]
    urls: dict[int, Any]
    thumbnails: dict[str, bytes]
    """JPEG bytes of each image, by key."""

    @staticmethod
    def read(dataset: EmbeddingDataset, rows: np.ndarray, images: str) -> tuple[_RowContent, list[str]]:
        """Read the keys, captions, URLs and images of the given rows.

        Returns:
            The content, and a list of sentences about missing content: some or all images, all captions, or all keys.
            The list is empty if nothing is missing.
        """
        keys, captions, urls = (_column(dataset, rows, name) for name in ("key", "caption", "url"))
        missing = [] if captions else [f"{dataset.store.url} holds no captions."]
        wanted, thumbnails = {str(key) for key in keys.values()}, {}
        if not keys:
            missing.append(f"{dataset.store.url} holds no keys to find images by.")
        else:
            try:
                thumbnails = {key: _thumbnail(image) for key, image in sorted(read_images(images, wanted).items())}
            except (InputError, OSError, Image.DecompressionBombError) as error:
                missing.append(f"There are no images to show: {error}.")
            else:
                if lost := len(wanted - thumbnails.keys()):
                    missing.append(f"{images} lacks {lost:,} of the {len(wanted):,} images that are shown.")
        return _RowContent(keys, captions, urls, thumbnails), missing

    def image(self, row: int, marked: bool = False) -> str:
        """Return an HTML fragment that shows a row's image.

        If the image is missing, show the row's caption instead. If there is no caption either, show the key or, failing
        that, the row number.

        Args:
            row: row number.
            marked: True to mark the image as the true image of the card's caption.
        """
        key = str(self.keys.get(row))
        label = str(self.captions.get(row) or self.keys.get(row) or f"row {row}")
        if key in self.thumbnails:
            return page.picture(self.thumbnails[key], "jpeg", label, marked)
        return page.text(f"[{label}]{' (the true one)' if marked else ''}")


def _column(dataset: EmbeddingDataset, rows: np.ndarray, name: str) -> dict[int, Any]:
    """Return the values of a metadata column, keyed by row number. Null and empty values are left out.

    Return an empty dictionary if the column does not exist.
    """
    try:
        values = dataset.metadata(rows, [name]).column(name).to_pylist()
    except InputError:
        return {}
    return {row: value for row, value in zip(rows.tolist(), values, strict=True) if value not in (None, "")}


def _thumbnail(image: Image.Image) -> bytes:
    """Shrink an image in place to at most 128 x 128 pixels, and return it as the bytes of a JPEG file."""
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()
