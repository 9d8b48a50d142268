"""The installed DALLE2-pytorch's own trainer loads what we export, and we load what it has just saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.prior.interchange.load import convert, load_prior
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

from ..parity.checkpoints import CHECKPOINTS

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5
BATCH = 4
RUN = {
    "data": {"image_url": "", "meta_url": "", "splits": {"train": 0.5, "val": 0.25, "test": 0.25}, "batch_size": 4},
    "train": {"warmup_steps": 2},
    "tracker": {"log": {}, "save": {"save_to": "local"}, "data_path": "data"},
}
"""The rest of a training run's JSON."""

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "defaults": ({}, {}, False),
    "token states": ({"max_text_len": 5, "num_timesteps": 30}, {}, True),
    "padding only": ({"max_text_len": 3}, {"text_drop": 0.2, "image_drop": 0.1}, False),
    "eps": (
        {"normformer": True, "norm_in": True, "num_text_embeds": 2, "num_time_embeds": 3, "num_image_embeds": 2},
        {"prediction": "eps", "x0_clamp": "unit_box", "output_norm": "none", "noise_schedule": "jsd", "loss": "l1"},
        False,
    ),
    "v": (
        {"self_cond": True, "rotary_emb": False, "norm_out": False, "final_proj": False, "max_text_len": 4},
        {"prediction": "v", "noise_schedule": "sigmoid", "x0_clamp": "sphere", "embed_scale": 2.0, "loss": "huber"},
        True,
    ),
    "clamps": (
        {"attn_dropout": 0.1, "ff_dropout": 0.1, "dim_head": 40},
        {"training_clamp": True, "init_clamp": True, "noise_schedule": "quadratic"},
        False,
    ),
}


def our_prior(name: str) -> Prior:
    network, diffusion, with_states = NETWORKS[name]
    config = PriorConfig(
        embed_dim=16,
        token_width=16 if with_states else None,
        network=NetworkSettings(**{"width": 16, "depth": 2, "heads": 3, "dim_head": 8, "ff_mult": 2, **network}),
        diffusion=DiffusionSettings(**{"timesteps": 30, **diffusion}),
        clip={},
        clip_settings={},
    )
    built = build_network(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return Prior(config, built, build_normaliser(config))


def prior_of(described: dict[str, Any]) -> Any:
    """A prior of theirs, from the JSON of a training run without the rest of it."""
    from dalle2_pytorch.train_configs import TrainDiffusionPriorConfig

    return TrainDiffusionPriorConfig(**RUN, **described).prior.create()


def trainer_of(prior: Any, **arguments: Any) -> Any:
    from dalle2_pytorch.trainer import DiffusionPriorTrainer

    return DiffusionPriorTrainer(prior, **{"lr": 1e-3, "wd": 6e-2, "max_grad_norm": 0.5, **arguments})


def trainer_for(export: Path, **arguments: Any) -> Any:
    """As the training script builds it from the JSON beside an export."""
    return trainer_of(prior_of(json.loads(export.with_suffix(".json").read_text())), **arguments)


def inputs(prior: Prior) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    dim, net = prior.config.embed_dim, prior.network
    drawn = {
        "noisy": torch.randn(BATCH, dim, generator=generator),
        "text": torch.randn(BATCH, dim, generator=generator),
        "estimate": torch.randn(BATCH, dim, generator=generator),
        "states": torch.randn(BATCH, max(1, net.max_text_len), dim, generator=generator),
    }
    drawn["states"][0, 1:] = 0
    return drawn


def assert_same(theirs: Any, ours: Prior) -> None:
    """Their network and ours give the same outputs."""
    given = inputs(ours)
    times = torch.tensor([0, 3, 11, len(ours.schedule) - 1])
    states = given["states"] if ours.network.takes_token_states else None
    self_cond = given["estimate"] if ours.config.network.self_cond else None
    with torch.no_grad():
        expected = theirs.net.eval()(
            given["noisy"], times, text_embed=given["text"],
            **({} if states is None else {"text_encodings": states}),
            **({} if self_cond is None else {"self_cond": self_cond}),
        )  # fmt: skip
        found = ours.network(given["noisy"], times, text_embed=given["text"], token_states=states, self_cond=self_cond)
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


@pytest.fixture(params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Prior, Path]:
    """A prior of ours, and its export."""
    ours = our_prior(request.param)
    save_prior(Store(str(tmp_path / "prior")).create, ours.config, ours.network, ours.normaliser)
    convert(str(tmp_path / "prior"), str(tmp_path / "prior.pth"))
    return ours, tmp_path / "prior.pth"


@pytest.mark.parametrize("arguments", [{}, {"warmup_steps": 2, "cosine_decay_max_steps": 50}], ids=["plain", "decay"])
def test_their_trainer_loads_our_export(exported: tuple[Prior, Path], arguments: dict[str, Any]) -> None:
    ours, path = exported
    trainer = trainer_for(path, **arguments)
    loaded = trainer.load(str(path), strict=True)
    assert loaded["version"] == "1.15.6"
    assert trainer.step.item() == 0
    assert_same(trainer.diffusion_prior, ours)
    assert_same(trainer.ema_diffusion_prior.ema_model, ours)
    scheduler = trainer.diffusion_prior.noise_scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, ours.schedule.alpha_bar.float())

    given = inputs(ours)
    states = {"text_encodings": given["states"]} if ours.config.token_width is not None else {}
    before = {name: value.clone() for name, value in trainer.diffusion_prior.state_dict().items()}
    trainer.train()
    for _ in range(3):
        loss = trainer(text_embed=given["text"], image_embed=given["noisy"], **states)
        assert loss == pytest.approx(loss)  # not NaN
        trainer.update()
    assert trainer.step.item() == 3
    after = trainer.diffusion_prior.state_dict()
    assert not torch.equal(after["net.learned_query"], before["net.learned_query"])
    assert torch.equal(after["noise_scheduler.betas"], before["noise_scheduler.betas"])


