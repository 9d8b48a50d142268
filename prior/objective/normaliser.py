"""Embeddings as diffusion wants them: coordinates of mean 0 and variance near 1, and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

_SHRINKAGE = 1e-3
"""Share of the mean variance that is added to every direction, so that rare ones are not blown up."""


class EmbeddingNormaliser(nn.Module):
    """Image embeddings to network space and back.

    Kinds: `sqrt_dim` scales unit vectors to norm sqrt(D), or to `embed_scale`, as DALLE2-pytorch does. `standardise`
    subtracts a mean and divides by a deviation, coordinate by coordinate, as Karlo and Kandinsky do. `whiten` makes
    the covariance the unit matrix (ZCA). The statistics of the latter two are kept with the weights.
    """

    mean: torch.Tensor
    """`[D]`."""
    to_embed: torch.Tensor
    """`[D]` deviations, or `[D, D]` square root of the covariance."""
    to_network: torch.Tensor
    """The inverse of `to_embed`."""

    def __init__(self, kind: str, embed_dim: int, embed_scale: float | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.radius = embed_scale if embed_scale is not None else math.sqrt(embed_dim)
        """Norm that unit vectors have in network space: exactly of `sqrt_dim`, about that of the others."""
        if kind != "sqrt_dim":
            shape = (embed_dim, embed_dim) if kind == "whiten" else (embed_dim,)
            self.register_buffer("mean", torch.zeros(embed_dim))
            self.register_buffer("to_embed", torch.eye(embed_dim) if kind == "whiten" else torch.ones(shape))
            self.register_buffer("to_network", torch.eye(embed_dim) if kind == "whiten" else torch.ones(shape))

    def fit(self, image_embed: torch.Tensor) -> None:
        """Take the statistics of embeddings `[rows, D]` of any norm."""
        if self.kind == "sqrt_dim":
            return
        unit = F.normalize(image_embed.double(), dim=-1)
        mean = unit.mean(dim=0)
        covariance = (unit - mean).T @ (unit - mean) / len(unit)
        floor = _SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-12)
        if self.kind == "standardise":
            deviation = (covariance.diagonal() + floor).sqrt()
            forward, back = 1 / deviation, deviation
        else:
            values, vectors = torch.linalg.eigh(covariance)
            deviation = (values.clamp(min=0) + floor).sqrt()
            forward, back = (vectors / deviation) @ vectors.T, (vectors * deviation) @ vectors.T
        for buffer, value in ((self.mean, mean), (self.to_network, forward), (self.to_embed, back)):
            buffer.copy_(value)

    def encode(self, image_embed: torch.Tensor) -> torch.Tensor:
        """Embeddings `[N, D]` of any norm -> network space."""
        unit = F.normalize(image_embed if image_embed.dtype == torch.float64 else image_embed.float(), dim=-1)
        if self.kind == "sqrt_dim":
            return unit * self.radius
        return self._scaled(unit - self.mean, self.to_network)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Network space `[N, D]` -> embeddings, of whatever norm they have there."""
        if self.kind == "sqrt_dim":
            return x / self.radius
        return self._scaled(x, self.to_embed) + self.mean

    def to_sphere(self, x: torch.Tensor) -> torch.Tensor:
        """The point of network space that is the unit embedding in the direction of `x` `[N, D]`."""
        return self.encode(self.decode(x))

    def _scaled(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x @ scale.to(x.dtype) if self.kind == "whiten" else x * scale
