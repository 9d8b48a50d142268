"""Diffusion settings that fit a network or not, and the identity of settings from before clamping to a range."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.prior.network.family import FamilySettings
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings, check_drops, check_network

CAUSAL, RAW = NetworkSettings(), PriorTransformerSettings()


@pytest.mark.parametrize(
    ("network", "diffusion"),
    [
        (CAUSAL, {}), (CAUSAL, {"normaliser": "clip_stats"}), (CAUSAL, {"prediction": "v", "normaliser": "whiten"}),
        (NetworkSettings(num_timesteps=1000), {}), (RAW, {"normaliser": "clip_stats"}),
        (RAW, {"normaliser": "clip_stats", "x0_clamp": "range", "clip_sample_range": 10.0}),
    ],
)  # fmt: skip
def test_settings_that_fit(network: FamilySettings, diffusion: dict[str, Any]) -> None:
    check_network(network, DiffusionSettings(**diffusion))


@pytest.mark.parametrize(
    ("network", "diffusion", "message"),
    [
        (
            NetworkSettings(num_timesteps=500), {},
            "network.num_timesteps=500 is fewer than diffusion.timesteps=1000",
        ),
        *[
            (RAW, {"normaliser": kind}, f"diffusion.normaliser={kind}: a prior-transformer works with embeddings that")
            for kind in ("sqrt_dim", "standardise", "whiten")
        ],
        *[
            (
                RAW, {"normaliser": "clip_stats", "prediction": kind},
                f"diffusion.prediction={kind}: a prior-transformer predicts x0",
            )
            for kind in ("eps", "v")
        ],
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(network: FamilySettings, diffusion: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_network(network, DiffusionSettings(**diffusion))


@pytest.mark.parametrize(
    ("network", "drops", "message"),
    [
        (CAUSAL, {"text_drop": 0.1, "image_drop": 0.1}, None),
        (RAW, {"text_drop": 0.1}, None),
        (RAW, {"text_drop": 0.0}, None),
        (
            RAW,
            {"image_drop": 0.1},
            "diffusion.image_drop: a prior-transformer cannot drop the noisy image; set it to 0",
        ),
        (NetworkSettings(function_version="1.8.4"), {"text_drop": 0.0}, None),
        (NetworkSettings(function_version="1.8.4"), {"text_drop": 0.1}, "dalle2-pytorch 1.8.4 had nothing in place of"),
    ],
)
def test_drops_need_something_in_place(network: FamilySettings, drops: dict[str, Any], message: str | None) -> None:
    diffusion = DiffusionSettings(normaliser="clip_stats" if network.takes_raw_text else "sqrt_dim", **drops)
    if message is None:
        check_drops(network, diffusion)
        return
    with pytest.raises(ValueError, match=message):
        check_drops(network, diffusion)


def test_only_clip_stats_takes_raw_images() -> None:
    kinds = ("sqrt_dim", "standardise", "whiten", "clip_stats")
    assert [DiffusionSettings(normaliser=kind).takes_raw_images for kind in kinds] == [False, False, False, True]


def test_settings_of_before_keep_their_identity() -> None:
    """Folders that were made before there was a range can be continued."""
    assert "clip_sample_range" not in DiffusionSettings().identity()
    assert DiffusionSettings(x0_clamp="range", clip_sample_range=5.0).identity()["clip_sample_range"] == 5.0
