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
    """Settings of the download from a list of URLs to webdataset shards of resized images."""

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
    )  # speed, patience, and identity towards servers

    rows_per_shard: int = Field(default=10_000, ge=1)
    """Rows of the list in one shard, including failures; 10,000 is img2dataset's default."""
    image_size: int = Field(default=256, ge=1)
    """Target side of resized images in pixels; 256 leaves room for the crop of a 224-pixel CLIP."""
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    """Resize mode, as in img2dataset; `keep_ratio` resizes the shorter side and leaves the crop to the CLIP."""
    resize_only_if_bigger: bool = True
    """Do not enlarge images of at most `image_size`, since enlarging adds bytes and no detail."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the stored images; every reader of webdataset supports JPEG."""
    encode_quality: int = Field(default=95, ge=0, le=100)
    """Quality of JPEG and WebP (0 to 100), or compression level of PNG (0 to 9); 95 is img2dataset's default."""
    min_image_size: int = Field(default=0, ge=0)
    """Least length of the shorter side in pixels; smaller images count as failed. 0 accepts all."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Largest ratio of the longer to the shorter side; other images count as failed. null accepts all."""
    max_image_area: int | None = Field(default=None, ge=1)
    """Largest number of pixels after decoding; larger images count as failed. null accepts all."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Largest number of pixels that a header may state; larger images are not decoded. The default is Pillow's limit
    against decompression bombs, 256 MB."""
    decode_mode: Literal["exact", "fast"] = "exact"
    """`exact` gives img2dataset's bytes; `fast` decodes JPEG at a reduced size, which stays above the target."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """`apply` stores images upright by their EXIF orientation, since stored images have no EXIF; `ignore` stores the
    pixels as they are, like img2dataset."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Seconds for one URL, including name lookup, redirects, body and all attempts; 10 is img2dataset's default. The
    time starts when `concurrency` and `connections_per_host` admit the URL."""
    retries: int = Field(default=1, ge=0)
    """Further attempts after a transient failure (no connection or a broken one, 429, 5xx, a busy name server), within
    the same deadline; one, since longer failures are better retried another day."""
    max_bytes: int = Field(default=50_000_000, ge=1)
    """Largest body in bytes, after decompression; a larger one counts as `too_large`."""
    allow_private_addresses: bool = False
    """Fetch also from loopback and private networks; off, since a web list must not reach internal servers. Link-local
    and metadata addresses hand out credentials, so only `allow_addresses` can allow them."""
    allow_addresses: tuple[str, ...] = ()
    """Networks that are always allowed, such as `[10.0.0.0/8]`; none by default, since public networks are allowed."""
    proxy: str | None = None
    """Proxy for all URLs except those of hosts in `no_proxy`. `none` uses no proxy; null uses `http_proxy`,
    `https_proxy` or `all_proxy` of the environment, as curl does."""
    user_agent: str = Field(
        default=f"priorkit/{__version__} (image data sets; no contact given)", pattern=r"^[!-~][ -~]*$"
    )
    """User agent sent to servers; add a contact address. Opt-outs can name the part before its first slash."""
    robots_txt: bool = False
    """Obey the robots.txt of each site; off as in img2dataset, since it addresses crawlers that follow links."""
    concurrency: int = Field(default=2048, ge=1)
    """URLs that one worker fetches at once; many, since most of them wait, and the slowest until their deadline."""
    connections_per_host: int = Field(default=16, ge=1)
    """URLs of one host that one worker fetches at once; enough for a large host, and tolerable for a small one."""
    decode_processes: int = Field(default=0, ge=0)
    """Processes of one worker that decode, resize and encode; 0 starts one for each available core."""
    decode_timeout_seconds: float = Field(default=30.0, gt=0)
    """Seconds to decode, resize and encode one image; a decoder process that takes longer is replaced."""
    decode_memory_bytes: int = Field(default=4_000_000_000, ge=1_000_000_000)
    """Address space of one decoder process in bytes, on Linux; large images with transparency need most."""
    buffer_bytes: int = Field(default=512_000_000, ge=1)
    """Bytes of bodies (also expected ones) and images in the memory of one worker, above which no fetch starts."""
    min_success_rate: float = Field(default=0.05, ge=0, le=1)
    """Least share of the last rows that must give an image; below it the download stops, since the cause is probably
    local. 0 never stops."""
    success_window: int = Field(default=2_000, ge=1)
    """Number of last rows for `min_success_rate`; a list sorted by host needs more."""

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        """Turn false into `no`, since YAML reads an unquoted `no` as false."""
        return "no" if value is False else value

    @field_validator("allow_addresses", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        """Return networks in their standard form; a string may hold one, or several separated by commas."""
        networks = re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value
        if not isinstance(networks, list | tuple):
            raise ValueError("expected a list of networks such as [10.0.0.0/8]")
        standard = []
        for network in networks:
            try:
                standard.append(str(ipaddress.ip_network(network)))
            except ValueError as error:
                raise ValueError(f"{error}; expected networks such as [10.0.0.0/8, 192.168.1.7]") from None
        return tuple(standard)

    @field_validator("proxy")
    @classmethod
    def _proxy_is_usable(cls, value: str | None) -> str | None:
        """Check the URL of a proxy."""
        if value is not None and value != "none":
            from .fetching.proxies import parse_proxy  # here, since it loads aiohttp

            parse_proxy(value, "it")
        return value

    @model_validator(mode="after")
    def _png_quality_is_a_level(self) -> Self:
        """Check that the quality of PNG is a compression level."""
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError("encode_quality of png is a compression level of 0 to 9")
        return self
