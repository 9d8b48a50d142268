"""Norms of samples, for priors that predict norms and for priors that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model.config import NormStatistics, PriorConfig
from priorkit.prior.model.norms import convert_norms, default_norm, require_raw

from ..conftest import MakeConfig
from ..raw_priors import D, draw, make_raw_config

NORMS = NormStatistics(mean=20.5, std=1.5)


@pytest.fixture
def unit_config(make_config: MakeConfig) -> PriorConfig:
    return make_config(embed_dim=D)


def with_norms(config: PriorConfig) -> PriorConfig:
    return config.model_copy(update={"image_norm": NORMS})


def test_the_default_is_what_the_prior_predicts(unit_config: PriorConfig, make_config: MakeConfig) -> None:
    assert default_norm(make_raw_config(), None) == "raw"
    assert default_norm(unit_config, None) == "unit"
    assert default_norm(with_norms(unit_config), None) == "unit"
    assert default_norm(make_config(diffusion={"output_norm": "none"}), None) is None
    for config in (make_raw_config(), unit_config):
        assert default_norm(config, "unit") == "unit"


def test_a_prior_without_norms_refuses_raw(unit_config: PriorConfig) -> None:
    with pytest.raises(SettingsError, match=r"norm=raw: this prior predicts no norms, and .* use norm=unit"):
        default_norm(unit_config, "raw")
    assert default_norm(with_norms(unit_config), "raw") == "raw"
    assert default_norm(make_raw_config(), "raw") == "raw"  # needs none


@pytest.mark.parametrize("norm", ["Raw", "", "none", 1])
def test_unknown_norms_are_refused(norm: Any, unit_config: PriorConfig) -> None:
    with pytest.raises(SettingsError, match="known are unit and raw"):
        default_norm(unit_config, norm)


def test_samples_get_the_norm_that_is_asked_for(unit_config: PriorConfig, make_config: MakeConfig) -> None:
    embeds = draw(5, D) * torch.tensor([1.0, 2.0, 5.0, 10.0, 20.0])[:, None]
    units = F.normalize(embeds, dim=-1)
    for config, norm, expected in (
        (make_raw_config(), None, embeds), (make_raw_config(), "raw", embeds), (make_raw_config(), "unit", units),
        (unit_config, None, units), (unit_config, "unit", units), (with_norms(unit_config), "raw", units * 20.5),
        (make_config(embed_dim=D, diffusion={"output_norm": "none"}), None, embeds),
    ):  # fmt: skip
        torch.testing.assert_close(convert_norms(embeds, config, norm), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_text_embeddings_of_norm_1_are_refused(dtype: torch.dtype) -> None:
    unit = F.normalize(draw(20, 1024), dim=-1).to(dtype).float()  # rounding keeps the norm at about 1
    with pytest.raises(SettingsError, match=r"multiply each row by its norm \(the metadata column text_norm\), or"):
        require_raw(unit)
    for raw in (7 * unit, torch.cat([unit, 7 * unit]), unit[:0], 1.01 * unit):
        require_raw(raw)
