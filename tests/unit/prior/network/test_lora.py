"""Low-rank adapters: what they compute, what is trained, and merging."""

from __future__ import annotations

import copy

import pytest
import torch

from priorkit.prior.network.linear import Linear
from priorkit.prior.network.lora import (
    AdaptedLinear,
    adapters_among,
    add_adapters,
    fold_adapters,
    is_adapter_weight,
    merge,
    network_adapters,
)
from priorkit.prior.network.prior_transformer.network import PriorTransformer
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def make_network() -> PriorTransformer:
    torch.manual_seed(0)
    settings = PriorTransformerSettings(num_attention_heads=2, attention_head_dim=4, num_layers=2, num_embeddings=3)
    return PriorTransformer(embed_dim=6, text_dim=None, token_width=None, settings=settings)


def outputs(network: PriorTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    states = torch.randn(2, 3, 6, generator=generator)
    return network(noisy, torch.tensor([3, 900]), text_embed=text, token_states=states)  # type: ignore[no-any-return]


def train_adapters(network: PriorTransformer) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_adapter_weight(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def test_new_adapters_change_nothing_and_are_all_that_is_trained() -> None:
    plain, network = make_network(), make_network()
    add_adapters(network, TARGETS, rank=3, alpha=6.0)
    assert torch.equal(outputs(network), outputs(plain))
    trained = {name: tuple(value.shape) for name, value in network.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * 4 * 2
    assert trained["transformer_blocks.1.attn1.to_out.0.lora_A.weight"] == (3, 8)
    assert trained["transformer_blocks.0.attn1.to_q.lora_B.weight"] == (8, 3)
    assert {name for name in network.state_dict() if not is_adapter_weight(name)} == set(plain.state_dict())


def test_the_output_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    base = Linear(5, 7, bias=True)
    layer = AdaptedLinear(base, 2, 1.5)
    torch.nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(4, 5)
    expected = base(x) + 1.5 * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.gelu(x), torch.nn.functional.gelu(expected))


@pytest.mark.parametrize("targets", [TARGETS, ("ff.net.0.proj", "proj_to_clip_embeddings")])
def test_merged_weights_compute_the_same(targets: tuple[str, ...]) -> None:
    network = make_network()
    add_adapters(network, targets, rank=2, alpha=3.0)
    train_adapters(network)
    expected = outputs(network)
    assert not torch.allclose(expected, outputs(make_network()), rtol=0.1)
    merged = make_network()
    merged.load_state_dict(merge(network.state_dict(), adapters_among(network.state_dict(), 1.5)))
    torch.testing.assert_close(outputs(merged), expected, rtol=1e-4, atol=1e-5)
    adapters = network_adapters(network)
    folded = copy.deepcopy(network)
    fold_adapters(folded)
    assert all(torch.equal(value, folded.state_dict()[name]) for name, value in merged.state_dict().items())
    assert network_adapters(folded) == {}
    for name, value in merge(merged.state_dict(), adapters, -1).items():
        torch.testing.assert_close(value, make_network().state_dict()[name], rtol=1e-5, atol=1e-6)


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"no linear layer is named to_x; known are .*to_q"):
        add_adapters(make_network(), ("to_q", "to_x"), rank=2, alpha=2.0)
