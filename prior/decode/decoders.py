"""Arguments of each decoder's pipeline, and the properties in which the decoders differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...pipeline.errors import SettingsError
from .settings import DecoderName, DecodeSettings


@dataclass(frozen=True)
class Batch:
    """Rows that are drawn at the same time."""

    image_embed: torch.Tensor
    """Raw image embeddings of B rows, `[B, D]`, or `[B, images, D]` for IP-Adapter."""
    negative: torch.Tensor | None
    """Negative image embeddings, of the same shape; None if the decoder takes none."""
    prompts: list[str]
    """Prompt of each row."""
    generators: list[torch.Generator]
    """Random generator of each row."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Return the batch with its embeddings on a device and in a precision.

        The pipelines convert embeddings only on some paths: Kandinsky does not without guidance.
        """
        negative = None if self.negative is None else self.negative.to(device, dtype)
        return Batch(self.image_embed.to(device, dtype), negative, self.prompts, self.generators)


class Decoder:
    """A pipeline of diffusers that draws pictures from image embeddings. Each decoder is a subclass.

    Args:
        pipeline: loaded pipeline.
    """

    name: ClassVar[DecoderName]
    pipeline_classes: ClassVar[tuple[str, ...]]
    """Names of the classes in diffusers that the pipeline may have."""
    has_negative: ClassVar[bool] = False
    """True if the pipeline takes negative embeddings, which it uses for guidance."""
    prompts: ClassVar[bool | None] = None
    """Default for giving the pipeline the prompts; None if it takes none."""
    has_size: ClassVar[bool] = True
    """False if the pictures have the size that is fixed by the weights."""
    largest_batch: ClassVar[int | None] = None
    """Number of rows that the pipeline can draw at the same time; None for any number."""
    least_steps: ClassVar[int] = 1

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @classmethod
    def check(cls, settings: DecodeSettings) -> None:
        """Check that each setting has an effect on this decoder.

        Raises:
            SettingsError: a setting has no effect, or a needed one is missing.
        """
        if settings.size is not None and not cls.has_size:
            raise SettingsError(f"--size {settings.size}: {cls.name} draws pictures of one size; leave it out")
        if settings.prompts is not None and cls.prompts is None:
            raise SettingsError(f"--prompts and --no-prompts: {cls.name} takes no prompts; leave it out")
        if settings.noise_level is not None and cls is not StableUnClip:
            raise SettingsError(f"--noise-level {settings.noise_level}: only stable-unclip adds noise; leave it out")
        if settings.ip_adapter is not None and cls is not IpAdapter:
            raise SettingsError(f"--ip-adapter {settings.ip_adapter}: {cls.name} has none; leave it out")
        if (settings.steps or cls.least_steps) < cls.least_steps:
            raise SettingsError(f"--steps {settings.steps}: {cls.name} needs at least {cls.least_steps}")
        if cls.largest_batch is not None and (settings.batch_size or 1) > cls.largest_batch:
            raise SettingsError(
                f"--batch-size {settings.batch_size}: {cls.name} draws one picture at a time, because diffusers mixes "
                "the embeddings of a batch; leave it out"
            )

    def arguments(self, batch: Batch, settings: DecodeSettings) -> dict[str, Any]:
        """Return the keyword arguments with which the pipeline draws a batch."""
        raise NotImplementedError

    @property
    def embed_dim(self) -> int:
        """Size of the image embeddings that the pipeline takes."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Default width and height of a picture in pixels."""
        raise NotImplementedError

    @property
    def size_step(self) -> int:
        """Number of pixels of which a picture's size is a multiple."""
        raise NotImplementedError

    @property
    def networks(self) -> Sequence[Any]:
        """Networks that are evaluated once for each denoising step."""
        return [self.pipeline.unet]


def _options(settings: DecodeSettings, steps: str, guidance_scale: str) -> dict[str, Any]:
    """Return the arguments for the steps, the guidance scale and the size; those that are None are left out."""
    named = {
        steps: settings.steps, guidance_scale: settings.guidance_scale, "height": settings.size, "width": settings.size,
    }  # fmt: skip
    return {name: value for name, value in named.items() if value is not None}


