"""The network against a single-pass reference, and what its token order promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.network import PrefixCache, PriorNetwork

MakeNetwork = Callable[..., PriorNetwork]

B, D, W, T = 5, 8, 6, 4
"""Rows, embedding size, token width, max_text_len."""


def inputs(lengths: tuple[int, ...] = (4, 2, 0, 1, 3), length: int = T) -> dict[str, torch.Tensor]:
    """Random float64 inputs; token states of the given lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    states = torch.randn(B, max(length, *lengths), W, **draw)  # type: ignore[call-overload]
    for row, kept in enumerate(lengths):
        states[row, kept:] = 0
    return {
        "noisy": torch.randn(B, D, **draw),  # type: ignore[call-overload]
        "timesteps": torch.tensor([0, 1, 50, 98, 99]),
        "text": torch.randn(B, D, **draw),  # type: ignore[call-overload]
        "states": states[:, :length],
    }


def sinusoid(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """Vaswani et al. 2017, sines then cosines, in the float32 that the network uses."""
    rows = []
    for timestep in timesteps.tolist():
        angles = [timestep * 10_000 ** (-index / (width // 2)) for index in range(width // 2)]
        rows.append([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
    return torch.tensor(rows, dtype=torch.float64)


def reference(
    network: PriorNetwork,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: torch.Tensor,
    states: torch.Tensor | None,
    drop: torch.Tensor,
) -> torch.Tensor:
    """The whole network in one pass, written out: all tokens side by side, one causal mask, attention by hand."""
    weights = network.state_dict()

    def linear(name: str, values: torch.Tensor) -> torch.Tensor:
        bias = weights.get(f"{name}.bias")
        result = values @ weights[f"{name}.weight"].T
        return result if bias is None else result + bias

    def norm(name: str, values: torch.Tensor) -> torch.Tensor:
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    width = weights["query"].shape[0]
    rows = []
    for row in range(len(text)):
        tokens = []
        for position in range(network.max_text_len):
            state = states[row, position] if states is not None and position < states.shape[1] else torch.zeros(W)
            if drop[row] or not state.any():
                tokens.append(weights["null_tokens"][position])
            else:
                tokens.append(linear("project_tokens", state) + weights["token_positions"][position])
        tokens.append(weights["null_text"] if drop[row] else linear("project_text", text[row]))
        hidden = linear("embed_time.0", sinusoid(timesteps[row : row + 1], width)[0])
        tokens.append(linear("embed_time.2", hidden * torch.sigmoid(hidden)))
        tokens.append(linear("project_image", noisy[row]))
        tokens.append(weights["query"])
        rows.append(torch.stack(tokens))
    stream = torch.stack(rows)  # (B, P + 3, C)
    length = stream.shape[1]
    future = torch.ones(length, length).triu(1).bool()
    for index, block in enumerate(network.blocks):
        name, heads = f"blocks.{index}", block.heads  # type: ignore[union-attr]
        head_width = width // heads  # type: ignore[operator]
        mixed = linear(f"{name}.to_qkv", norm(f"{name}.attention_norm", stream))
        query, key, value = mixed.split(width, dim=-1)
        attended = []
        for head in range(heads):  # type: ignore[arg-type]
            part = slice(head * head_width, (head + 1) * head_width)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(head_width)
            attended.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value[..., part])
        stream = stream + linear(f"{name}.to_stream", torch.cat(attended, dim=-1))
        hidden = linear(f"{name}.feed_forward.1", norm(f"{name}.feed_forward.0", stream))
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        stream = stream + linear(f"{name}.feed_forward.3", gelu)
    return linear("to_embed", norm("final_norm", stream[:, -1]))


@pytest.mark.parametrize("max_text_len", [0, T])
@pytest.mark.parametrize("depth", [1, 3])
def test_forward_is_the_single_pass_reference(make_network: MakeNetwork, max_text_len: int, depth: int) -> None:
    network, given = make_network(max_text_len, depth), inputs()
    drop = torch.tensor([False, False, False, True, True])
    states = given["states"] if max_text_len else None
    found = network(given["noisy"], given["timesteps"], text_embed=given["text"], token_states=states, drop_text=drop)
    expected = reference(network, given["noisy"], given["timesteps"], given["text"], states, drop)
    assert found.shape == (B, D)
    assert (expected.std(dim=0) > 0.01).all()  # the comparison below means something
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("max_text_len", [0, T])
def test_suffix_of_prefix_is_forward(make_network: MakeNetwork, max_text_len: int) -> None:
    network, given = make_network(max_text_len), inputs()
    states = given["states"] if max_text_len else None
    cache = network.prefix(given["text"], states)
    assert [key.shape for key, _ in cache.layers] == [(B, 2, max_text_len + 1, 8)] * 2
    for timestep in (0, 99):
        timesteps = torch.full((B,), timestep)
        whole = network(given["noisy"], timesteps, text_embed=given["text"], token_states=states)
        torch.testing.assert_close(network.suffix(cache, given["noisy"], timesteps), whole, rtol=0, atol=0)


def test_the_cache_is_not_changed_by_its_use(make_network: MakeNetwork) -> None:
    """Text comes first under a causal mask: neither noisy image nor timestep reaches it."""
    network, given = make_network(T), inputs()
    cache = network.prefix(given["text"], given["states"])
    before = [(key.clone(), value.clone()) for key, value in cache.layers]
    first = network.suffix(cache, given["noisy"], given["timesteps"])
    network.suffix(cache, given["noisy"] * 100, given["timesteps"].flip(0))
    for (key, value), (old_key, old_value) in zip(cache.layers, before, strict=True):
        assert torch.equal(key, old_key)
        assert torch.equal(value, old_value)
    assert torch.equal(network.suffix(cache, given["noisy"], given["timesteps"]), first)


def test_earlier_text_tokens_do_not_see_later_ones(make_network: MakeNetwork) -> None:
    network, given = make_network(T), inputs(lengths=(4, 4, 4, 4, 4))
    changed = given["states"].clone()
    changed[:, 2] += 1
    old, new = network.prefix(given["text"], given["states"]), network.prefix(given["text"], changed)
    for (key, value), (new_key, new_value) in zip(old.layers, new.layers, strict=True):
        for a, b in ((key, new_key), (value, new_value)):
            assert torch.equal(a[:, :, :2], b[:, :, :2])
            assert (a[:, :, 2] != b[:, :, 2]).any()
    # and from the second block on, what comes after sees the change
    assert (old.layers[1][0][:, :, 3:] != new.layers[1][0][:, :, 3:]).flatten(2).any(dim=2).all()


@pytest.mark.parametrize("what", ["noisy", "timesteps", "text", "states"])
def test_the_prediction_depends_on_every_input(make_network: MakeNetwork, what: str) -> None:
    network, given = make_network(T), inputs(lengths=(4, 4, 4, 4, 4))

    def run(values: dict[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = network(
            values["noisy"], values["timesteps"], text_embed=values["text"], token_states=values["states"]
        )
        return result

    other = {**given, what: given[what].flip(0)}
    moved = (run(given) - run(other)).abs().amax(dim=1)
    rows = [row for row in range(B) if row != B // 2]  # the middle row is its own mirror image
    assert (moved[rows] > 1e-3).all()
    assert moved[B // 2] < 1e-12


def test_rows_do_not_see_each_other(make_network: MakeNetwork) -> None:
    network, given = make_network(T), inputs()
    whole = network(given["noisy"], given["timesteps"], text_embed=given["text"], token_states=given["states"])
    for row in range(B):
        only = slice(row, row + 1)
        alone = network(
            given["noisy"][only],
            given["timesteps"][only],
            text_embed=given["text"][only],
            token_states=given["states"][only],
        )
        torch.testing.assert_close(alone, whole[only], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_text_len", [0, T])
def test_repeat_equals_repeated_inputs(make_network: MakeNetwork, max_text_len: int) -> None:
    network, given = make_network(max_text_len), inputs()
    states = given["states"] if max_text_len else None
    generator = torch.Generator().manual_seed(9)
    noisy = torch.randn(3 * B, D, generator=generator, dtype=torch.float64)
    timesteps = torch.arange(3 * B)
    found = network.suffix(network.prefix(given["text"], states).repeat(3), noisy, timesteps)
    expected = network(
        noisy,
        timesteps,
        text_embed=given["text"].repeat_interleave(3, 0),
        token_states=None if states is None else states.repeat_interleave(3, 0),
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_repeat_once_copies_nothing(make_network: MakeNetwork) -> None:
    cache: PrefixCache = make_network().prefix(inputs()["text"])
    assert cache.repeat(1) is cache


@pytest.mark.parametrize("max_text_len", [0, T])
def test_dropped_text_is_the_same_for_all_texts(make_network: MakeNetwork, max_text_len: int) -> None:
    network, given = make_network(max_text_len), inputs()
    states = given["states"] if max_text_len else None
    drop = torch.tensor([True, True, True, True, False])
    cache = network.prefix(given["text"], states, drop)
    for key, value in cache.layers:
        for tensor in (key, value):
            for row in range(1, 4):
                torch.testing.assert_close(tensor[row], tensor[0], rtol=1e-12, atol=1e-12)
            assert (tensor[4] - tensor[0]).abs().max() > 1e-3
    kept = network.prefix(given["text"], states)
    torch.testing.assert_close(cache.layers[-1][0][4], kept.layers[-1][0][4], rtol=1e-12, atol=1e-12)


def test_the_noisy_image_still_counts_where_text_is_dropped(make_network: MakeNetwork) -> None:
    network, given = make_network(), inputs()
    drop = torch.ones(B, dtype=torch.bool)
    timesteps = torch.zeros(B, dtype=torch.int64)
    output = network(given["noisy"], timesteps, text_embed=given["text"], drop_text=drop)
    assert (output[1:] - output[0]).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("length", [0, 1, 3])
def test_rows_of_zeros_equal_a_shorter_input(make_network: MakeNetwork, length: int) -> None:
    network, given = make_network(T), inputs(lengths=(length, 0, 0, 1 if length else 0, length))
    long, short = (
        network.prefix(given["text"], given["states"]),
        network.prefix(given["text"], given["states"][:, :length]),
    )
    for (key, value), (short_key, short_value) in zip(long.layers, short.layers, strict=True):
        assert torch.equal(key, short_key)
        assert torch.equal(value, short_value)


def test_token_states_are_cut_at_max_text_len(make_network: MakeNetwork) -> None:
    network, given = make_network(T), inputs(lengths=(9, 7, 5, 4, 9), length=9)
    long, cut = network.prefix(given["text"], given["states"]), network.prefix(given["text"], given["states"][:, :T])
    assert long.layers[0][0].shape[2] == T + 1
    for (key, value), (cut_key, cut_value) in zip(long.layers, cut.layers, strict=True):
        assert torch.equal(key, cut_key)
        assert torch.equal(value, cut_value)


def test_gradient_reaches_every_parameter(make_network: MakeNetwork) -> None:
    network, given = make_network(T), inputs()
    drop = torch.tensor([False, False, False, False, True])
    network.train()
    output = network(
        given["noisy"], given["timesteps"], text_embed=given["text"], token_states=given["states"], drop_text=drop
    )
    F.mse_loss(output, torch.ones_like(output)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # keys of the attention have no bias, and no weight here is without effect
        assert parameter.grad.abs().max() > 1e-9, name


def test_token_states_without_a_width_are_refused() -> None:
    with pytest.raises(ValueError, match="max_text_len=3 needs token states"):
        PriorNetwork(embed_dim=8, token_width=None, width=16, depth=1, heads=2, ff_mult=2, dropout=0.0, max_text_len=3)


def test_missing_token_states_are_named(make_network: MakeNetwork) -> None:
    with pytest.raises(ValueError, match="give token_states"):
        make_network(T).prefix(inputs()["text"])


def test_dropout_acts_in_training_only(make_network: MakeNetwork) -> None:
    given = inputs()
    network = PriorNetwork(
        embed_dim=D, token_width=None, width=16, depth=2, heads=2, ff_mult=2, dropout=0.5, max_text_len=0
    ).double()

    def run() -> torch.Tensor:
        result: torch.Tensor = network(given["noisy"], given["timesteps"], text_embed=given["text"])
        return result

    assert not torch.equal(run(), run())
    network.eval()
    assert torch.equal(run(), run())
