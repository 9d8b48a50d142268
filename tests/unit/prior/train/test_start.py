"""Initial weights and statistics, and the checks of a prior to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import prior_fingerprint, save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.settings import InitSettings, TrainSettings
from priorkit.prior.train.start import (
    check_start,
    has_unknown_clip,
    image_norm_statistics,
    initialise,
    load_start,
    settings_of_start,
)
from priorkit.prior.train.step import Learner

MakePrior = Callable[..., Prior]
MakeConfig = Callable[..., PriorConfig]
MakeJob = Callable[..., TrainJob]
CPU = torch.device("cpu")


def save(prior: Prior, folder: Path) -> InitSettings:
    save_prior(Store(str(folder)).create, prior.config, prior.network, prior.normaliser)
    return InitSettings(path=str(folder))


def settings_with(start: InitSettings, **values: Any) -> TrainSettings:
    return TrainSettings.model_validate({"init_from": start.model_dump(), **values})


def test_statistics_of_a_new_prior_are_those_of_the_training_rows(
    make_train_job: MakeJob, dataset: EmbeddingDataset
) -> None:
    job = make_train_job(diffusion__normaliser="standardise")
    learner = Learner(job.config, job.settings, Ranks(0, 1, CPU))
    initialise(learner, job.settings, dataset)
    rows = dataset.embeds("img_emb", dataset.rows("train")).astype("float32")
    torch.testing.assert_close(learner.normaliser.mean, torch.from_numpy(rows.mean(axis=0)), atol=1e-5, rtol=1e-4)


def test_weights_and_average_come_from_the_prior_to_start_from(
    make_prior: MakePrior, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    prior = make_prior()
    settings = settings_with(save(prior, tmp_path / "start"), device="cpu", threads=1)
    learner = Learner(prior.config, settings, Ranks(0, 1, CPU))
    assert not torch.equal(learner.network.query, prior.network.query)
    initialise(learner, settings, dataset)
    for network in (learner.network, learner.average):
        assert all(torch.equal(value, prior.network.state_dict()[name]) for name, value in network.state_dict().items())


def test_settings_take_network_and_diffusion_of_the_start(make_prior: MakePrior, tmp_path: Path) -> None:
    start = save(make_prior(prediction="v"), tmp_path / "start")
    settings = settings_of_start(settings_with(start, diffusion={"text_drop": 0.25}), load_start(start))
    assert (settings.network.width, settings.diffusion.prediction) == (16, "v")
    assert (settings.diffusion.text_drop, settings.diffusion.image_drop) == (0.25, 0.1)


def test_another_network_than_the_start_has_is_refused(make_prior: MakePrior, tmp_path: Path) -> None:
    start = save(make_prior(), tmp_path / "start")
    assert settings_of_start(settings_with(start, network={"width": 16}), load_start(start)).network.width == 16
    with pytest.raises(SettingsError, match=r"train\.network\.width=32, but the prior to start from has 16"):
        settings_of_start(settings_with(start, network={"width": 32}), load_start(start))


def test_a_setting_that_the_start_lacks_is_refused(make_prior: MakePrior, tmp_path: Path) -> None:
    """The message names the family if the recipe sets it."""
    causal = save(make_prior(), tmp_path / "causal")
    settings = settings_with(causal, network={"family": "prior-transformer", "dropout": 0.1})
    with pytest.raises(SettingsError, match="family=prior-transformer, but the prior to start from has causal-trans"):
        settings_of_start(settings, load_start(causal))
    config = PriorConfig(
        embed_dim=8, token_width=6, network=PriorTransformerSettings(num_attention_heads=1, num_layers=1),
        diffusion=DiffusionSettings(normaliser="clip_stats"), clip={}, clip_settings={},
    )  # fmt: skip
    raw = save(Prior(config, build_network(config), build_normaliser(config)), tmp_path / "raw")
    for name in ("width", "attn_dropout"):
        with pytest.raises(
            SettingsError, match=f"{name}: the prior to start from is a prior-transformer, which has no"
        ):
            settings_of_start(
                settings_with(raw, network={name: 0.5 if name == "attn_dropout" else 16}), load_start(raw)
            )
    tuned = settings_with(raw, network={"family": "prior-transformer", "dropout": 0.1}, diffusion={"text_drop": 0.2})
    merged = settings_of_start(tuned, load_start(raw))
    assert merged.network == config.network.model_copy(update={"dropout": 0.1})
    assert merged.diffusion == config.diffusion.model_copy(update={"text_drop": 0.2})


def test_a_start_of_another_size_is_refused(make_prior: MakePrior, job: TrainJob) -> None:
    with pytest.raises(InputError, match=r"embeddings of 8 from texts of 8; .* holds embeddings of 16"):
        check_start(make_prior(), "folder", "start", job.config)


def test_a_start_of_another_clip_is_refused(make_prior: MakePrior, job: TrainJob) -> None:
    prior = make_prior(embed_dim=16)
    with pytest.raises(InputError, match="was trained with another CLIP than the one that made"):
        check_start(prior, "folder", "start", job.config)
    same = prior.config.model_copy(update={"clip": job.config.clip})
    check_start(Prior(same, prior.network, prior.normaliser), "folder", "start", job.config)
    unknown = prior.config.model_copy(update={"clip": {}, "clip_settings": {}})
    assert has_unknown_clip(unknown)
    assert not has_unknown_clip(prior.config)
    check_start(Prior(unknown, prior.network, prior.normaliser), "folder", "start", job.config)


def test_the_fingerprint_follows_every_weight_and_statistic(make_prior: MakePrior) -> None:
    prior = make_prior(diffusion={"normaliser": "standardise"})
    before = prior_fingerprint(prior)
    assert prior_fingerprint(prior) == before
    with torch.no_grad():
        prior.network.query[0] += 1
    changed = prior_fingerprint(prior)
    prior.normaliser.mean[0] += 1
    assert len({before, changed, prior_fingerprint(prior)}) == 3


def test_settings_that_only_change_the_training_may_differ(make_prior: MakePrior, tmp_path: Path) -> None:
    start = save(make_prior(), tmp_path / "start")
    settings = settings_with(start, network={"attn_dropout": 0.2, "ff_dropout": 0.3}, diffusion={"loss": "l1"})
    merged = settings_of_start(settings, load_start(start))
    assert merged.network == NetworkSettings(**{**make_prior().config.network.model_dump(), "attn_dropout": 0.2,
                                                "ff_dropout": 0.3})  # fmt: skip
    assert merged.diffusion.loss == "l1"


def test_norms_that_cannot_be_read_are_noted_and_stop_nothing() -> None:
    class Dataset:
        def has_norms(self, kind: str) -> bool:
            raise InputError("the storage is away")

    notes: list[str] = []
    assert image_norm_statistics(Dataset(), notes) is None  # type: ignore[arg-type]
    assert len(notes) == 1
    assert notes[0].endswith("so it gives no raw samples: the storage is away")
