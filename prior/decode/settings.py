"""Settings for drawing pictures from embeddings."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from ...pipeline.settings import Settings
from ..sampling.settings import MAX_SEED

DecoderName = Literal["kandinsky-2.2", "kandinsky-2.1", "karlo", "stable-unclip", "ip-adapter"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)
"""Names of the decoders, as `--for` takes them."""


class DecodeSettings(Settings):
    """Settings for drawing pictures. A setting that is None has the default value of the pipeline."""

    steps: int | None = Field(default=None, ge=1)
    """Number of denoising steps. For Karlo, it is the number of steps of the first of its networks."""
    guidance_scale: float | None = Field(default=None, ge=1)
    """Weight of the image embedding against the negative one. 1 turns guidance off."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the noise. The picture of row N is drawn from seed + N, so it does not depend on the other rows."""
    size: int | None = Field(default=None, ge=8)
    """Width and height of a picture in pixels."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that runs the pipeline. `auto` uses a GPU if one is available."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the pipeline's weights and activations."""
    limit: int | None = Field(default=None, ge=1)
    """Number of rows to draw, from the first; None for all."""
    batch_size: int | None = Field(default=None, ge=1)
    """Number of pictures drawn at the same time; None for 4, or 1 for IP-Adapter, which draws one at a time."""
    noise_level: int | None = Field(default=None, ge=0, lt=1000)
    """Amount of noise that Stable unCLIP adds to the embedding: 0 adds almost none, and more gives more variety."""
    prompts: bool | None = None
    """True to give the decoder the prompts too, False to give it empty ones. By default, only Kandinsky 2.1 gets
    them, because it was trained with both."""
    ip_adapter: str | None = None
    """Weights of the IP-Adapter: a file, or ORG/NAME/FILE on the hub."""
