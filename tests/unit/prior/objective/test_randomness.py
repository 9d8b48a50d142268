"""Random streams of a step: pure functions of seed, step and place, with the right distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from priorkit.prior.objective.randomness import StepRandomness, dropout_seed, step_randomness
from priorkit.prior.objective.settings import DiffusionSettings


def randomness(
    seed: int = 3, step: int = 7, batch: int = 64, text_drop: float = 0.25, image_drop: float = 0.25, dim: int = 8,
    draws: int = 1, first: int = 0, timesteps: int = 100,
) -> StepRandomness:  # fmt: skip
    diffusion = DiffusionSettings(timesteps=timesteps, text_drop=text_drop, image_drop=image_drop)
    return step_randomness(
        seed=seed, step=step, first=first, rows=batch, draws=draws, embed_dim=dim, diffusion=diffusion
    )


def same(a: StepRandomness, b: StepRandomness) -> list[bool]:
    return [torch.equal(value, vars(b)[name]) for name, value in vars(a).items()]


def test_randomness_is_a_pure_function_of_seed_and_step() -> None:
    first = randomness()
    torch.manual_seed(99)
    np.random.seed(99)
    torch.randn(10)
    assert same(first, randomness()) == [True] * 5
    assert same(first, randomness(step=8)) == [False] * 5
    assert same(first, randomness(seed=4)) == [False] * 5
    # seed and step are told apart, not added up
    assert same(randomness(seed=7, step=3), randomness(seed=3, step=7)) == [False] * 5


def test_drop_shares_affect_only_their_mask() -> None:
    assert same(randomness(text_drop=0.9), randomness()) == [True, True, False, True, True]
    assert same(randomness(image_drop=0.9), randomness()) == [True, True, True, False, True]


def test_masks_are_independent() -> None:
    drawn = [randomness(step=step, batch=2000, text_drop=0.5, image_drop=0.5) for step in range(10)]
    masks = [
        torch.cat([getattr(random, name) for random in drawn]).flatten().double()
        for name in ("drop_text", "drop_image", "self_cond")
    ]
    assert masks[0].mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20_000))
    assert torch.corrcoef(torch.stack(masks)).fill_diagonal_(0).abs().max() < 4 / math.sqrt(20_000)


def test_half_of_the_draws_are_self_conditioned() -> None:
    coins = torch.cat([randomness(step=step, batch=1000).self_cond for step in range(40)]).double()
    assert coins.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(coins)))


def test_masks_that_decide_the_work_stay_on_the_cpu() -> None:
    moved = randomness().to(torch.device("meta"))
    places = {name: value.device.type for name, value in vars(moved).items()}
    assert places == {
        "noise": "meta", "timesteps": "meta", "drop_image": "meta",
        "drop_text": "cpu", "self_cond": "cpu",  # they decide what is computed
    }  # fmt: skip


def test_randomness_equals_numpys_philox() -> None:
    """The stream is the same on every platform: 32 places share a stream, numbered in the top of its counter."""
    found = randomness(batch=64, draws=2).noise.numpy()
    for number in range(2):
        random = np.random.Generator(np.random.Philox(key=[3, 7], counter=[0, 0, 0, number]))
        expected = random.standard_normal((32, 2, 8), np.float32)
        assert np.array_equal(found[32 * number : 32 * (number + 1)], expected)


@pytest.mark.parametrize("draws", [1, 3])
def test_values_of_a_place_do_not_depend_on_the_requested_part(draws: int) -> None:
    whole = randomness(batch=101, draws=draws)
    parts = [(0, 101), (0, 1), (31, 2), (32, 32), (40, 61), (100, 1), (7, 0), (64, 0)]
    parts += [(first, 1) for first in range(101)]
    for first, rows in parts:
        part = randomness(first=first, batch=rows, draws=draws)
        for name, values in vars(whole).items():
            assert torch.equal(getattr(part, name), values[first : first + rows]), (name, first, rows)


def test_places_and_draws_differ() -> None:
    noise = randomness(batch=100, draws=3).noise
    assert len(torch.unique(noise.flatten(0, 1), dim=0)) == 300


def test_shapes_and_types() -> None:
    found = randomness(batch=5, draws=3)
    assert (found.noise.shape, found.noise.dtype) == ((5, 3, 8), torch.float32)
    assert (found.timesteps.shape, found.timesteps.dtype) == ((5, 3), torch.int64)
    assert (found.drop_text.shape, found.drop_text.dtype) == ((5,), torch.bool)
    for mask in (found.drop_image, found.self_cond):
        assert (mask.shape, mask.dtype) == ((5, 3), torch.bool)


@pytest.mark.parametrize(("draws", "timesteps"), [(1, 100), (4, 100), (7, 100), (3, 5), (8, 5), (4, 1000)])
def test_timesteps_are_uniform(draws: int, timesteps: int) -> None:
    drawn = [randomness(step=step, batch=2000, draws=draws, timesteps=timesteps, dim=1).timesteps for step in range(50)]
    counts = torch.bincount(torch.cat(drawn).flatten(), minlength=timesteps).double()
    assert len(counts) == timesteps
    expected = 100_000 * draws / timesteps
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # strata make it less than that of independent draws, whose deviation is the root of twice its mean
    assert chi_square < timesteps - 1 + 4 * math.sqrt(2 * (timesteps - 1))
    if draws == 1:
        assert chi_square > timesteps - 1 - 4 * math.sqrt(2 * (timesteps - 1))


@pytest.mark.parametrize(("draws", "timesteps"), [(4, 100), (7, 100), (8, 5)])
def test_each_draw_has_its_part_of_the_timesteps(draws: int, timesteps: int) -> None:
    drawn = randomness(batch=5000, draws=draws, timesteps=timesteps, dim=1).timesteps
    for draw in range(draws):
        assert drawn[:, draw].min() == draw * timesteps // draws
        assert drawn[:, draw].max() == -(-(draw + 1) * timesteps // draws) - 1


def test_draws_of_a_row_are_independent_within_their_parts() -> None:
    drawn = torch.cat([randomness(step=step, batch=2000, draws=4).timesteps for step in range(20)]).double()
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 4 / math.sqrt(40_000)
    drops = torch.cat([randomness(step=step, batch=2000, draws=4).drop_image for step in range(20)]).double()
    assert torch.corrcoef(drops.T).fill_diagonal_(0).abs().max() < 4 / math.sqrt(40_000)


def test_noise_is_standard_normal() -> None:
    noise = torch.cat([randomness(step=step, batch=2000).noise for step in range(20)]).double()
    assert noise.mean().item() == pytest.approx(0, abs=4 / math.sqrt(noise.numel()))
    assert noise.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / noise.numel()))
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("what", ["text", "image"])
def test_drop_shares(what: str, share: float) -> None:
    drawn = [randomness(step=step, batch=1000, **{f"{what}_drop": share}) for step in range(40)]
    dropped = torch.cat([getattr(random, f"drop_{what}") for random in drawn])
    deviation = math.sqrt(share * (1 - share) / len(dropped))
    assert dropped.double().mean().item() == pytest.approx(share, abs=4 * deviation + 1e-12)


def test_rows_are_taken_by_index() -> None:
    whole = randomness(batch=4, draws=2)
    for name, values in vars(whole.take(torch.tensor([3, 1]))).items():
        assert torch.equal(values, getattr(whole, name)[[3, 1]]), name


def test_the_seed_of_dropout_differs_by_seed_step_and_rank() -> None:
    seeds = {dropout_seed(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert dropout_seed(0, 1, 2) == 2924009318215264523
