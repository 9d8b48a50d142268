"""Settings of the download stage."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ... import __version__
from ..urls.settings import UrlListSettings


class DownloadSettings(UrlListSettings):
    """From a list of URLs to webdataset shards of resized images."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "buffer_bytes",
            "concurrency",
            "connections_per_host",
            "decode_memory_bytes",
            "decode_processes",
            "decode_timeout_seconds",
            "min_success_rate",
            "proxy",
            "retries",
            "success_window",
            "timeout_seconds",
            "user_agent",
        }
    )  # how fast, how patiently and under what name the same bytes are asked for

    rows_per_shard: int = Field(default=10_000, ge=1)
    """Rows of the list in one shard, failures included; img2dataset's default."""
    image_size: int = Field(default=256, ge=1)
    """Side in pixels that images are resized to; 256 leaves room for the crop of a 224-pixel CLIP."""
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    """img2dataset's resize mode; `keep_ratio` sets the shorter side and leaves the crop to the CLIP."""
    resize_only_if_bigger: bool = True
    """Leave images at or below `image_size` as they are, since enlarging adds bytes and no detail."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the stored images; JPEG is what every reader of webdataset expects."""
    encode_quality: int = Field(default=95, ge=0, le=100)
    """Quality of JPEG and WebP (0 to 100), or compression level of PNG (0 to 9); img2dataset's default."""
    min_image_size: int = Field(default=0, ge=0)
    """Images whose shorter side in pixels is below this are counted as failed; 0 keeps all."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Images with a longer to shorter side above this are counted as failed; null keeps all."""
    max_image_area: int | None = Field(default=None, ge=1)
    """Images of more pixels than this are counted as failed, after they are decoded; null keeps all."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Images whose header tells of more pixels are never decoded; Pillow's own bound against bombs, 256 MB."""
    decode_mode: Literal["exact", "fast"] = "exact"
    """`exact` gives img2dataset's bytes. `fast` lets the JPEG decoder halve sides that stay above their target."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """`apply` turns images upright as their EXIF says, since stored images carry none; `ignore` is as img2dataset."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Total time for one URL, name look-up, redirects, body and all attempts included; img2dataset's default. It runs
    from when the URL has a place among `concurrency` and `connections_per_host`: that wait is no server's doing."""
    retries: int = Field(default=1, ge=0)
    """Further attempts after a failure that may pass (no or a broken connection, 429, 5xx, a name server that is busy),
    within the same deadline; one, since what outlasts that is better asked again another day."""
    max_bytes: int = Field(default=50_000_000, ge=1)
    """Largest body in bytes, after decompression; a larger one is counted as `too_large`."""
    allow_private_addresses: bool = False
    """Fetch from loopback and private networks too; off, since a list from the web must not reach inside. Link-local
    and metadata addresses stay refused, since they hand out credentials: `allow_addresses` names them."""
    allow_addresses: tuple[str, ...] = ()
    """Networks to fetch from whatever they are, such as `[10.0.0.0/8]`; none, since public ones need no naming."""
    proxy: str | None = None
    """Proxy for all URLs but those of hosts in `no_proxy`; `none` uses no proxy, and null takes `http_proxy`,
    `https_proxy` or `all_proxy` of the environment, as curl does."""
    user_agent: str = Field(
        default=f"priorkit/{__version__} (image data sets; no contact given)", pattern=r"^[!-~][ -~]*$"
    )
    """Our name for servers; add a way to reach you. Opt-outs may address what is before its first slash."""
    robots_txt: bool = False
    """Ask each site's robots.txt first, once; off as in img2dataset, since it is meant for those who follow links."""
    concurrency: int = Field(default=2048, ge=1)
    """URLs fetched at once by one worker; many, since most of them wait, and the slowest for all of their deadline."""
    connections_per_host: int = Field(default=16, ge=1)
    """URLs of one host fetched at once by one worker; enough for a large host, and bearable for a small one."""
    decode_processes: int = Field(default=0, ge=0)
    """Processes that decode, resize and encode beside the fetch; 0 is one for each core that may be used."""
    decode_timeout_seconds: float = Field(default=30.0, gt=0)
    """Time for decoding, resizing and encoding one image; a decoder that takes longer hangs, and is replaced."""
    decode_memory_bytes: int = Field(default=4_000_000_000, ge=1_000_000_000)
    """Address space of one decoding process, on Linux; large images with transparency need most."""
    buffer_bytes: int = Field(default=512_000_000, ge=1)
    """Bytes of bodies, expected ones included, and images that one worker may hold until no further fetch begins."""
    min_success_rate: float = Field(default=0.05, ge=0, le=1)
    """Stop when fewer of the last rows than this share gave an image, since the cause is here then; 0 never stops."""
    success_window: int = Field(default=2_000, ge=1)
    """Rows over which the share of success is taken; a list sorted by host needs more."""

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        return "no" if value is False else value

    @field_validator("allow_addresses", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        """Networks in their plain form; one alone, or several with commas, may be a string."""
        networks = re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value
        if not isinstance(networks, list | tuple):
            raise ValueError("expected a list of networks such as [10.0.0.0/8]")
        plain = []
        for network in networks:
            try:
                plain.append(str(ipaddress.ip_network(network)))
            except ValueError as error:
                raise ValueError(f"{error}; expected networks such as [10.0.0.0/8, 192.168.1.7]") from None
        return tuple(plain)

    @field_validator("proxy")
    @classmethod
    def _proxy_can_be_used(cls, value: str | None) -> str | None:
        if value is not None and value != "none":
            from .fetching.proxies import parse_proxy  # which loads aiohttp

            parse_proxy(value, "it")
        return value

    @model_validator(mode="after")
    def _png_quality_is_a_level(self) -> Self:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError("encode_quality of png is a compression level of 0 to 9")
        return self
