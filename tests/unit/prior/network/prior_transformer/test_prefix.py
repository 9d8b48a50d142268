"""Attention masks of texts and of the tokens that follow them, and encoded texts that are chosen and joined."""

from __future__ import annotations

import math

import pytest
import torch

from priorkit.prior.network.interface import DrawnTexts
from priorkit.prior.network.prior_transformer.prefix import (
    KeysValues,
    TextPrefix,
    padding_mask,
    prefix_mask,
    repeat_texts,
    suffix_mask,
)

from ...raw_priors import draw

GIVEN = torch.tensor([[True, True, True], [True, False, True]])
"""Positions of two texts: the second is shorter, and its text embedding is last."""


def make_prefix(lengths: list[int], seed: int = 0) -> TextPrefix:
    longest = max(lengths)
    given = torch.arange(longest) < torch.tensor(lengths)[:, None]
    shape = (len(lengths), 2, longest, 4)
    layers = [KeysValues(draw(*shape, seed=seed + n), draw(*shape, seed=seed + n + 9)) for n in range(3)]
    return TextPrefix(layers, padding_mask(given, torch.float32))


def test_padding_is_minus_infinity() -> None:
    mask = padding_mask(GIVEN, torch.float64)
    assert mask.dtype == torch.float64
    assert mask.tolist() == [[0, 0, 0], [0, -math.inf, 0]]


def test_the_mask_of_texts_is_causal_without_padding() -> None:
    mask = prefix_mask(padding_mask(GIVEN, torch.float32))
    assert mask.shape == (2, 1, 3, 3)
    seen = mask[:, 0] == 0
    assert seen[0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    # padding sees itself, which nothing else sees: a row of -inf everywhere would give NaN
    assert seen[1].tolist() == [[True, False, False], [True, True, False], [True, False, True]]


@pytest.mark.parametrize(("shared", "draws", "tokens"), [(1, 1, 2), (1, 3, 2), (0, 2, 3), (0, 1, 2)])
def test_a_draw_sees_its_text_and_what_is_shared_but_no_other_draw(shared: int, draws: int, tokens: int) -> None:
    mask = suffix_mask(padding_mask(GIVEN, torch.float32), shared, draws, tokens)
    length = shared + draws * tokens
    assert mask.shape == (2, 1, length, 3 + length)
    for row in range(2):
        for query in range(length):
            for key in range(3 + length):
                if key < 3:
                    expected = bool(GIVEN[row, key])
                else:
                    later = key - 3
                    same = later < shared or (later - shared) // tokens == (query - shared) // tokens
                    expected = later <= query and same and not (query < shared <= later)
                assert (mask[row, 0, query, key] == 0) == expected


def test_rows_of_texts_are_repeated_for_their_draws() -> None:
    texts = draw(3, 2, seed=1)
    draws = DrawnTexts(rows=4, draws=2, texts=2)
    assert torch.equal(repeat_texts(texts, draws), texts[draws.indices(torch.device("cpu"))])
    every = DrawnTexts(rows=3, draws=2, texts=3)
    assert torch.equal(repeat_texts(texts, every), texts.repeat_interleave(2, 0))


def test_texts_are_taken_and_repeated() -> None:
    prefix = make_prefix([2, 4, 1])
    taken = prefix.take(torch.tensor([2, 0, 2]))
    assert taken.texts == 3
    assert torch.equal(taken.mask, prefix.mask[[2, 0, 2]])
    for mine, theirs in zip(taken.layers, prefix.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys[[2, 0, 2]])
        assert torch.equal(mine.values, theirs.values[[2, 0, 2]])
    one = prefix.take(torch.tensor([1])).expand(3)
    assert one.texts == 3
    assert torch.equal(one.layers[0].keys, prefix.layers[0].keys[[1, 1, 1]])


@pytest.mark.parametrize(("first", "second"), [([3, 1], [5]), ([5], [1, 2]), ([2], [2])])
def test_prefixes_of_different_lengths_are_padded(first: list[int], second: list[int]) -> None:
    one, two = make_prefix(first), make_prefix(second, seed=50)
    both = one.stacked_with(two)
    longest = max(first + second)
    assert both.mask.shape == (len(first + second), longest)
    assert (both.mask == 0).sum(dim=1).tolist() == first + second
    for layer, a, b in zip(both.layers, one.layers, two.layers, strict=True):
        assert torch.equal(layer.keys[: len(first), :, : max(first)], a.keys)
        assert torch.equal(layer.values[len(first) :, :, : max(second)], b.values)


def test_the_mask_of_later_tokens_is_computed_once_for_each_number_of_draws() -> None:
    prefix = make_prefix([2, 4])
    first = prefix.suffix_mask(1, 2, 2)
    assert prefix.suffix_mask(1, 2, 2) is first
    assert prefix.suffix_mask(1, 3, 2).shape != first.shape
    assert torch.equal(first, suffix_mask(prefix.mask, 1, 2, 2))
    assert prefix.take(torch.tensor([1])).suffix_mask(1, 2, 2).shape[0] == 1
