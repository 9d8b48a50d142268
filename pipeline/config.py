"""Settings of download, embed, read and compute: frozen data with light imports.

A setting either changes the bytes that a stage writes, and is then part of that stage's identity, or is named in
`runtime_fields`, and may differ from run to run.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from .. import __version__
from .settings import Location, Settings

_Positive = Annotated[float, Field(gt=0)]

Quoting = Literal["auto", "none", "rfc4180"]
"""How quotes in csv and tsv are read."""


class ComputeSettings(Settings):
    """Where shards are worked on, and where training runs. Never changes a byte of shards or evaluations."""

    backend: Literal["local", "ray"] = "local"
    """`local`: in this process, one shard at a time. `ray`: on a Ray cluster, or one that Ray starts here."""
    workers: int = Field(default=1, ge=1)
    """Ray actors that each work on one shard at a time, or train together; needs `backend: ray` when above 1."""
    min_workers: int = Field(default=1, ge=1)
    """Workers that training needs at least, where nodes are lost; 1, since fewer workers change only its speed."""
    address: str | None = None
    """Ray cluster to join: `host:6379`, `ray://host:10001`, or `auto` for the one that runs on this machine. Unset, it
    is `RAY_ADDRESS`, or without that (or with `local`) Ray is started on this machine for the command."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs that Ray reserves for each worker. Unset, it is 1 where torch can use the cluster's GPUs and the stage's
    `device` is not `cpu`, else 0; a download uses none."""

    @model_validator(mode="after")
    def _workers_need_ray(self) -> Self:
        if self.backend == "local" and (self.workers > 1 or self.address is not None):
            raise ValueError("compute.workers above 1 and compute.address need compute.backend=ray")
        if self.min_workers > self.workers:
            raise ValueError(f"compute.min_workers={self.min_workers} is more than compute.workers={self.workers}")
        return self


class DownloadSettings(Settings):
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

    url_column: str = "url"
    """Column of the list that holds the image URL."""
    caption_column: str | None = "caption"
    """Column of the list that holds the caption; null for a list without captions."""
    hash_column: str | None = None
    """Column with the MD5, SHA-1, SHA-256 or SHA-512 of each body, hexadecimal; another body is counted as failed."""
    keep_columns: Literal["all", "none"] | tuple[str, ...] = "all"
    """Further columns of the list that the shards keep: all, none, or a list of names; all, since they cost little."""
    quoting: Quoting = "auto"
    """Quotes in csv and tsv: `rfc4180`, or `none` for plain text; `auto` is rfc4180 for csv and none for tsv."""
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

    @field_validator("keep_columns", mode="before")
    @classmethod
    def _one_spelling_of_columns(cls, value: Any) -> Any:
        """Names in one order, since theirs has no effect."""
        if isinstance(value, str) and value not in ("all", "none"):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(sorted(set(value))) or "none"
        return value

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
            from .download.fetching.proxies import parse_proxy  # which loads aiohttp

            parse_proxy(value, "it")
        return value

    @model_validator(mode="after")
    def _png_quality_is_a_level(self) -> Self:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError("encode_quality of png is a compression level of 0 to 9")
        return self


class PreprocessSettings(Settings):
    """Preprocessing of images for a CLIP; a value that is set replaces the one that comes with the weights."""

    mean: tuple[float, float, float] | None = None
    """Mean of each colour channel, 0 to 1, that is subtracted; null takes that of the weights' training."""
    std: tuple[_Positive, _Positive, _Positive] | None = None
    """Standard deviation of each colour channel, 0 to 1, that is divided by; null as for `mean`."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """How images are resized; null as for `mean`."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """`shortest` crops the longer side, `longest` pads the shorter one, `squash` distorts; null as for `mean`."""
    size: int | None = Field(default=None, ge=1)
    """Side in pixels; another than the model's makes open_clip interpolate its positions. null is the model's."""


class ClipSettings(Settings):
    """Which CLIP makes the embeddings."""

    model: str = "ViT-B-32"
    """open_clip model name, `hf-hub:ORG/NAME`, `local-dir:PATH` of a config with weights, or `priorkit:demo`."""
    pretrained: str | None = "laion2b_s34b_b79k"
    """open_clip weights tag, or the path of a checkpoint; null where `model` brings its own weights."""
    preprocess: PreprocessSettings | None = None
    """Preprocessing where a checkpoint by path does not say, or in place of the CLIP's own; null leaves it as it is."""
    quick_gelu: bool | None = None
    """Activation where a checkpoint by path does not say (OpenAI's need true), or in place of the CLIP's own."""

    def overrides(self) -> dict[str, Any]:
        """Preprocessing and activation that are set, as plain values; empty if neither is."""
        preprocess = {} if self.preprocess is None else self.preprocess.model_dump(mode="json", exclude_none=True)
        found: dict[str, Any] = {"preprocess": preprocess} if preprocess else {}
        return found if self.quick_gelu is None else {**found, "quick_gelu": self.quick_gelu}

    def identity(self) -> dict[str, Any]:
        """Name and overrides, as `Settings.identity`; a setting that is not set is not part of it."""
        return {"model": self.model, "pretrained": self.pretrained, **self.overrides()}

    @model_validator(mode="before")
    @classmethod
    def _schemes_bring_weights(cls, values: Any) -> Any:
        """A model named with a scheme has its own weights: the default tag does not apply to it."""
        if isinstance(values, dict) and ":" in str(values.get("model", "")):
            if values.get("pretrained") is not None:
                raise ValueError(f"pretrained must be null: {values['model']!r} brings its own weights")
            return {**values, "pretrained": None}
        return values

    @model_validator(mode="after")
    def _names_need_weights(self) -> Self:
        if ":" not in self.model and not self.pretrained:
            raise ValueError(f"pretrained is needed for {self.model!r}: an open_clip tag or a checkpoint's path")
        return self