class Kandinsky(Decoder):
    """Base class for the decoders of Kandinsky."""

    has_negative = True

    def arguments(self, batch: Batch, settings: DecodeSettings) -> dict[str, Any]:
        options = _options(settings, "num_inference_steps", "guidance_scale")
        return {"image_embeds": batch.image_embed, "negative_image_embeds": batch.negative, **options}

    @property
    def embed_dim(self) -> int:
        return int(self.pipeline.unet.encoder_hid_proj.image_embeds.in_features)

    @property
    def size(self) -> int:
        return 512

    @property
    def size_step(self) -> int:
        return int(self.pipeline.movq_scale_factor**2)


class Kandinsky22(Kandinsky):
    """Decoder of Kandinsky 2.2."""

    name, pipeline_classes = "kandinsky-2.2", ("KandinskyV22Pipeline",)


class Kandinsky21(Kandinsky):
    """Decoder of Kandinsky 2.1, which also takes a prompt for each embedding."""

    name, pipeline_classes, prompts = "kandinsky-2.1", ("KandinskyPipeline",), True

    def arguments(self, batch: Batch, settings: DecodeSettings) -> dict[str, Any]:
        return {**super().arguments(batch, settings), "prompt": batch.prompts}


class Karlo(Decoder):
    """Decoder of Karlo: a first network and two of super-resolution."""

    name, pipeline_classes, has_size, least_steps = "karlo", ("UnCLIPImageVariationPipeline",), False, 2

    def arguments(self, batch: Batch, settings: DecodeSettings) -> dict[str, Any]:
        options = _options(settings, "decoder_num_inference_steps", "decoder_guidance_scale")
        return {"image_embeddings": batch.image_embed, **options}

    @property
    def embed_dim(self) -> int:
        return int(self.pipeline.text_proj.clip_image_embeddings_project_to_time_embeddings.in_features)

    @property
    def size(self) -> int:
        return int(self.pipeline.super_res_last.config.sample_size)

    @property
    def size_step(self) -> int:
        return 1

    @property
    def networks(self) -> Sequence[Any]:
        return [self.pipeline.decoder, self.pipeline.super_res_first, self.pipeline.super_res_last]


class StableDiffusion(Decoder):
    """Base class for the decoders whose pipelines are made of the parts of Stable Diffusion."""

    prompts = False

    @property
    def size(self) -> int:
        return int(self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor)

    @property
    def size_step(self) -> int:
        return 8


class StableUnClip(StableDiffusion):
    """Decoder of Stable unCLIP."""

    name, pipeline_classes = "stable-unclip", ("StableUnCLIPImg2ImgPipeline",)

    def arguments(self, batch: Batch, settings: DecodeSettings) -> dict[str, Any]:
        options = _options(settings, "num_inference_steps", "guidance_scale")
        if settings.noise_level is not None:
            options["noise_level"] = settings.noise_level
        return {"image_embeds": batch.image_embed, "prompt": batch.prompts, **options}

    @property
    def embed_dim(self) -> int:
        return int(self.pipeline.image_normalizer.mean.shape[-1])


class IpAdapter(StableDiffusion):
    """Stable Diffusion, or Stable Diffusion XL, with an IP-Adapter.

    Its pipeline gives each picture of a batch the embeddings of all of them
    (https://github.com/huggingface/diffusers/issues/9813), so one is drawn at a time.
    """

    name, has_negative, largest_batch = "ip-adapter", True, 1
    pipeline_classes = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")

    @classmethod
    def check(cls, settings: DecodeSettings) -> None:
        super().check(settings)
        if settings.ip_adapter is None:
            raise SettingsError(
                "--for ip-adapter needs the adapter's weights: --ip-adapter FILE, or ORG/NAME/FILE on the hub, such as "
                "h94/IP-Adapter/models/ip-adapter_sd15.safetensors"
            )

    def arguments(self, batch: Batch, settings: DecodeSettings) -> dict[str, Any]:
        assert batch.negative is not None
        guided = settings.guidance_scale is None or settings.guidance_scale > 1
        embeds = torch.cat([batch.negative, batch.image_embed]) if guided else batch.image_embed
        options = _options(settings, "num_inference_steps", "guidance_scale")
        return {"ip_adapter_image_embeds": [embeds], "prompt": batch.prompts, **options}

    @property
    def embed_dim(self) -> int:
        return int(self.pipeline.unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features)


DECODER_CLASSES: dict[DecoderName, type[Decoder]] = {
    cls.name: cls for cls in (Kandinsky22, Kandinsky21, Karlo, StableUnClip, IpAdapter)
}
"""Class of each decoder, by its name."""
