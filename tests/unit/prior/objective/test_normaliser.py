"""Image embeddings to network space and back, and the statistics of normalised training rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.objective.normaliser import EmbeddingNormaliser

KINDS = ("sqrt_dim", "standardise", "whiten")
D = 6


def embeddings(rows: int = 5000, seed: int = 0) -> torch.Tensor:
    """Embeddings like CLIP's: a narrow cone around a mean, with correlated coordinates of unequal scale."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).standard_normal((D, D)) * [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    rows_ = np.array([3.0, -1.0, 0.5, 0.0, 0.2, -0.4]) + random.standard_normal((rows, D)) @ mixing.T * 0.5
    return torch.from_numpy(rows_ * random.uniform(0.1, 50, (rows, 1))).float()  # of any norm


def fitted(kind: str, rows: torch.Tensor | None = None) -> EmbeddingNormaliser:
    normaliser = EmbeddingNormaliser(kind, D)
    normaliser.fit(embeddings() if rows is None else rows)
    return normaliser


@pytest.mark.parametrize("scale", [None, 1.0, 7.5])
def test_sqrt_dim_scales_unit_vectors(scale: float | None) -> None:
    normaliser, rows = EmbeddingNormaliser("sqrt_dim", D, scale), embeddings(20)
    normaliser.fit(rows)  # takes nothing from them
    radius = 6**0.5 if scale is None else scale
    assert normaliser.radius == pytest.approx(radius)
    expected = rows.numpy() / np.linalg.norm(rows.numpy(), axis=-1, keepdims=True) * radius
    np.testing.assert_allclose(normaliser.encode(rows).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert normaliser.state_dict() == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_fitted", [False, True])
def test_decode_undoes_encode(kind: str, is_fitted: bool) -> None:
    normaliser = fitted(kind) if is_fitted else EmbeddingNormaliser(kind, D)
    rows = embeddings(50, seed=3)
    torch.testing.assert_close(normaliser.decode(normaliser.encode(rows)), F.normalize(rows, dim=-1))
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(0))
    unit = normaliser.to_sphere(x)
    decoded = normaliser.decode(x)
    expected = normaliser.encode(decoded / decoded.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(unit, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_an_embedding_does_not_matter(kind: str) -> None:
    normaliser, rows = fitted(kind), embeddings(20)
    torch.testing.assert_close(normaliser.encode(rows * 37), normaliser.encode(rows), rtol=1e-4, atol=1e-4)


def test_standardise_makes_mean_0_and_variance_1() -> None:
    encoded = fitted("standardise").encode(embeddings()).double()
    torch.testing.assert_close(encoded.mean(dim=0), torch.zeros(D).double(), rtol=0, atol=1e-4)
    # the smallest coordinates are held back a little: a thousandth of the mean variance is added to each
    unit = F.normalize(embeddings().double(), dim=-1)
    variance = unit.var(dim=0, correction=0)
    torch.testing.assert_close(
        encoded.var(dim=0, correction=0), variance / (variance + 1e-3 * variance.mean()), rtol=1e-4, atol=1e-4
    )
    assert encoded.var(dim=0).min() > 0.95
    assert (torch.corrcoef(encoded.T) - torch.eye(D)).abs().max() > 0.1  # coordinates still go together


def test_whiten_makes_the_covariance_the_identity() -> None:
    encoded = fitted("whiten").encode(embeddings()).double()
    torch.testing.assert_close(encoded.mean(dim=0), torch.zeros(D).double(), rtol=0, atol=1e-3)
    values, vectors = torch.linalg.eigh(torch.cov(F.normalize(embeddings().double(), dim=-1).T, correction=0))
    share = values / (values + 1e-3 * values.mean())
    expected = (vectors * share) @ vectors.T
    torch.testing.assert_close(torch.cov(encoded.T, correction=0), expected, rtol=0, atol=2e-3)
    large = share > 0.99
    assert large.sum() >= 3
    directions = vectors[:, large]
    covariance = directions.T @ torch.cov(encoded.T) @ directions
    torch.testing.assert_close(covariance, torch.eye(int(large.sum())).double(), rtol=0, atol=0.02)


def test_whitening_does_not_rotate() -> None:
    """ZCA is the symmetric whitening matrix, which changes the embeddings least."""
    normaliser = fitted("whiten")
    torch.testing.assert_close(normaliser.to_network, normaliser.to_network.T)
    torch.testing.assert_close(normaliser.to_network @ normaliser.to_embed, torch.eye(D), rtol=0, atol=1e-3)
    assert torch.linalg.eigvalsh(normaliser.to_network).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_to_sphere_gives_unit_embeddings_and_is_idempotent(kind: str) -> None:
    normaliser = fitted(kind)
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(0)) * 3
    on_sphere = normaliser.to_sphere(x)
    torch.testing.assert_close(normaliser.decode(on_sphere).norm(dim=-1), torch.ones(30), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normaliser.to_sphere(on_sphere), on_sphere, rtol=1e-3, atol=1e-3)
    cosine = F.cosine_similarity(normaliser.decode(on_sphere), normaliser.decode(x))
    torch.testing.assert_close(cosine, torch.ones(30), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
@pytest.mark.parametrize("rows", [1, 3, D])
def test_few_or_equal_rows_give_finite_statistics(kind: str, rows: int) -> None:
    normaliser = fitted(kind, embeddings(1).expand(rows, -1))
    assert all(torch.isfinite(value).all() for value in normaliser.state_dict().values())
    assert torch.isfinite(normaliser.encode(embeddings(9, seed=5))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_and_double_precision_are_accepted(kind: str) -> None:
    normaliser, rows = fitted(kind), embeddings(20)
    assert normaliser.encode(rows.half()).dtype == torch.float32
    exact = normaliser.encode(rows.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(normaliser.encode(rows).double(), exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normaliser.decode(exact), F.normalize(rows.double(), dim=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
def test_statistics_are_saved_with_the_weights(kind: str) -> None:
    first, second = fitted(kind), EmbeddingNormaliser(kind, D)
    assert sorted(first.state_dict()) == ["mean", "to_embed", "to_network"]
    assert not torch.allclose(first.encode(embeddings(9)), second.encode(embeddings(9)), atol=0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.encode(embeddings(9)), second.encode(embeddings(9)))
    assert list(first.parameters()) == []  # nothing an optimiser would move


# clip_stats, which keeps norms


def test_clip_stats_are_the_mean_and_deviation_of_each_coordinate() -> None:
    rows = embeddings()
    normaliser, exact = fitted("clip_stats"), rows.double()
    assert sorted(normaliser.state_dict()) == ["mean", "to_embed"]
    torch.testing.assert_close(normaliser.mean.double(), exact.mean(dim=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normaliser.to_embed.double(), exact.std(dim=0, correction=0), rtol=1e-5, atol=1e-5)
    encoded = normaliser.encode(rows).double()
    torch.testing.assert_close(encoded.mean(dim=0), torch.zeros(D).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(encoded.std(dim=0, correction=0), torch.ones(D).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normaliser.encode(rows), (rows - normaliser.mean) / normaliser.to_embed)
    assert normaliser.takes_raw_images
    assert not any(EmbeddingNormaliser(kind, D).takes_raw_images for kind in KINDS)


def test_clip_stats_keep_norms() -> None:
    normaliser, rows = fitted("clip_stats"), embeddings(50, seed=3)
    again = normaliser.decode(normaliser.encode(rows))
    torch.testing.assert_close(again, rows, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(again.norm(dim=-1), rows.norm(dim=-1), rtol=1e-5, atol=1e-5)
    assert (normaliser.encode(rows) - normaliser.encode(2 * rows)).abs().max() > 0.1
    exact = normaliser.double()
    torch.testing.assert_close(exact.decode(exact.encode(rows.double())), rows.double(), rtol=1e-12, atol=1e-12)


def test_clip_stats_before_a_fit_change_nothing() -> None:
    normaliser, rows = EmbeddingNormaliser("clip_stats", D), embeddings(9)
    assert torch.equal(normaliser.encode(rows), rows)
    assert torch.equal(normaliser.decode(rows), rows)


def test_clip_stats_of_diffusers_decode_as_diffusers_does() -> None:
    """With its operations: latents * clip_std + clip_mean."""
    normaliser, x = fitted("clip_stats"), torch.randn(9, D, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normaliser.decode(x), x * normaliser.to_embed + normaliser.mean)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_a_constant_coordinate_stays_finite(value: float) -> None:
    rows = embeddings()
    rows[:, 2] = value
    normaliser = fitted("clip_stats", rows)
    assert normaliser.to_embed[2] == pytest.approx(1e-4 * normaliser.to_embed.max().item(), rel=1e-5)
    encoded = normaliser.encode(rows)
    assert encoded[:, 2].abs().max() < 1
    torch.testing.assert_close(normaliser.decode(encoded), rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_equal_rows_give_finite_clip_stats(rows: int) -> None:
    normaliser = fitted("clip_stats", embeddings(1).expand(rows, -1))
    assert (normaliser.to_embed > 0).all()
    assert torch.isfinite(normaliser.encode(embeddings(9, seed=5))).all()
