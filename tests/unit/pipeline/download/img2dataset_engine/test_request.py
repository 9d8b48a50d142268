"""Requests to img2dataset's process: the arguments that settings become."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.download.img2dataset_engine.request import Request, make_request
from priorkit.pipeline.download.settings import DownloadSettings


def request(columns: list[str] | None = None, **settings: Any) -> Request:
    chosen = DownloadSettings(engine="img2dataset", **settings)
    return make_request("00002", "/folder", columns or ["caption", "url"], None, chosen)


def test_a_line_gives_the_request_back() -> None:
    made = request(max_aspect_ratio=3.0, img2dataset={"user_agent_token": "me/1.0"})
    line = made.to_line()
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert Request.from_line(line) == made


@pytest.mark.parametrize(
    ("settings", "part", "name", "value"),
    [
        ({}, "downloader", "thread_count", 256),
        ({"concurrency": 2048}, "downloader", "thread_count", 2048),
        ({"concurrency": 3}, "downloader", "thread_count", 3),
        ({"retries": 4}, "downloader", "retries", 4),
        ({}, "downloader", "timeout", 10),
        ({"img2dataset": {"timeout": 0.5}}, "downloader", "timeout", 0.5),
        ({}, "downloader", "user_agent_token", None),
        ({"img2dataset": {"user_agent_token": "me"}}, "downloader", "user_agent_token", "me"),
        ({"rows_per_shard": 7}, "downloader", "number_sample_per_shard", 7),
        ({"encode_format": "webp"}, "downloader", "encode_format", "webp"),
        ({"encode_format": "webp"}, "resizer", "encode_format", "webp"),
        ({"encode_quality": 50}, "resizer", "encode_quality", 50),
        ({"image_size": 64}, "resizer", "image_size", 64),
        ({"resize_mode": "no"}, "resizer", "resize_mode", "no"),
        ({"resize_only_if_bigger": False}, "resizer", "resize_only_if_bigger", False),
        ({"downscale_interpolation": "bicubic"}, "resizer", "downscale_interpolation", "cubic"),
        ({"extract_exif": True}, "downloader", "extract_exif", True),
        ({"min_image_size": 5}, "resizer", "min_image_size", 5),
        ({}, "resizer", "max_image_area", float("inf")),
        ({"max_image_area": 100}, "resizer", "max_image_area", 100),
        ({}, "resizer", "max_aspect_ratio", float("inf")),
        ({"max_aspect_ratio": 2.0}, "resizer", "max_aspect_ratio", 2.0),
    ],
)
def test_a_setting_becomes_an_argument(settings: dict[str, Any], part: str, name: str, value: Any) -> None:
    assert getattr(request(**settings), part)[name] == value


def test_captions_are_saved_if_the_list_has_them() -> None:
    assert request(["licence", "caption", "url"]).downloader["save_caption"]
    assert not request(["licence", "url"]).downloader["save_caption"]