def test_their_settings_are_those_that_we_export(exported: tuple[Prior, Path]) -> None:
    """Every setting that the module keeps, against that of a prior of theirs built by hand."""
    ours, path = exported
    theirs = prior_of(json.loads(path.with_suffix(".json").read_text()))
    diffusion = ours.config.diffusion
    assert theirs.image_embed_scale == pytest.approx(ours.normaliser.radius)
    assert (theirs.text_cond_drop_prob, theirs.image_cond_drop_prob) == (diffusion.text_drop, diffusion.image_drop)
    assert theirs.noise_scheduler.loss_type == diffusion.loss
    assert theirs.noise_scheduler.num_timesteps == diffusion.timesteps
    assert theirs.predict_v == (diffusion.prediction == "v")
    assert theirs.predict_x_start == (diffusion.x0_clamp != "unit_box")
    assert theirs.sampling_clamp_l2norm == (diffusion.x0_clamp == "sphere")
    assert theirs.sampling_final_clamp_l2norm == (diffusion.output_norm == "unit")
    assert theirs.training_clamp_l2norm == diffusion.training_clamp
    assert theirs.init_image_embed_l2norm == diffusion.init_clamp
    assert theirs.condition_on_text_encodings == (ours.config.token_width is not None)


def test_their_sampler_on_our_export_is_ours(exported: tuple[Prior, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, path = exported
    trainer = trainer_for(path)
    trainer.load(str(path))
    given = inputs(ours)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(BATCH, 16, generator=generator) for _ in range(8)]
    left = iter(noise)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(left).clone())
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: next(left).clone())
    text = torch.nn.functional.normalize(given["text"], dim=-1)
    cond = {"text_embed": text}
    if ours.config.token_width is not None:
        cond["text_encodings"] = given["states"]
    theirs = trainer.diffusion_prior.eval().p_sample_loop((BATCH, 16), cond, timesteps=5)
    monkeypatch.undo()
    states = given["states"] if ours.network.takes_token_states else None
    found = ours.sample(text_embed=text, token_states=states, sampler="dalle2-ddim", steps=5, noise=noise)
    assert float((found - theirs).abs().max() / theirs.abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("checkpoint", "arguments"),
    [
        (CHECKPOINTS[0], {"warmup_steps": 4}),
        (CHECKPOINTS[0], {"cosine_decay_max_steps": 9}),
        (CHECKPOINTS[1], {"warmup_steps": 4, "wd": 0}),
        (CHECKPOINTS[2], {}),
    ],
    ids=["warmup", "cosine decay", "Adam", "no token states"],
)
def test_we_load_what_their_trainer_has_just_saved(checkpoint: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)  # some networks that so few steps of such a rate make amplify rounding more than others
    described = {name: value for name, value in checkpoint.prior.items() if name != "clip"}
    (tmp_path / "prior.json").write_text(json.dumps({"prior": described}))
    prior = prior_of({"prior": described})
    average = {"ema_update_every": 1, "ema_update_after_step": 0, "ema_beta": 0.9}
    trainer = trainer_of(prior, **{"lr": 0.05, **average, **arguments})
    dim = described["net"]["dim"]
    states = {"text_encodings": torch.randn(BATCH, 2, dim)} if prior.condition_on_text_encodings else {}
    for _ in range(4):
        trainer(text_embed=torch.randn(BATCH, dim), image_embed=torch.randn(BATCH, dim), **states)
        trainer.update()
    trainer.save(tmp_path / "saved.pth")
    with_config = {"config": str(tmp_path / "prior.json")}
    assert_same(prior, load_prior(str(tmp_path / "saved.pth"), weights="online", **with_config))
    averaged = load_prior(str(tmp_path / "saved.pth"), **with_config)
    assert_same(trainer.ema_diffusion_prior.ema_model, averaged)
    with pytest.raises(AssertionError):
        assert_same(prior, averaged)  # the two are not the same
