"""Content of a prior's folder, bit for bit, and messages for damaged folders."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import (
    BEST_NAME,
    TrainState,
    clear_states,
    load_best,
    load_folder,
    load_state,
    optimiser_tensors,
    restore_optimiser,
    save_prior,
    save_state,
)
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.objective.normaliser import EmbeddingNormaliser
from priorkit.prior.train.optim import build_optimiser
from priorkit.prior.train.settings import OptimiserSettings

MakeConfig = Callable[..., PriorConfig]
MakePrior = Callable[..., Prior]


@pytest.fixture
def config(make_config: MakeConfig) -> PriorConfig:
    return make_config(4, "v", schedule="linear")


@pytest.fixture
def saved(config: PriorConfig, tmp_path: Path) -> tuple[Path, PriorNetwork]:
    """The folder of a prior, and its network."""
    torch.manual_seed(0)
    network = build_network(config)
    save_prior(Store(str(tmp_path)).create, config, network, build_normaliser(config))
    return tmp_path, network


def test_a_prior_is_restored_bit_for_bit(saved: tuple[Path, PriorNetwork], config: PriorConfig) -> None:
    folder, network = saved
    prior = load_folder(str(folder))
    assert prior.config == config
    loaded = prior.network.state_dict()
    assert loaded.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value), name
    assert not prior.network.training
    assert len(prior.schedule) == 100


def test_two_saves_are_the_same_bytes(saved: tuple[Path, PriorNetwork], config: PriorConfig) -> None:
    folder, network = saved
    again = folder / "again"
    save_prior(Store(str(again)).create, config, copy.deepcopy(network), build_normaliser(config))
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_a_prior_needs_no_pickle_and_describes_itself(saved: tuple[Path, PriorNetwork], config: PriorConfig) -> None:
    folder, network = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    described = json.loads((folder / "config.json").read_text())
    assert described["network"] == config.network.model_dump()
    assert described["diffusion"]["prediction"] == "v"
    assert described["clip"] == config.clip
    assert described["format_version"] == 2
    assert described["trained_on"] is None
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(network.state_dict())


def test_a_prior_on_a_remote_store(config: PriorConfig) -> None:
    store = Store("memory://checkpoint-test/prior")
    network = build_network(config)
    save_prior(store.create, config, network, build_normaliser(config))
    loaded = load_folder("memory://checkpoint-test/prior").network
    assert torch.equal(loaded.query, network.query)


def fitted(config: PriorConfig) -> EmbeddingNormaliser:
    """A normaliser with fitted statistics."""
    normaliser = build_normaliser(config)
    normaliser.fit(torch.randn(100, 8, generator=torch.Generator().manual_seed(4)) + 1)
    return normaliser


@pytest.mark.parametrize("kind", ["sqrt_dim", "standardise", "whiten"])
def test_the_normaliser_is_restored(make_prior: MakePrior, tmp_path: Path, kind: str) -> None:
    prior = make_prior(diffusion={"normaliser": kind})
    prior.normaliser.load_state_dict(fitted(prior.config).state_dict())
    save_prior(Store(str(tmp_path)).create, prior.config, prior.network, prior.normaliser)
    loaded = load_folder(str(tmp_path))
    statistics = prior.normaliser.state_dict()
    assert loaded.normaliser.state_dict().keys() == statistics.keys()
    assert all(torch.equal(value, statistics[name]) for name, value in loaded.normaliser.state_dict().items())
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {f"normaliser.{name}" for name in ("mean", "to_embed", "to_network")} if kind != "sqrt_dim" else set()
        assert set(file.keys()) == set(prior.network.state_dict()) | names
    text = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(loaded.sample(text_embed=text, steps=3), prior.sample(text_embed=text, steps=3))


@pytest.mark.parametrize(
    "switches",
    [
        {"self_cond": True, "num_text_embeds": 2, "num_timesteps": 100, "normformer": True, "norm_in": True},
        {"max_text_len": 4, "token_width": None, "function_version": "0.23.10"},
        {"text_dim": 12, "final_proj": False, "embed_dim": 16, "norm_out": False},
    ],
)
def test_every_switch_is_restored(make_prior: MakePrior, tmp_path: Path, switches: dict[str, Any]) -> None:
    prior = make_prior(**switches)
    save_prior(Store(str(tmp_path)).create, prior.config, prior.network, prior.normaliser)
    loaded = load_folder(str(tmp_path))
    assert loaded.config == prior.config
    text = torch.randn(3, prior.network.text_dim, generator=torch.Generator().manual_seed(5))
    assert torch.equal(loaded.sample(text_embed=text, steps=3), prior.sample(text_embed=text, steps=3))


def test_a_prior_that_has_sampled_is_saved_as_before(make_prior: MakePrior, tmp_path: Path) -> None:
    """Packed weights and constants of guidance are not saved."""
    prior = make_prior(4)
    for name in ("before", "after"):
        save_prior(Store(str(tmp_path / name)).create, prior.config, prior.network, prior.normaliser)
        prior.sample(text_embed=torch.ones(2, 8), token_states=torch.ones(2, 4, 6), steps=2, guidance_scale=2.0)
    before, after = (tmp_path / name / "model.safetensors" for name in ("before", "after"))
    assert before.read_bytes() == after.read_bytes()


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_folder(str(folder))


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_truncated_weights_are_named(saved: tuple[Path, PriorNetwork], size: int) -> None:
    folder, _ = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    refused(folder, r"model\.safetensors is not a whole safetensors file")


def test_damaged_weights_are_named(saved: tuple[Path, PriorNetwork]) -> None:
    folder, _ = saved
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[20] ^= 0xFF
    weights.write_bytes(content)
    refused(folder, r"model\.safetensors")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def test_missing_and_extra_weights_are_named(saved: tuple[Path, PriorNetwork]) -> None:
    folder, _ = saved

    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["querry"] = weights.pop("query")

    rewrite(folder, rename)
    refused(folder, r"model\.safetensors does not fit its config: missing \['query'\], unknown \['querry'\]")


def test_a_weight_of_another_shape_is_named(saved: tuple[Path, PriorNetwork]) -> None:
    folder, _ = saved
    rewrite(folder, lambda weights: weights.update(query=torch.zeros(17)))
    refused(folder, r"model\.safetensors: query is \[17\], its config says \[16\]")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    described = json.loads((folder / "config.json").read_text())
    change(described)
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("network"), r"config\.json: network: Field required"),
        (lambda d: d.update(network=None), r"config\.json"),
        (lambda d: d["network"].update(widht=3), r"config\.json.*widht.*did you mean 'width'"),
        (lambda d: d["network"].update(width="wide"), r"config\.json.*width"),
        (lambda d: d["diffusion"].update(prediction="x1"), r"config\.json.*prediction"),
        (lambda d: d.update(embed_dim="eight"), r"config\.json.*embed_dim"),
        (lambda d: d.update(embed_dim=-8), r"config\.json.*embed_dim"),
        (
            lambda d: d.update(token_width=None),
            r"model\.safetensors does not fit its config: .*unknown \['to_token_states",
        ),
        (lambda d: d["network"].update(function_version="2.0"), r"config\.json.*function_version.*2\.0: releases"),
        (lambda d: d["network"].update(num_timesteps=50), r"config\.json.*num_timesteps=50 is fewer than"),
        (lambda d: d["network"].update(num_timesteps=200), r"model\.safetensors.*missing \['to_time\.table\.weight'\]"),
        (lambda d: d["diffusion"].update(normaliser="whiten"), r"model\.safetensors.*missing \['mean', 'to_embed',"),
        (lambda d: d.update(clip="ViT"), r"config\.json.*clip"),
        (lambda d: d.update(trained_on={"embeddings": "0"}), r"config\.json.*trained_on\.read: Field required"),
        (lambda d: d.update(format_version=1), r"config\.json has format version 1; this priorkit reads 2"),
        (lambda d: d.pop("format_version"), r"config\.json has format version None"),
    ],
)
def test_a_wrong_config_is_named(
    saved: tuple[Path, PriorNetwork], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder, _ = saved
    edit(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_a_file_that_is_no_config_is_named(saved: tuple[Path, PriorNetwork], content: bytes) -> None:
    folder, _ = saved
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json")


def test_a_missing_prior_names_the_command(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no prior is there .*run `priorkit train`")
    refused(tmp_path, "no prior is there")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "no prior is there")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_half_a_prior_is_no_prior(saved: tuple[Path, PriorNetwork], name: str) -> None:
    folder, _ = saved
    (folder / name).unlink()
    refused(folder, "no prior is there")


# the state of a training


def state_of(network: PriorNetwork, step: int) -> TrainState:
    """A training state after one real optimiser step."""
    optimiser = build_optimiser(network, OptimiserSettings())
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()
    return TrainState(
        step=step,
        network=dict(network.state_dict()),
        average={name: value * 2 for name, value in network.state_dict().items()},
        optimiser=optimiser_tensors(optimiser, network),
        normaliser={"mean": torch.arange(8.0), "to_embed": torch.full((8,), 2.0), "to_network": torch.full((8,), 0.5)},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_a_state_is_restored_bit_for_bit(store: Store, config: PriorConfig) -> None:
    network = build_network(config)
    state = state_of(network, 7)
    save_state(store, state, "settings", keep=2)
    loaded = load_state(store, "settings")
    assert loaded is not None
    assert loaded.step == 7
    for part in ("network", "average", "optimiser", "normaliser"):
        before, after = getattr(state, part), getattr(loaded, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), part
    assert len(loaded.optimiser) == 3 * len(list(network.parameters()))


def test_a_restored_optimiser_continues_like_the_old_one(store: Store, config: PriorConfig) -> None:
    network = build_network(config)
    optimiser = build_optimiser(network, OptimiserSettings())

    def step(network: PriorNetwork, optimiser: torch.optim.Optimizer) -> None:
        generator = torch.Generator().manual_seed(3)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()

    step(network, optimiser)
    tensors = {name: value.clone() for name, value in optimiser_tensors(optimiser, network).items()}
    twin = copy.deepcopy(network)
    twin_optimiser = build_optimiser(twin, OptimiserSettings())
    restore_optimiser(twin_optimiser, twin, tensors)
    step(network, optimiser)
    step(twin, twin_optimiser)
    for (name, value), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_equal_states_are_equal_files(store: Store, config: PriorConfig, tmp_path: Path) -> None:
    network = build_network(config)
    state = state_of(network, 7)
    other = TrainState(
        step=7,
        network=dict(reversed(state.network.items())),
        average=state.average,
        optimiser=dict(reversed(state.optimiser.items())),
        normaliser=dict(reversed(state.normaliser.items())),
    )
    save_state(store, state, "settings", keep=2)
    save_state(Store(str(tmp_path / "other")), other, "settings", keep=2)
    name = "state/step_000000007.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def state_files(store: Store) -> list[int]:
    return [int(name[-21:-12]) for name in store.names("state")]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_states_stay(store: Store, config: PriorConfig, keep: int) -> None:
    network = build_network(config)
    for step in (5, 10, 100, 1000):
        save_state(store, state_of(network, step), "settings", keep=keep)
    assert state_files(store) == [5, 10, 100, 1000][-keep:]
    loaded = load_state(store, "settings")
    assert loaded is not None
    assert loaded.step == 1000


def test_states_of_other_settings_are_ignored(store: Store, config: PriorConfig) -> None:
    network = build_network(config)
    save_state(store, state_of(network, 5), "old", keep=5)
    save_state(store, state_of(network, 9), "new", keep=5)
    assert [state.step for state in (load_state(store, "old"), load_state(store, "new")) if state] == [5, 9]
    assert load_state(store, "none") is None


def test_leftover_states_of_other_settings_do_not_displace_new_ones(store: Store, config: PriorConfig) -> None:
    """A kill during `overwrite` leaves later steps of a discarded training."""
    network = build_network(config)
    for step in (800, 900):
        save_state(store, state_of(network, step), "old", keep=2)
    save_state(store, state_of(network, 50), "new", keep=2)
    loaded = load_state(store, "new")
    assert loaded is not None
    assert loaded.step == 50
    assert state_files(store) == [50]


def test_clearing_removes_all_states(store: Store, config: PriorConfig) -> None:
    assert load_state(store, "settings") is None
    save_state(store, state_of(build_network(config), 5), "settings", keep=2)
    clear_states(store)
    assert state_files(store) == []
    assert load_state(store, "settings") is None


def test_a_state_needs_no_pickle(store: Store, config: PriorConfig, tmp_path: Path) -> None:
    save_state(store, state_of(build_network(config), 5), "settings", keep=2)
    (path,) = (tmp_path / "state").iterdir()
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["priorkit"]) == {"step": 5, "settings": "settings"}


@pytest.mark.parametrize("size", [0, 50, -1])
def test_a_truncated_state_is_named(store: Store, config: PriorConfig, tmp_path: Path, size: int) -> None:
    save_state(store, state_of(build_network(config), 5), "settings", keep=2)
    path = tmp_path / "state/step_000000005.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"step_000000005\.safetensors is not a whole safetensors file"):
        load_state(store, "settings")


@pytest.mark.parametrize("load", [load_state, load_best])
@pytest.mark.parametrize("stored", ["[", "[]", "3", '{"settings": "x"}', '{"settings": "x", "step": "x"}'])
def test_damaged_metadata_of_a_checkpoint_is_named(
    store: Store, tmp_path: Path, load: Callable[[Store, str], object], stored: str
) -> None:
    content = safetensors.torch.save({"weight": torch.zeros(1)}, {"priorkit": stored})
    for name in ("state/step_000000005.safetensors", BEST_NAME):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"\.safetensors is not a whole safetensors file"):
        load(store, "settings")


def test_an_unfinished_training_is_named(store: Store, config: PriorConfig, tmp_path: Path) -> None:
    save_state(store, state_of(build_network(config), 5), "settings", keep=2)
    refused(tmp_path, "its training has not ended, 5 steps are done; the same `priorkit train` command resumes")
