"""Download settings."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from typing_extensions import Self

from ... import __version__
from ..settings import Settings
from ..urls.settings import UrlListSettings
from .img2dataset_engine.limits import LIMITS, THREADS, check_limits, describe_limits

INTERPOLATION_SYNONYMS = {"bilinear": "linear", "bicubic": "cubic", "lanczos4": "lanczos"}
"""Other names of interpolations, which img2dataset also accepts."""
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
"""Name of an interpolation for resizing."""


class Img2datasetSettings(Settings):
    """Options of img2dataset's downloader that have no counterpart in priorkit's own. They have img2dataset's names."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"timeout", "user_agent_token"})

    timeout: float = Field(default=10.0, gt=0)
    """Seconds allowed for each wait for a server. A server that keeps sending has no limit. 10 is img2dataset's
    default."""
    user_agent_token: str | None = Field(default=None, pattern=r"^[!-~]([ -~]*[!-~])?$")
    """Name that img2dataset adds to its User-Agent header, and by which X-Robots-Tag headers can opt out; null for
    none, which is img2dataset's default."""


class DownloadSettings(UrlListSettings):
    """Settings for downloading a URL list into webdataset shards of resized images."""

    runtime_fields: ClassVar[frozenset[str]] = UrlListSettings.runtime_fields | frozenset(
        {
            "buffer_bytes",
            "concurrency",
            "connections_per_host",
            "decode_memory_bytes",
            "decode_processes",
            "decode_timeout_seconds",
            "img2dataset",
            "min_success_rate",
            "proxy",
            "retries",
            "success_window",
            "timeout_seconds",
            "user_agent",
        }
    )  # these affect speed, retries and the requests to servers, but not how images are stored
    later_fields: ClassVar[frozenset[str]] = UrlListSettings.later_fields | {
        "allow_paths",
        "downscale_interpolation",
        "engine",
        "extract_exif",
        "reencode_format",
        "upscale_interpolation",
    }

    engine: Literal["native", "img2dataset"] = "native"
    """Download engine. `img2dataset` runs the downloader of the img2dataset package on each shard, so the images and
    tables are img2dataset's own. It refuses settings that img2dataset does not apply."""
    img2dataset: Img2datasetSettings = Img2datasetSettings()
    """Options that only `engine: img2dataset` reads."""
    rows_per_shard: int = Field(default=10_000, ge=1)
    """Number of list rows per shard, including failed rows; 10,000 is img2dataset's default."""
    image_size: int = Field(default=256, ge=1)
    """Target side length of resized images in pixels; 256 leaves room for the 224-pixel crop of a CLIP model."""
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    """Resize mode, as in img2dataset. The default, `keep_ratio`, scales the shorter side to `image_size` without
    cropping, because CLIP preprocessing crops later."""
    resize_only_if_bigger: bool = True
    """Resize an image only if this makes it smaller, since enlarging adds bytes but no detail."""
    upscale_interpolation: Interpolation = "lanczos"
    """Interpolation for images that are enlarged, which requires `resize_only_if_bigger: false`. The names and the
    default are img2dataset's: `nearest`, `linear` (or `bilinear`), `cubic` (or `bicubic`), `area`, `lanczos` (or
    `lanczos4`)."""
    downscale_interpolation: Interpolation = "area"
    """Interpolation for images that are reduced; see `upscale_interpolation`. `area` is img2dataset's default. JPEGs
    that `decode_mode: fast` decodes at a reduced size use `linear` in place of `area`."""
    encode_format: Literal["jpg", "png", "webp", "original"] = "jpg"
    """Format of stored images. The default is JPEG, which every webdataset reader supports. `original` stores the bytes
    that the server sent, unless the image must be resized or blurred. The extension of each file is that of its format.
    """
    reencode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the images that must be resized or blurred, if `encode_format` is `original`."""
    encode_quality: int = Field(default=95, ge=0, le=100)
    """JPEG or WebP quality (0 to 100), or PNG compression level (0 to 9); 95 is img2dataset's default."""
    min_image_size: int = Field(default=0, ge=0)
    """Minimum length of the shorter side in pixels; smaller images count as failed. 0 accepts all images."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Maximum ratio of the longer to the shorter side; other images count as failed. null accepts all images."""
    max_image_area: int | None = Field(default=None, ge=1)
    """Maximum image area before resizing, in pixels; larger images count as failed. null accepts all images."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Maximum number of pixels, width times height, that an image header may state; larger images are not decoded. The
    default is Pillow's limit against decompression bombs, which corresponds to 256 MiB of RGB pixels."""
    decode_mode: Literal["exact", "fast"] = "exact"
    """`exact` produces the same bytes as img2dataset, except for images that are rotated by `exif_orientation` or
    converted to 8 bits per channel. `fast` saves time by decoding JPEG at a reduced size that is still larger than the
    target size."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """`apply` rotates images according to their EXIF orientation, because encoded images have no EXIF. `ignore` stores
    the pixels unrotated, like img2dataset."""
    extract_exif: bool = False
    """Store the EXIF tags of each image as JSON text in the column `exif`, in the same form as img2dataset."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Seconds allowed for one URL, including name lookup, redirects, body and all attempts. 10 is img2dataset's
    default. Time spent waiting because of `concurrency` or `connections_per_host` does not count."""
    retries: int = Field(default=1, ge=0)
    """Maximum number of retries after a transient failure: a refused or broken connection, HTTP 429 or 5xx, or a proxy
    or name server that is temporarily unavailable. All attempts share one deadline. The default is 1, because failures
    that last longer are better retried in a later run."""
    max_bytes: int = Field(default=50_000_000, ge=1)
    """Maximum size of a response body in bytes, after decompression; larger bodies count as `too_large`."""
    allow_private_addresses: bool = False
    """Also fetch from loopback and private networks. Off by default, so that a list from the web cannot reach internal
    servers. Link-local and cloud metadata addresses stay blocked unless `allow_addresses` includes them, because they
    can hand out credentials."""
    allow_addresses: tuple[str, ...] = ()
    """Networks whose addresses are never blocked, such as `[10.0.0.0/8]`. Public addresses are allowed anyway."""
    allow_paths: bool = False
    """Also read images at local and remote paths: absolute paths, paths relative to the list, `file:` URLs, and storage
    URLs such as `s3://`. Off by default, so that a list from the web cannot read private files."""
    proxy: str | None = None
    """URL of the proxy for all hosts except those in the environment variable `no_proxy`, or `none` to use no proxy. If
    null, the environment variables `http_proxy`, `https_proxy` and `all_proxy` set the proxy, as in curl."""
    user_agent: str = Field(
        default=f"priorkit/{__version__} (image data sets; no contact given)", pattern=r"^[!-~][ -~]*$"
    )
    """User-Agent header sent to servers; add a contact address. The part before the first slash is the name that sites
    can use to opt out, in X-Robots-Tag headers or, if `robots_txt` is on, in robots.txt."""
    robots_txt: bool = False
    """Obey the robots.txt of each site. Off by default, as in img2dataset, because robots.txt addresses crawlers that
    follow links."""
    concurrency: int = Field(default=2048, ge=1)
    """Number of URLs that one worker fetches at once. The default is high because most fetches wait for servers, and
    the slowest wait until their deadline."""
    connections_per_host: int = Field(default=16, ge=1)
    """Number of URLs that one worker fetches from the same host at once; 16 is enough for a large host and tolerable
    for a small one."""
    decode_processes: int = Field(default=0, ge=0)
    """Number of processes per worker that decode, resize and encode images; 0 starts one for each available core."""
    decode_timeout_seconds: float = Field(default=30.0, gt=0)
    """Seconds allowed to decode, resize and encode one image. If it takes longer, the image fails and the
    decoder process is replaced."""
    decode_memory_bytes: int = Field(default=4_000_000_000, ge=1_000_000_000)
    """Maximum address space of one decoder process in bytes, enforced only on Linux. Large images with an
    alpha channel need the most memory."""
    buffer_bytes: int = Field(default=512_000_000, ge=1)
    """Memory limit for the response bodies and images in one worker, in bytes. At the limit, no further fetch starts,
    but running fetches may exceed it. A body that has not arrived yet is counted at the mean size of recent bodies."""
    min_success_rate: float = Field(default=0.05, ge=0, le=1)
    """Minimum fraction of the last `success_window` list rows that must yield an image. Below it, the download stops,
    because the cause is probably this machine or its network. 0 disables the check."""
    success_window: int = Field(default=2_000, ge=1)
    """Number of recent rows over which `min_success_rate` is checked. A list sorted by host needs a larger window,
    because a single failing host can fill a small window."""

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        """Convert false to `no`, because YAML reads an unquoted `no` as false."""
        return "no" if value is False else value

    @field_validator("allow_addresses", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        """Convert each network to its standard form, such as `192.168.1.7/32` for `192.168.1.7`.

        The value is a list of networks, or a string of networks separated by commas or spaces.
        """
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
        """Check that the value is the URL of a supported proxy, `none` or null."""
        if value is not None and value != "none":
            from .fetching.proxies import parse_proxy  # imported here because it loads aiohttp

            parse_proxy(value, "it")
        return value

    @field_validator("upscale_interpolation", "downscale_interpolation", mode="before")
    @classmethod
    def _interpolation_has_one_name(cls, value: Any) -> Any:
        """Convert synonyms and upper case, so that equivalent settings compare equal."""
        return INTERPOLATION_SYNONYMS.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _png_quality_is_a_level(self) -> Self:
        """Check that `encode_quality` is a valid compression level if images are encoded as PNG."""
        if self.encoder == "png" and self.encode_quality > 9:
            raise ValueError("encode_quality of png is a compression level of 0 to 9")
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        """Check that no setting was changed that has no effect together with the other settings."""
        if self.reencode_format != "jpg" and self.encode_format != "original":
            raise ValueError("reencode_format needs encode_format=original")
        if self.upscale_interpolation != "lanczos" and (self.resize_only_if_bigger or self.resize_mode == "no"):
            raise ValueError("upscale_interpolation needs resize_only_if_bigger=false, and resize_mode other than no")
        if self.downscale_interpolation != "area" and self.resize_mode == "no":
            raise ValueError("downscale_interpolation needs resize_mode other than no")
        return self

    @property
    def encoder(self) -> Literal["jpg", "png", "webp"]:
        """Format in which images are encoded, unless they are stored as they came."""
        return self.reencode_format if self.encode_format == "original" else self.encode_format

    @property
    def reserved_columns(self) -> frozenset[str]:
        """Names of columns that are added to each row only with these settings. The list's own are renamed."""
        return frozenset({"exif"}) if self.extract_exif else frozenset()

    @model_validator(mode="after")
    def _engine_applies_the_settings(self) -> Self:
        """Check that the engine applies every setting that is given explicitly."""
        if self.engine == "img2dataset":
            check_limits(dict(self), self.model_fields_set)
        elif self.img2dataset != Img2datasetSettings():
            raise ValueError("the options under img2dataset have no effect without engine=img2dataset")
        return self

    @model_serializer(mode="wrap")
    def _without_unapplied_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the defaults that the engine does not apply, because they would be refused if they were given."""
        dumped: dict[str, Any] = serialize(self)
        if self.engine == "img2dataset":
            for name in {*LIMITS, "concurrency"} - self.model_fields_set:
                dumped.pop(name, None)
        return dumped

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the content of the shards, as JSON values."""
        identity = super().identity()
        if self.engine == "native":
            return identity
        return {name: value for name, value in identity.items() if name not in LIMITS}

    def img2dataset_threads(self) -> int:
        """Return the number of URLs that img2dataset fetches at once."""
        return self.concurrency if "concurrency" in self.model_fields_set else THREADS

    def engine_notes(self) -> list[str]:
        """Return one sentence for each default setting that the engine does not apply."""
        return [] if self.engine == "native" else describe_limits(dict(self), self.model_fields_set)
