"""A `PriorTransformer`: packed batches, dropped texts, draws, gradients, dtypes and compilation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from priorkit.prior.network.interface import DrawnTexts
from priorkit.prior.network.prior_transformer.network import PriorTransformer, TimeEmbedding

from ...raw_priors import D, S, T, W, captions, draw, make_network

B, K = 4, 3
LENGTHS = [1, 7, 3, 5]
TIMES = torch.tensor([0, 999, 250, 40])


def predict(network: PriorTransformer, states: torch.Tensor, rows: slice = slice(None), **more: Any) -> torch.Tensor:
    text, noisy = draw(B, S, seed=2, scale=3.0)[rows], draw(B, D, seed=3)[rows]
    dtype = network.dtype
    return network(noisy.to(dtype), TIMES[rows], text_embed=text.to(dtype), token_states=states[rows].to(dtype), **more)


VARIANTS: tuple[dict[str, Any], ...] = (
    {}, {"norm_in_type": "layer"}, {"embedding_proj_norm_type": "layer"}, {"time_token": False}, {"num_layers": 1},
    {"time_embed_dim": 5, "time_embed_act_fn": "gelu"}, {"attention_head_dim": 7, "num_attention_heads": 3},
)  # fmt: skip
every_variant = pytest.mark.parametrize("settings", VARIANTS, ids=repr)


@every_variant
@torch.no_grad()
def test_a_packed_batch_equals_each_caption_alone(settings: dict[str, Any]) -> None:
    network, states = make_network(**settings), captions(LENGTHS)
    packed = predict(network, states)
    assert packed.shape == (B, D)
    for row, length in enumerate(LENGTHS):
        alone = predict(network, states[:, :length], slice(row, row + 1))
        torch.testing.assert_close(packed[row : row + 1], alone, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_more_padding_changes_nothing() -> None:
    network, states = make_network(), captions(LENGTHS)
    wider = torch.nn.functional.pad(states, (0, 0, 0, 20))
    assert torch.equal(predict(network, wider), predict(network, states))


@torch.no_grad()
def test_states_after_the_longest_allowed_caption_are_ignored() -> None:
    network, states = make_network(), captions([T, T, T, T])
    longer = torch.cat([states, draw(B, 3, W, seed=9)], dim=1)
    assert torch.equal(predict(network, longer), predict(network, states))


@torch.no_grad()
def test_every_input_matters() -> None:
    network, states = make_network(), captions(LENGTHS)
    once = predict(network, states)
    for place in range(max(LENGTHS)):
        changed = states.clone()
        changed[1, place] += 1  # the longest caption
        other = predict(network, changed)
        assert (once[1] - other[1]).abs().max() > 1e-3
        torch.testing.assert_close(once[[0, 2, 3]], other[[0, 2, 3]], rtol=1e-5, atol=2e-6)
    prefix = network.prefix(draw(B, S, seed=2, scale=3.0), states)
    for noisy, times in ((draw(B, D, seed=4), TIMES), (draw(B, D, seed=3), TIMES + 1)):
        assert (network.suffix(prefix, noisy, times) - once).abs().amax(dim=1).min() > 1e-4
    other = network.prefix(draw(B, S, seed=8, scale=3.0), states)
    assert (network.suffix(other, draw(B, D, seed=3), TIMES) - once).abs().amax(dim=1).min() > 1e-3


@torch.no_grad()
def test_a_network_without_time_token_ignores_the_timestep() -> None:
    network, states = make_network(time_token=False), captions(LENGTHS)
    prefix = network.prefix(draw(B, S, seed=2, scale=3.0), states)
    found = [network.suffix(prefix, draw(B, D, seed=3), times) for times in (TIMES, TIMES + 5)]
    assert torch.equal(*found)
    assert "time_embedding.linear_1.weight" not in network.state_dict()


@every_variant
@torch.no_grad()
def test_draws_of_a_text_do_not_see_each_other(settings: dict[str, Any]) -> None:
    network, states = make_network(**settings), captions(LENGTHS)
    prefix, noisy = network.prefix(draw(B, S, seed=2, scale=3.0), states), draw(B * K, D, seed=5)
    together = network.suffix(prefix, noisy, TIMES)
    separate = network.suffix(prefix, noisy, TIMES.repeat_interleave(K))
    torch.testing.assert_close(together, separate, rtol=1e-5, atol=2e-6)
    for number in range(K):
        alone = network.suffix(prefix, noisy[number::K], TIMES)
        torch.testing.assert_close(together[number::K], alone, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_prefixes_of_different_lengths_may_be_stacked() -> None:
    network, states = make_network(), captions(LENGTHS)
    text, noisy = draw(B, S, seed=2, scale=3.0), draw(B, D, seed=3)
    expected = predict(network, states)
    for cut in (1, 2, 3):
        first, second = (network.prefix(text[rows], states[rows]) for rows in (slice(0, cut), slice(cut, B)))
        found = network.suffix(first.stacked_with(second), noisy, TIMES)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


# dropped texts


@pytest.mark.parametrize("length", [1, 2, T, T + 3])
@torch.no_grad()
def test_the_empty_text_replaces_dropped_texts(length: int) -> None:
    network, states = make_network(), captions(LENGTHS)
    empty_text, empty_states = draw(S, seed=20), draw(length, W, seed=21)
    assert network.lacks_empty_text
    network.set_empty_text(empty_text, empty_states)
    assert not network.lacks_empty_text
    drop = torch.tensor([False, True, True, False])
    found = predict(network, states, drop_text=drop)
    kept = predict(network, states)
    torch.testing.assert_close(found[~drop], kept[~drop], rtol=1e-5, atol=2e-6)
    expected = network(
        draw(B, D, seed=3)[drop], TIMES[drop],
        text_embed=empty_text.expand(2, -1), token_states=empty_states.expand(2, -1, -1),
    )  # fmt: skip
    torch.testing.assert_close(found[drop], expected, rtol=1e-5, atol=2e-6)
    assert (found[drop] - kept[drop]).abs().max() > 1e-3


def test_texts_cannot_be_dropped_before_the_empty_text_is_known() -> None:
    with pytest.raises(ValueError, match="the CLIP's encoding of the empty text is not known: call set_empty_text"):
        predict(make_network(), captions(LENGTHS), drop_text=torch.ones(B, dtype=torch.bool))


@pytest.mark.parametrize(
    ("text", "states"), [((S + 1,), (2, W)), ((S,), (2, W + 1)), ((S,), (0, W)), ((1, S), (2, W)), ((S,), (W,))]
)
def test_an_empty_text_of_another_size_is_refused(text: tuple[int, ...], states: tuple[int, ...]) -> None:
    network = make_network()
    with pytest.raises(ValueError, match=rf"this network takes \[{S}\] and \[T, {W}\]"):
        network.set_empty_text(torch.ones(text), torch.ones(states))
    assert network.lacks_empty_text


def test_the_empty_text_is_not_part_of_the_weights() -> None:
    network = make_network()
    names = set(network.state_dict())
    network.set_empty_text(draw(S), draw(2, W))
    assert set(network.state_dict()) == names
    assert not [name for name in names if "empty" in name]


def test_token_states_are_needed() -> None:
    with pytest.raises(ValueError, match="give token_states"):
        make_network().prefix(draw(1, S))


# training


def training_loss(network: PriorTransformer, checkpointed: bool = False, texts: int = B) -> torch.Tensor:
    network.checkpoint_activations = checkpointed
    network.set_empty_text(draw(S, seed=20), draw(2, W, seed=21))
    dtype, drop = network.dtype, torch.arange(B) >= texts if texts < B else None
    rows = min(texts + 1, B)
    draws = DrawnTexts(rows=B, draws=K, texts=texts)
    output = network.predict_draws(
        draw(B, S, seed=2, scale=3.0)[:rows].to(dtype), captions(LENGTHS)[:rows].to(dtype),
        None if drop is None else drop[:rows], draws, draw(B * K, D, seed=5).to(dtype),
        torch.arange(B * K) * 70,
    )  # fmt: skip
    return (output - draw(B * K, D, seed=6).to(dtype)).square().mean()


def gradients(network: PriorTransformer, **how: Any) -> dict[str, torch.Tensor]:
    network.zero_grad()
    training_loss(network, **how).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


@every_variant
@pytest.mark.parametrize("texts", [B, 2])
def test_the_training_pass_equals_the_cached_one(settings: dict[str, Any], texts: int) -> None:
    network = make_network(torch.float64, **settings)
    loss = training_loss(network, texts=texts)
    object.__setattr__(network, "predict_draws", super(PriorTransformer, network).predict_draws)  # the default
    torch.testing.assert_close(loss, training_loss(network, texts=texts), rtol=1e-12, atol=1e-12)
    cached = gradients(network, texts=texts)
    object.__delattr__(network, "predict_draws")
    for name, gradient in gradients(network, texts=texts).items():
        if "to_k.bias" not in name:  # zero in theory
            torch.testing.assert_close(gradient, cached[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("texts", [B, 2])
def test_recomputed_activations_give_the_same_gradients(texts: int) -> None:
    network = make_network()
    stored, recomputed = gradients(network, texts=texts), gradients(network, checkpointed=True, texts=texts)
    assert stored.keys() == recomputed.keys() == dict(network.named_parameters()).keys()
    for name, gradient in stored.items():
        assert torch.equal(gradient, recomputed[name]), name
    with torch.no_grad():
        assert torch.equal(training_loss(network, checkpointed=True), training_loss(network))


def test_recomputed_activations_drop_the_same_values() -> None:
    network = make_network(dropout=0.3).train()
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(4)
        found.append(gradients(network, checkpointed=checkpointed))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


# dtypes


@every_variant
@torch.no_grad()
def test_float32_agrees_with_float64(settings: dict[str, Any]) -> None:
    exact, rounded = make_network(torch.float64, **settings), make_network(**settings)
    found, expected = predict(rounded, captions(LENGTHS)), predict(exact, captions(LENGTHS))
    assert (found.dtype, expected.dtype) == (torch.float32, torch.float64)
    assert (found - expected).norm() / expected.norm() < 3e-6  # sinusoids are float32 in both


def test_products_in_bfloat16_are_near() -> None:
    network, rounded = make_network(), make_network()
    rounded.set_product_dtype(torch.bfloat16)
    assert rounded.dtype == torch.float32
    with torch.inference_mode():
        expected, found = predict(network, captions(LENGTHS)), predict(rounded, captions(LENGTHS))
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).norm() / expected.norm() < 0.05


def test_packed_weights_give_the_same_predictions() -> None:
    network = make_network()
    with torch.no_grad():
        expected = predict(network, captions(LENGTHS))
    with torch.inference_mode():
        found = predict(network, captions(LENGTHS))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("width", [6, 7])
def test_the_sinusoids_are_cosines_then_sines(width: int) -> None:
    embedding, seen = TimeEmbedding(width, 4, "silu"), []
    embedding.linear_1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([0, 999]))
    angles = [999 * 10_000 ** (-index / 3) for index in range(3)]
    expected = [*map(math.cos, angles), *map(math.sin, angles), *[0.0] * (width - 6)]
    assert seen[0].tolist()[1] == pytest.approx(expected, abs=1e-4)
    assert seen[0].tolist()[0] == [1, 1, 1] + [0] * (width - 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler itself warns
def test_compiled_layers_give_the_same_predictions_and_gradients() -> None:
    network = make_network(num_layers=2)
    with torch.no_grad():
        expected = predict(network, captions(LENGTHS))
    plain = gradients(network)
    network.compile_layers()
    with torch.no_grad():
        torch.testing.assert_close(predict(network, captions(LENGTHS)), expected, rtol=1e-5, atol=2e-6)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-5)
