"""Normalisation of image embeddings for diffusion, and its inverse. Normalised coordinates have a scale near 1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

_SHRINKAGE = 1e-3
"""Constant added to every variance, as a fraction of the mean variance, so that directions with little variance are
not amplified too much."""

_LEAST_DEVIATION = 1e-4
"""Minimum standard deviation for `clip_stats`, as a fraction of the largest one, because it divides coordinates."""


class EmbeddingNormaliser(nn.Module):
    """Mapping between image embeddings and network space: the scaled embeddings that the network works with.

    The argument `kind` selects the mapping. Except for `clip_stats`, embeddings are first scaled to norm 1. Then:

    - `sqrt_dim` scales them to norm sqrt(D), where D is the embedding size, or to norm `embed_scale` if given, as
      DALLE2-pytorch does.
    - `standardise` subtracts the mean of each coordinate and divides by its standard deviation, as Karlo and Kandinsky
      do with embeddings of any norm.
    - `whiten` makes their covariance the identity matrix (ZCA whitening).

    `clip_stats` standardises embeddings without scaling them first, so the network also learns their norms. Karlo,
    Kandinsky and diffusers' `PriorTransformer` do this.

    `standardise`, `whiten` and `clip_stats` use statistics of the training embeddings, which are saved with the
    weights.
    """

    mean: torch.Tensor
    """Mean of the training embeddings, `[D]` (embedding size D). They are first scaled to norm 1, except for
    `clip_stats`."""
    to_embed: torch.Tensor
    """Standard deviation of each coordinate, `[D]` (embedding size D), for `standardise` and `clip_stats`. Square root
    of the covariance matrix, `[D, D]`, for `whiten`."""
    to_network: torch.Tensor
    """Inverse of `to_embed`: the reciprocal of each element for `standardise`, or the matrix inverse for `whiten`.
    `clip_stats` has none and divides by `to_embed`, as diffusers does."""

    def __init__(self, kind: str, embed_dim: int, embed_scale: float | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.radius = embed_scale if embed_scale is not None else math.sqrt(embed_dim)
        """Norm of embeddings in network space: exact for `sqrt_dim`, approximate for the other kinds."""
        if kind != "sqrt_dim":
            shape = (embed_dim, embed_dim) if kind == "whiten" else (embed_dim,)
            self.register_buffer("mean", torch.zeros(embed_dim))
            self.register_buffer("to_embed", torch.eye(embed_dim) if kind == "whiten" else torch.ones(shape))
            if kind != "clip_stats":
                self.register_buffer("to_network", torch.eye(embed_dim) if kind == "whiten" else torch.ones(shape))

    @property
    def takes_raw_images(self) -> bool:
        """True if image embeddings must not be normalised; False if their norm has no effect."""
        return self.kind == "clip_stats"

    def fit(self, image_embed: torch.Tensor) -> None:
        """Compute the statistics that `encode` and `decode` use.

        The statistics are the mean, and the standard deviations for `standardise` or the covariance for `whiten`. For
        `sqrt_dim`, which needs no statistics, this method does nothing.

        Args:
            image_embed: training embeddings `[N, D]` (N embeddings of size D). For `clip_stats`, they must have the
                norms that the CLIP model gave them; for the other kinds, they may have any norm.
        """
        if self.kind == "sqrt_dim":
            return
        if self.kind == "clip_stats":
            deviation = image_embed.double().std(dim=0, correction=0)
            self.mean.copy_(image_embed.double().mean(dim=0))
            self.to_embed.copy_(deviation.clamp(min=_LEAST_DEVIATION * float(deviation.max().clamp(min=1e-12))))
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
        """Map image embeddings `[N, D]` (N embeddings of size D) to network space.

        Except for `clip_stats`, the embeddings are first scaled to norm 1, so any norm is accepted.
        """
        if self.kind == "clip_stats":
            return (image_embed - self.mean) / self.to_embed
        unit = F.normalize(image_embed if image_embed.dtype == torch.float64 else image_embed.float(), dim=-1)
        if self.kind == "sqrt_dim":
            return unit * self.radius
        return self._scaled(unit - self.mean, self.to_network)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Map vectors in network space, `[N, D]` (N vectors of size D), back to image embeddings.

        The norm of the image embeddings is not necessarily 1.
        """
        if self.kind == "sqrt_dim":
            return x / self.radius
        return self._scaled(x, self.to_embed) + self.mean

    def to_sphere(self, x: torch.Tensor) -> torch.Tensor:
        """Rescale vectors in network space, so that the image embeddings that they represent have norm 1.

        Do not call this for `clip_stats`, whose image embeddings have various norms.

        `x` and the result have the shape `[N, D]` (N embeddings of size D). The setting `x0_clamp: sphere` clamps x0
        estimates in this way.
        """
        return self.encode(self.decode(x))

    def _scaled(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x @ scale.to(x.dtype) if self.kind == "whiten" else x * scale
