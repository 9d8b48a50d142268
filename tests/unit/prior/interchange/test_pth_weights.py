"""Selection of weights from the dictionary of a `.pth`, and the stored version."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.interchange.pth_weights import choose_weights, stored_version


def weights(value: float, prefix: str = "net.") -> dict[str, torch.Tensor]:
    names = ("learned_query", "causal_transformer.norm.g")
    return {f"{prefix}{name}": torch.full((2,), value) for name in names}


def value_of(chosen: dict[str, torch.Tensor]) -> float:
    assert list(chosen) == list(weights(0))
    return float(chosen["net.learned_query"][0])


TRAINER: dict[str, Any] = {"model": weights(1.0), "ema_model": weights(2.0), "version": "1.15.6"}


def test_each_name_gives_its_own_weights() -> None:
    assert value_of(choose_weights(TRAINER, "online", "a.pth")) == 1
    assert value_of(choose_weights(TRAINER, "ema", "a.pth")) == 2


def test_older_trainers_keep_the_averaged_weights_inside_the_average() -> None:
    inside = {**weights(3.0, "ema_model.net."), **weights(4.0, "online_model.net."), "step": torch.tensor(1)}
    content = {"model": weights(1.0), "ema": inside}
    assert value_of(choose_weights(content, "ema", "a.pth")) == 3
    assert value_of(choose_weights({**content, "ema_model": weights(2.0)}, "ema", "a.pth")) == 2


@pytest.mark.parametrize("name", ["ema", "online"])
@pytest.mark.parametrize(
    "content",
    [
        weights(5.0), collections.OrderedDict(weights(5.0)), {"state_dict": weights(5.0), "epoch": 1},
        weights(5.0, "module.net."), weights(5.0, ""), {"state_dict": weights(5.0, "module.")},
    ],
    ids=["plain", "ordered", "state_dict", "wrapped", "network alone", "wrapped network alone"],
)  # fmt: skip
def test_a_bare_state_dict_is_the_weights_of_either_name(content: dict[str, Any], name: Any) -> None:
    assert value_of(choose_weights(content, name, "a.pth")) == 5


def test_weights_that_are_not_there_are_named_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"a\.pth: holds no ema weights \(`ema_model`\) but model; try weights=online"):
        choose_weights({"model": weights(1.0)}, "ema", "a.pth")
    with pytest.raises(InputError, match=r"holds no online weights \(`model`\) but ema_model; try weights=ema"):
        choose_weights({"ema_model": weights(1.0)}, "online", "a.pth")
    with pytest.raises(InputError, match=r"but other$"):
        choose_weights({"other": 1}, "ema", "a.pth")
    with pytest.raises(SettingsError, match="weights='best': known are ema and online"):
        choose_weights(TRAINER, "best", "a.pth")


def test_the_message_for_another_model_says_what_to_save() -> None:
    for content in ({"state_dict": {"unet.a": torch.ones(1)}}, {"unet.a": torch.ones(1)}):
        with pytest.raises(InputError, match=r"save the prior's state_dict alone, with names that begin with net\."):
            choose_weights(content, "ema", "a.pth")


@pytest.mark.parametrize(
    "value",
    [torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta"), 3, None],
    ids=["sparse", "complex", "meta", "number", "nothing"],
)
def test_values_that_are_no_dense_tensors_are_no_weights(value: Any) -> None:
    with pytest.raises(InputError, match="holds no ema weights"):
        choose_weights({"ema_model": {**weights(1.0), "net.a": value}}, "ema", "a.pth")


def test_the_version_is_that_of_the_trainer() -> None:
    assert stored_version(TRAINER, "a.pth") == "1.15.6"
    for content in ({"model": weights(1.0)}, weights(1.0)):
        with pytest.raises(SettingsError, match=r"a\.pth: stores no version; give function_version="):
            stored_version(content, "a.pth")
