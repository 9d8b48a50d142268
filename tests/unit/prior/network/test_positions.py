"""Position encoding: buckets, bias, mask and rotation against their formulas."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch

from priorkit.prior.network.positions import PositionEncoding, _bucket


def t5_bucket(distance: int) -> int:
    """Raffel et al. 2019: 16 exact buckets, then 16 that are even in the logarithm up to 128."""
    return distance if distance < 16 else min(31, 16 + int(math.log(distance / 16) / math.log(8) * 16))


def test_buckets_equal_t5s() -> None:
    distances = [*range(300), 1000, 100_000]
    assert _bucket(torch.tensor(distances)).tolist() == [t5_bucket(distance) for distance in distances]


def encoding(**settings: Any) -> PositionEncoding:
    torch.manual_seed(0)
    return PositionEncoding(3, 8, **{"rotary": True, "cosine": True, **settings}).double()


@pytest.mark.parametrize("cosine", [True, False])
def test_bias_from_the_start(cosine: bool) -> None:
    positions = encoding(cosine=cosine)
    table, scale = positions.bias.weight, 1 if cosine else 128
    bias = positions(0, 0, 1, 30).bias.view(30, 3, 31).transpose(0, 1)
    assert bias.shape == (3, 30, 31)
    for head, place, key in ((0, 0, 0), (1, 0, 1), (2, 5, 0), (0, 29, 0), (1, 29, 2), (2, 29, 30), (0, 17, 1)):
        assert bias[head, place, key] == table[t5_bucket(max(place - key, 0)), head] * scale
    seen = torch.ones(30, 31).tril(1).bool()  # the null, and tokens up to the query itself
    assert torch.equal(torch.isfinite(bias), seen.expand(3, -1, -1))
    assert (bias[~seen.expand(3, -1, -1)] == -math.inf).all()


@pytest.mark.parametrize(
    ("cached", "shared", "draws", "tokens"), [(1, 0, 1, 3), (1, 1, 1, 2), (20, 2, 3, 4), (0, 0, 2, 1)]
)
def test_bias_after_a_cache_equals_that_of_each_draw_alone(cached: int, shared: int, draws: int, tokens: int) -> None:
    positions = encoding()
    length, heads = shared + draws * tokens, 3
    found = positions(cached, shared, draws, tokens).bias.view(length, heads, cached + 1 + length)
    whole = cached + shared + tokens
    alone = positions(0, 0, 1, whole).bias.view(whole, heads, whole + 1)[cached:]  # (shared + tokens, H, keys)
    for draw in range(draws):
        visible = [*range(shared), *range(shared + draw * tokens, shared + (draw + 1) * tokens)]
        keys = [*range(cached + 1), *(cached + 1 + index for index in visible)]
        assert torch.equal(found[visible][:, :, keys], alone)
        others = [cached + 1 + index for index in range(shared, length) if index not in visible]
        assert (found[visible[shared:]][:, :, others] == -math.inf).all()
        assert (found[:shared][:, :, cached + 1 + shared :] == -math.inf).all()


@pytest.mark.parametrize(("width", "rotated"), [(8, 8), (32, 32), (40, 32), (64, 32)])
def test_rotation_angle_is_position_times_frequency_of_the_pair(width: int, rotated: int) -> None:
    rotation = PositionEncoding(1, width, rotary=True, cosine=True).double()(5, 1, 2, 3).rotation
    assert rotation is not None
    places = [5, 6, 7, 8, 6, 7, 8]  # the shared token, then those of both draws
    expected = [
        [cmath.exp(1j * place / 10_000 ** (2 * pair / rotated)) for pair in range(rotated // 2)] for place in places
    ]
    assert rotation.shape == (7, 1, rotated // 2)
    torch.testing.assert_close(rotation[:, 0], torch.tensor(expected, dtype=torch.complex128), rtol=0, atol=1e-6)


def test_no_rotation_without_rotary() -> None:
    positions = encoding(rotary=False)
    assert positions(0, 0, 1, 3).rotation is None
    assert positions(3, 1, 2, 2).rotation is None
