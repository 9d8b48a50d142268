"""Training in bfloat16, compiled, or with activations computed anew, against training as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.objective.diffusion import Condition, diffusion_loss, step_randomness
from priorkit.prior.objective.normaliser import EmbeddingNormaliser
from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.step import autocast, prepare_network

MakeNetwork = Callable[..., PriorNetwork]
DIFFUSION = DiffusionSettings(timesteps=100, text_drop=0.3)


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def loss_of(network: PriorNetwork, dtype: str = "float32", rows: int = 8, step: int = 0) -> torch.Tensor:
    random = step_randomness(seed=1, step=step, first=0, rows=rows, draws=3, embed_dim=8, diffusion=DIFFUSION)
    with autocast(dtype, torch.device("cpu")):
        condition = Condition(unit(rows, 8, seed=2), unit(rows, 4, 6, seed=3))
        schedule, normaliser = noise_schedule("cosine", 100), EmbeddingNormaliser("sqrt_dim", 8)
        losses = diffusion_loss(network, schedule, DIFFUSION, normaliser, unit(rows, 8, seed=1), condition, random)
    return losses.mean()


def gradients(network: PriorNetwork, **arguments: Any) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients in a row."""
    network.zero_grad()
    loss = loss_of(network, **arguments)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_computed_anew_are_the_same(make_network: MakeNetwork, dropout: float) -> None:
    network = make_network(4, dtype=torch.float32, attn_dropout=dropout, ff_dropout=dropout).train()
    torch.manual_seed(0)
    loss, gradient = gradients(network)
    prepare_network(network, activation_checkpointing=True)
    torch.manual_seed(0)
    again, anew = gradients(network)
    assert loss == again
    assert torch.equal(gradient, anew)


def test_activations_computed_anew_are_not_kept(make_network: MakeNetwork) -> None:
    """What the backward pass keeps of a layer is its stream, not its inside."""

    def kept_bytes(depth: int, anew: bool) -> int:
        network = make_network(4, dtype=torch.float32, depth=depth).train()
        prepare_network(network, activation_checkpointing=anew)
        weights = {value.data_ptr() for value in network.parameters()}
        kept: dict[int, int] = {}

        def keep(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if value.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = loss_of(network)
        assert loss.requires_grad
        return sum(kept.values())

    growth = {anew: kept_bytes(6, anew) - kept_bytes(2, anew) for anew in (True, False)}
    assert growth[True] < growth[False] / 4


def test_bfloat16_keeps_weights_norms_and_loss_in_float32(make_network: MakeNetwork) -> None:
    network = make_network(4, dtype=torch.float32, norm_in=True).train()
    seen: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, getattr(output, "dtype", None))
        )
    exact, expected = gradients(network)
    loss, gradient = gradients(network, dtype="bfloat16")
    assert loss_of(network, "bfloat16").dtype == torch.float32
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert {value.grad.dtype for value in network.parameters() if value.grad is not None} == {torch.float32}
    for name, dtype in seen.items():
        if "norm" in name and "inner_norm" not in name:
            assert dtype == torch.float32, name
        if name.endswith(("to_qkv", "to_inner")):
            assert dtype == torch.bfloat16, name
    assert loss != exact
    assert loss == pytest.approx(exact, rel=2e-2)
    assert F.cosine_similarity(gradient, expected, dim=0) > 0.999


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the compiler itself does is not ours to warn of
def test_compiled_layers_are_the_same(make_network: MakeNetwork) -> None:
    network = make_network(4, dtype=torch.float32).train()
    compiled = copy.deepcopy(network)
    prepare_network(compiled, compile=True)
    assert compiled.state_dict().keys() == network.state_dict().keys()
    for step, rows in enumerate((8, 8, 5, 13)):
        loss, gradient = gradients(network, rows=rows, step=step)
        again, found = gradients(compiled, rows=rows, step=step)
        assert again == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)