class DeviceSettings(Settings):
    """What a stage that runs a model computes on. The resolved device is part of the identity; threads are recorded."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads"})

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 is one for each core. Sums depend on it in their last bits, so the manifest records it."""


class EmbedSettings(DeviceSettings):
    """From images and captions to CLIP embeddings."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads", "decode_threads"})

    clip: ClipSettings = ClipSettings()
    """The CLIP; its weights are hashed into the manifest."""
    engine: Literal["native", "clip-retrieval"] = "native"
    """`clip-retrieval` runs that package's own reader and model; an extra, and several times slower."""
    image: bool = True
    """Embed images; a sample without one fails."""
    text: bool = True
    """Embed captions; a sample without one fails."""
    input_format: Literal["auto", "webdataset", "files", "parquet"] = "auto"
    """What the input is: image shards, image and caption files, or tables; `auto` sees it by the names."""
    caption_column: str = "caption"
    """Column of tables that holds the caption."""
    image_column: str = "image"
    """Column of tables that holds the encoded image."""
    rows_per_shard: int | None = Field(default=None, ge=1)
    """Join image shards until they have so many samples; null: one for one, and 10,000 rows of other inputs."""
    token_states: bool = False
    """Store the text tower's token states too; they take tens of times the space of the pooled embedding."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs in one forward pass; 64 fits a laptop, a GPU takes 256 and more."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the towers; what is stored is float16 always."""
    compile: bool = False
    """Compile the image tower with torch.compile: minutes at the start, which long runs on a GPU win back."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode and preprocess images beside the forward pass."""

    @model_validator(mode="after")
    def _something_is_embedded(self) -> Self:
        if not (self.image or self.text):
            raise ValueError("embed.image and embed.text are both false: nothing would be embedded")
        if self.token_states and not self.text:
            raise ValueError("embed.token_states=true needs embed.text=true")
        return self


class ReadSettings(Settings):
    """Which rows of the embeddings belong to which split, and in which order they are read."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"read_threads"})

    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of content groups held out for validation while training."""
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of content groups held out for the final evaluation."""
    block_rows: int = Field(default=4096, ge=1)
    """Consecutive rows of a shard that are read at once: a row group of the metadata that `embed` writes."""
    shuffle_window: int = Field(default=32_768, ge=1)
    """Rows of random blocks that are shuffled together. Two windows are in memory: 200 MB at 768 dimensions."""
    captions: Literal["all", "one"] = "all"
    """Of an image with several captions: every caption once an epoch, or one of them, drawn anew each epoch."""
    read_threads: int = Field(default=4, ge=1)
    """Threads that read blocks ahead; more help against the latency of remote storage."""

    @model_validator(mode="after")
    def _some_rows_train(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        return self

    def splits(self) -> dict[str, float]:
        """What says which split a row belongs to."""
        return {"validation_fraction": self.validation_fraction, "test_fraction": self.test_fraction}


class FolderSettings(Settings):
    """Where each stage writes: local paths or fsspec URLs; `$NAME` and `${NAME}` stand for environment variables."""

    images: Location = "data/images"
    """Webdataset shards of `download`."""
    embeddings: Location = "data/embeddings"
    """Embedding shards of `embed`."""
    prior: Location = "data/prior"
    """The trained prior of `train`."""
    evaluation: Location = "data/evaluation"
    """Metrics of `evaluate`."""

    @model_validator(mode="after")
    def _folders_are_apart(self) -> Self:
        folders = [str(Path(value)) for value in self.model_dump().values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"each stage needs a folder of its own, got {folders}")
        return self


class PipelineSettings(Settings):
    """Every setting of the pipeline, under the names that recipes use."""

    urls: Location = "urls.parquet"
    """The list of URLs: a local path or an fsspec URL; environment variables as in `folders`."""
    folders: FolderSettings = FolderSettings()
    """Where each stage writes."""
    compute: ComputeSettings = ComputeSettings()
    """Where download, embed and evaluate work on their shards, and where training runs."""
    download: DownloadSettings = DownloadSettings()
    """From URLs to images."""
    embed: EmbedSettings = EmbedSettings()
    """From images to embeddings."""
    read: ReadSettings = ReadSettings()
    """Which rows train, validate and test."""
