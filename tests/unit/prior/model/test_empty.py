"""Empty inputs of a prior: as tensors of its file, and in its network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from priorkit.pipeline.contract.empty_inputs import EmptyInputs
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.model.empty import empty_tensors, set_empty_text, take_empty_tensors
from priorkit.prior.model.folder import save_prior

from ..conftest import MakePrior
from ..raw_priors import W, captions, draw, make_empty, make_network, make_raw_prior


def test_tensors_go_to_a_file_and_back() -> None:
    empty = make_empty()
    tensors = {"network.weight": torch.ones(1), **empty_tensors(empty)}
    assert sorted(tensors) == ["empty.image_embed", "empty.text_embed", "empty.token_states", "network.weight"]
    again = take_empty_tensors(tensors, "x")
    assert again is not None
    for name, value in empty.tensors().items():
        assert np.array_equal(getattr(again, name), value)
    assert list(tensors) == ["network.weight"]
    assert take_empty_tensors(tensors, "x") is None
    assert empty_tensors(None) == {}


def test_a_damaged_file_is_named() -> None:
    tensors = empty_tensors(make_empty())
    del tensors["empty.text_embed"]
    with pytest.raises(InputError, match=r"model\.safetensors: text_embed has nothing instead of 1 dimensions"):
        take_empty_tensors(tensors, "model.safetensors")


def test_the_network_gets_the_empty_text_if_its_states_are_known() -> None:
    empty, network = make_empty(), make_network()
    set_empty_text(network, None)
    set_empty_text(network, EmptyInputs(empty.image_embed, empty.text_embed, None))
    assert network.lacks_empty_text
    set_empty_text(network, empty)
    assert not network.lacks_empty_text
    assert torch.equal(network.empty_text_embed, torch.from_numpy(empty.text_embed))
    with pytest.raises(ValueError, match="the encoding of the empty text has sizes"):
        set_empty_text(make_network(), make_empty(width=W + 1))


def test_a_network_that_learns_its_dropped_text_takes_none(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    before = {name: value.clone() for name, value in prior.network.state_dict().items()}
    set_empty_text(prior.network, make_empty(3, 5, 2))  # of any size
    assert all(torch.equal(value, before[name]) for name, value in prior.network.state_dict().items())


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_keeps_them(known: bool, tmp_path: object) -> None:
    prior = make_raw_prior(empty=make_empty() if known else None)
    save_prior(Store(str(tmp_path)).create, prior.config, prior.network, prior.normaliser, prior.empty)
    again = load_prior(str(tmp_path))
    assert (again.empty is not None) == known
    given = {"text_embed": draw(2, 10, scale=3), "token_states": captions([2, 5]), "steps": 3, "sampler": "unclip"}
    assert torch.equal(again.sample(**given), prior.sample(**given))  # type: ignore[arg-type]
    if known:
        guided = [each.sample(**given, guidance_scale=2.0) for each in (prior, again)]  # type: ignore[arg-type]
        assert torch.equal(*guided)
        assert torch.equal(again.zero_image_embed(), prior.zero_image_embed())
