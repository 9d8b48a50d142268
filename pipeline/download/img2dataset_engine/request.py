"""Request to the child process that runs img2dataset: one shard, with the options of img2dataset's classes.

This module imports neither img2dataset nor other large packages, because both processes import it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ...json_text import parse_json
from ..settings import DownloadSettings

INPUT_NAME = "list.arrow"
"""Name of the file with the shard's rows in the working folder. img2dataset removes the file after the download."""
OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex")
"""X-Robots-Tag directives that forbid using an image: the default of img2dataset's command."""


@dataclass(frozen=True)
class Request:
    """Shard that img2dataset is to download to a working folder."""

    name: str
    folder: str
    """Local working folder. It contains the list rows, and receives the files that img2dataset writes."""
    resizer: dict[str, Any]
    """Arguments of img2dataset's class `Resizer`."""
    downloader: dict[str, Any]
    """Arguments of img2dataset's class `Downloader`, except those that the child process adds."""

    def to_line(self) -> bytes:
        """Return the request as a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Request:
        """Return the request in a line that `to_line` returned."""
        return Request(**parse_json(line))


def make_request(
    name: str, folder: str, columns: list[str], bbox_column: str | None, settings: DownloadSettings
) -> Request:
    """Return the request for a shard.

    Args:
        name: name of the shard.
        folder: local working folder.
        columns: columns of the list rows, in img2dataset's order.
        bbox_column: column with the boxes to blur in each image; None to blur nothing.
        settings: download settings.
    """
    resizer = {
        "image_size": settings.image_size,
        "resize_mode": settings.resize_mode,
        "resize_only_if_bigger": settings.resize_only_if_bigger,
        "upscale_interpolation": settings.upscale_interpolation,
        "downscale_interpolation": settings.downscale_interpolation,
        "encode_quality": settings.encode_quality,
        "encode_format": settings.encode_format,
        "min_image_size": settings.min_image_size,
        "max_image_area": settings.max_image_area or float("inf"),
        "max_aspect_ratio": settings.max_aspect_ratio or float("inf"),
    }
    downloader = {
        "thread_count": settings.img2dataset_threads(),
        "save_caption": "caption" in columns,
        "extract_exif": settings.extract_exif,
        "output_folder": folder,
        "column_list": columns,
        "timeout": settings.img2dataset.timeout,
        "number_sample_per_shard": settings.rows_per_shard,
        "oom_shard_count": 5,
        "compute_hash": "sha256",
        "verify_hash_type": None,
        "encode_format": settings.encode_format,
        "retries": settings.retries,
        "user_agent_token": settings.img2dataset.user_agent_token,
        "disallowed_header_directives": list(OPT_OUTS),
        "blurring_bbox_col": bbox_column,
    }
    return Request(name, folder, resizer, downloader)
