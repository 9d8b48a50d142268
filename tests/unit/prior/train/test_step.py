"""One step against its formulas, and training in bfloat16, compiled, or with recomputed activations."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.pipeline.errors import PriorkitError
from priorkit.pipeline.read.batches import Columns, TrainBatch
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.network.interface import Condition
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.objective.diffusion import diffusion_loss
from priorkit.prior.objective.normaliser import EmbeddingNormaliser
from priorkit.prior.objective.randomness import step_randomness
from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.optim import learning_rate
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.step import Learner, NotFinite, _parts, autocast, prepare_network
from priorkit.prior.train.text import read_rows, stored_text

MakeNetwork = Callable[..., PriorNetwork]
MakeJob = Callable[..., TrainJob]
ALONE = Ranks(0, 1, torch.device("cpu"))
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
    """Return the loss and all gradients in one vector."""
    network.zero_grad()
    loss = loss_of(network, **arguments)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients(make_network: MakeNetwork, dropout: float) -> None:
    network = make_network(4, dtype=torch.float32, attn_dropout=dropout, ff_dropout=dropout).train()
    torch.manual_seed(0)
    loss, gradient = gradients(network)
    prepare_network(network, activation_checkpointing=True)
    torch.manual_seed(0)
    again, recomputed = gradients(network)
    assert loss == again
    assert torch.equal(gradient, recomputed)


def test_recomputed_activations_are_not_saved(make_network: MakeNetwork) -> None:
    """Only the input of each layer is saved for the backward pass."""

    def saved_bytes(depth: int, recompute: bool) -> int:
        network = make_network(4, dtype=torch.float32, depth=depth).train()
        prepare_network(network, activation_checkpointing=recompute)
        weights = {value.data_ptr() for value in network.parameters()}
        saved: dict[int, int] = {}

        def save(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if value.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
            loss = loss_of(network)
        assert loss.requires_grad
        return sum(saved.values())

    growth = {recompute: saved_bytes(6, recompute) - saved_bytes(2, recompute) for recompute in (True, False)}
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
@pytest.mark.filterwarnings("default")  # torch's compiler itself warns
def test_compiled_layers_give_the_same_gradients(make_network: MakeNetwork) -> None:
    network = make_network(4, dtype=torch.float32).train()
    compiled = copy.deepcopy(network)
    prepare_network(compiled, compile=True)
    assert compiled.state_dict().keys() == network.state_dict().keys()
    for step, rows in enumerate((8, 8, 5, 13)):
        loss, gradient = gradients(network, rows=rows, step=step)
        again, compiled_gradient = gradients(compiled, rows=rows, step=step)
        assert again == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-3, atol=1e-5)


# steps


@pytest.fixture
def batch(dataset: EmbeddingDataset) -> TrainBatch:
    return read_rows(dataset, dataset.rows("train")[:8], Columns())


def network_gradients(learner: Learner) -> list[torch.Tensor]:
    return [value.grad.clone() for value in learner.network.parameters() if value.grad is not None]


def test_parts_cover_the_rows_without_empty_ones() -> None:
    assert list(_parts(7, 3)) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert list(_parts(2, 4)) == [slice(0, 1), slice(1, 2)]
    assert list(_parts(0, 2)) == []


def test_gradients_are_those_of_the_mean_loss_in_any_number_of_parts(
    make_train_job: MakeJob, batch: TrainBatch
) -> None:
    whole, parts = (
        Learner(job.config, job.settings, ALONE) for job in (make_train_job(), make_train_job(accumulate=3))
    )
    losses = [learner.backward(2, batch, stored_text(batch)) for learner in (whole, parts)]
    assert losses[0].shape == (8,)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(network_gradients(whole), network_gradients(parts), rtol=1e-4, atol=1e-6)
    before = network_gradients(whole)
    whole.backward(2, batch, stored_text(batch))
    assert all(map(torch.equal, before, network_gradients(whole)))  # gradients do not add up over steps
    other = whole.backward(3, batch, stored_text(batch))
    assert not torch.equal(losses[0], other)  # noise depends on the step


def test_the_gradient_of_a_share_is_a_part_of_the_global_mean(job: TrainJob, batch: TrainBatch) -> None:
    """A batch of 8 rows, half of a global batch of 16, has half the gradient."""
    learner = Learner(job.config, job.settings, ALONE)
    losses = learner.backward(0, batch, stored_text(batch))
    assert learner.reduce(0, batch, losses, False) == (pytest.approx(losses.mean().item(), rel=1e-6), False)
    whole = network_gradients(learner)
    batch = dataclasses.replace(batch, global_rows=16)
    losses = learner.backward(0, batch, stored_text(batch))
    assert learner.reduce(0, batch, losses, True) == (pytest.approx(losses.mean().item() / 2, rel=1e-6), True)
    torch.testing.assert_close([2 * value for value in network_gradients(learner)], whole)


def test_an_update_clips_and_follows_adamw_and_the_average(job: TrainJob, batch: TrainBatch) -> None:
    learner = Learner(job.config, job.settings, ALONE)
    reference = copy.deepcopy(learner.network)
    learner.backward(4, batch, stored_text(batch))
    gradients = [value.grad.double() for value in learner.network.parameters() if value.grad is not None]
    norm = torch.stack([value.square().sum() for value in gradients]).sum().sqrt().item()
    assert norm > 0.5  # the largest norm of the settings, so that clipping has an effect
    for one, other in zip(reference.parameters(), learner.network.parameters(), strict=True):
        one.grad = None if other.grad is None else other.grad * (0.5 / norm)
    rate = learning_rate(job.settings.optimiser, 4, 6)
    groups = [
        {"params": [p for p in reference.parameters() if (p.ndim > 1) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in ((True, 0.06), (False, 0.0))
    ]
    torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99)).step()
    average = {name: value.clone() for name, value in learner.average.state_dict().items()}
    assert learner.update(4, batch) == pytest.approx(norm, rel=1e-5)
    decay = 5 / 14  # (1 + step) / (10 + step)
    for name, value in learner.network.named_parameters():
        torch.testing.assert_close(value, dict(reference.named_parameters())[name], rtol=1e-5, atol=1e-6)
        expected = decay * average[name] + (1 - decay) * value
        torch.testing.assert_close(learner.average.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_dropout_depends_on_seed_step_and_rank(job: TrainJob) -> None:
    def draw(rank: int, step: int) -> float:
        learner = Learner(job.config, job.settings, Ranks(rank, 2, torch.device("cpu")))
        learner._seed_dropout(step)
        return torch.rand(1).item()

    assert draw(0, 3) == draw(0, 3)
    assert len({draw(0, 3), draw(1, 3), draw(0, 4)}) == 3


def test_a_restored_learner_takes_the_same_step(job: TrainJob, batch: TrainBatch) -> None:
    first, second = (Learner(job.config, job.settings, ALONE) for _ in range(2))
    for step in range(2):
        first.backward(step, batch, stored_text(batch))
        first.update(step, batch)
    second.restore(copy.deepcopy(first.state(2)))  # a state shares memory with its learner
    for learner in (first, second):
        learner.backward(2, batch, stored_text(batch))
        learner.update(2, batch)
    one, other = (learner.state(3).tensors() for learner in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_rows_of_a_loss_that_is_not_finite_are_named(
    job: TrainJob, batch: TrainBatch, dataset: EmbeddingDataset
) -> None:
    learner = Learner(job.config, job.settings, ALONE)
    losses = torch.ones(8)
    losses[[1, 6]] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(NotFinite, match="the loss is not finite at step 3 for 2 rows") as caught:
        learner.reduce(3, batch, losses, False)
    assert caught.value.rows == batch.rows[[1, 6]].tolist()
    error = caught.value.with_keys(dataset)
    assert type(error) is PriorkitError
    assert f"keys {batch.rows[1]:09d}, {batch.rows[6]:09d});" in str(error)
    assert str(error).endswith("else lower train.optimiser.learning_rate")


def test_a_gradient_that_is_not_finite_changes_nothing(job: TrainJob, batch: TrainBatch) -> None:
    learner = Learner(job.config, job.settings, ALONE)
    learner.backward(0, batch, stored_text(batch))
    assert learner.network.query.grad is not None
    learner.network.query.grad[0] = float("nan")
    before = learner.network.query.detach().clone()
    with pytest.raises(NotFinite, match="the gradient is not finite at step 5") as caught:
        learner.update(5, batch)
    assert caught.value.rows == batch.rows[:5].tolist()
    assert torch.equal(learner.network.query, before)
