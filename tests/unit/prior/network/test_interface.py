"""Another network family: a linear map trains and samples through the same objective, samplers and `Prior`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.model.config import PriorConfig, build_normaliser
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.interface import Condition, DrawnTexts, Network, Prefix
from priorkit.prior.network.linear import Linear
from priorkit.prior.objective.diffusion import diffusion_loss
from priorkit.prior.objective.normaliser import EmbeddingNormaliser
from priorkit.prior.objective.randomness import step_randomness
from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.objective.settings import DiffusionSettings

MakeConfig = Callable[..., PriorConfig]
D = 8


@dataclass(frozen=True)
class MappedText:
    """Texts after the linear map."""

    values: torch.Tensor

    @property
    def texts(self) -> int:
        return len(self.values)

    def take(self, indices: torch.Tensor) -> MappedText:
        return MappedText(self.values[indices])

    def expand(self, texts: int) -> MappedText:
        return MappedText(self.values.expand(texts, -1))

    def stacked_with(self, other: MappedText) -> MappedText:
        return MappedText(torch.cat([self.values, other.values]))


class LinearNetwork(Network):
    """Predicts a linear map of the text, plus a share of the noisy image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = self.text_dim = D
        self.token_width, self.max_text_len = None, 0
        self.takes_token_states, self.takes_self_cond, self.has_null_text = False, False, True
        self.null = torch.nn.Parameter(torch.ones(D))
        self.share = torch.nn.Parameter(torch.tensor(0.1))
        self.map = Linear(D, D)

    def prefix(self, text_embed: torch.Tensor, token_states: Any = None, drop_text: Any = None) -> MappedText:
        text = self.map(text_embed)
        return MappedText(text if drop_text is None else torch.where(drop_text[:, None], self.null, text))

    def suffix(
        self, prefix: Prefix, noisy_image_embed: torch.Tensor, timesteps: torch.Tensor, *, drop_image: Any = None,
        self_cond: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        image = noisy_image_embed if drop_image is None else noisy_image_embed * ~drop_image[:, None]
        text = prefix.values.repeat_interleave(len(image) // prefix.texts, dim=0)  # type: ignore[attr-defined]
        return text + self.share * image


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def network() -> LinearNetwork:
    torch.manual_seed(0)
    return LinearNetwork()


@pytest.mark.parametrize("draws", [1, 3])
def test_its_loss_is_the_formula_and_falls_in_training(network: LinearNetwork, draws: int) -> None:
    diffusion, schedule = DiffusionSettings(timesteps=100, text_drop=0.5), noise_schedule("cosine", 100)
    text, image, normaliser = unit(16, D, seed=1), unit(16, D, seed=2), EmbeddingNormaliser("sqrt_dim", D)
    random = step_randomness(seed=0, step=0, first=0, rows=16, draws=draws, embed_dim=D, diffusion=diffusion)

    def loss() -> torch.Tensor:
        return diffusion_loss(network, schedule, diffusion, normaliser, image, Condition(text, None), random)

    x0 = (image * D**0.5)[:, None].expand(-1, draws, -1)
    noisy = schedule.add_noise(x0.flatten(0, 1), random.noise.flatten(0, 1), random.timesteps.flatten())
    seen = torch.where(random.drop_text[:, None], network.null, text @ network.map.weight.T)
    predicted = seen[:, None] + network.share * noisy.view(16, draws, D)
    torch.testing.assert_close(loss(), (predicted - x0).square().mean(dim=(1, 2)))
    before = loss().mean()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    before.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimiser.step()
    assert loss().mean() < before


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++", "dalle2-ddim"])
@pytest.mark.parametrize(("guidance", "scale"), [("text", 1.0), ("text", 3.0), ("dalle2", 2.0)])
def test_it_samples(make_config: MakeConfig, network: LinearNetwork, sampler: Any, guidance: Any, scale: float) -> None:
    config = make_config()
    prior, given = Prior(config, network, build_normaliser(config)), {"text_embed": unit(3, D, seed=1), "steps": 5}
    given |= {"sampler": sampler, "guidance": guidance, "guidance_scale": scale}
    drawn = prior.sample(**given, num_candidates=2)
    assert drawn.shape == (3, D)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(3))
    assert torch.equal(drawn, prior.sample(**given, num_candidates=2))
    network.map.weight.data.mul_(-1)  # which torch does not count
    assert (prior.sample(**given, num_candidates=2) - drawn).abs().max() > 1e-2


def test_one_step_of_ddim_is_the_guided_prediction(make_config: MakeConfig, network: LinearNetwork) -> None:
    config, text, noise = make_config(), unit(3, D, seed=1), unit(3, D, seed=2)
    prior = Prior(config, network, build_normaliser(config))
    drawn = prior.sample(text_embed=text, steps=1, guidance_scale=3.0, noise=[noise])
    known, null = text @ network.map.weight.T, network.null
    expected = null + 3.0 * (known - null) + network.share * noise
    torch.testing.assert_close(drawn, F.normalize(expected.detach(), dim=-1))


def test_the_dtype_of_products_is_that_of_linear_layers_alone(network: LinearNetwork) -> None:
    network.set_product_dtype(torch.bfloat16)
    assert (network.map.weight.dtype, network.dtype, network.device.type) == (torch.bfloat16, torch.float32, "cpu")


def test_draws_of_texts_are_in_the_order_of_rows() -> None:
    assert DrawnTexts(rows=4, draws=2, texts=2).indices(torch.device("cpu")).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_conditions_are_selected_with_their_token_states() -> None:
    condition = Condition(unit(3, D, seed=1), unit(3, 4, 6, seed=2))
    chosen = condition.take(torch.tensor([2, 0]))
    assert torch.equal(chosen.text_embed, condition.text_embed[[2, 0]])
    assert chosen.token_states is not None
    assert torch.equal(chosen.token_states, condition.token_states[[2, 0]])
    assert Condition(condition.text_embed, None).take(torch.tensor([1])).token_states is None
