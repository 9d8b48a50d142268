"""Conversion of values to settings, and messages about wrong values."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from priorkit.pipeline.config import PipelineSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import (
    Location,
    Settings,
    expand_location,
    literal_location,
    parse_settings,
    with_overrides,
)
from priorkit.pipeline.yaml_text import read_yaml
from priorkit.recipes.recipe import Recipe, load_recipe


class Inner(Settings):
    size: int = 1
    choice: Literal["no", "yes", "1"] | None = "yes"


class Tree(Settings):
    """A class with every kind of field in recipes."""

    text: str = "text"
    maybe: str | None = "maybe"
    count: int = 1
    share: float = 1.0
    limit: float | None = None
    flag: bool = False
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    names: tuple[Literal["a", "off"], ...] = ()
    table: dict[str, int] = Field(default_factory=dict)
    inner: Inner = Inner()
    optional: Inner | None = Inner(size=9)
    place: Location = "here"


@pytest.mark.parametrize(
    ("yaml", "name", "value"),
    [
        ("text: no", "text", "no"), ("text: 1.10", "text", "1.10"), ("text: 0123", "text", "0123"),
        ("text: 2024-01-01", "text", "2024-01-01"), ("text: 'null'", "text", "null"), ("text: True", "text", "True"),
        ("maybe: null", "maybe", None), ("maybe: off", "maybe", "off"), ("maybe: 1_0", "maybe", "1_0"),
        ("count: 1e5", "count", 100_000), ("count: 1_000", "count", 1000), ("count: '7'", "count", 7),
        ("share: 1e-4", "share", 1e-4), ("share: 2", "share", 2.0), ("limit: 5", "limit", 5.0),
        ("limit: ~", "limit", None), ("flag: on", "flag", True), ("flag: NO", "flag", False), ("flag: 1", "flag", True),
        ("sizes: [1, 1e2]", "sizes", (1, 100)), ("names: [off, a]", "names", ("off", "a")),
        ("table: {a: 1e1}", "table", {"a": 10}), ("inner: {choice: no}", "inner", Inner(choice="no")),
        ("inner: {choice: 1}", "inner", Inner(choice="1")), ("inner: {choice: }", "inner", Inner(choice=None)),
        ("inner:", "inner", Inner()), ("optional:", "optional", None), ("inner:\n  # size: 3\n", "inner", Inner()),
    ],
)  # fmt: skip
def test_the_type_of_a_field_decides_the_value_of_a_word(yaml: str, name: str, value: Any) -> None:
    read = getattr(parse_settings(Tree, read_yaml(yaml), "x"), name)
    assert (read, type(read)) == (value, type(value))
    key, _, text = yaml.partition(":")
    given = with_overrides({}, [f"{key}={text}"])
    assert getattr(parse_settings(Tree, given, "x"), name) == value


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("count: yes", "count: Input should be a valid integer, unable to parse string as an integer (got 'yes')"),
        ("count: 1:30", "(got '1:30')"),
        ("count: 1.5", "got a number with a fractional part (got 1.5)"),
        ("text:", "text: Input should be a valid string (got None)"),
        ("flag: 3", "flag: Input should be a valid boolean"),
        ("inner: {choice: maybe}", "inner.choice: Input should be 'no', 'yes' or '1' (got 'maybe')"),
        ("text: [a]", "text: Input should be a valid string (got ['a'])"),
        ("count: [" + "7, " * 500 + "]", "count: Input should be a valid integer (got a list of 500)"),
        ("count: " + "x" * 500, "(got 'xxxxx"),
        ("x" * 500 + ": 1", "xxx...: unknown key"),
        ("place: $NO_SUCH_NAME/x", "place: the environment has no variable $NO_SUCH_NAME; set it"),
        ("place: a/${NO-SUCH}/x", "the environment has no variable ${NO-SUCH}"),
        ("{count: a, share: b, flag: c, limit: d, sizes: e}", "; and 2 more"),
    ],
)
def test_a_wrong_value_is_one_short_message(yaml: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(Tree, read_yaml(yaml), "x")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_environment_variables_are_replaced_in_locations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    for text, value in [
        ("${SCRATCH}/prior", "/scratch/me/prior"), ("$SCRATCH", "/scratch/me"), ("a$$b", "a$b"), ("a$ b$", "a$ b$"),
    ]:  # fmt: skip
        assert parse_settings(Tree, {"place": text}, "x").place == value
        assert load_recipe(None, [f"folders.prior={text}"]).folders.prior == value


def test_the_home_directory_is_replaced_in_locations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/$me")
    for text, value in [
        ("~", "/users/$me"), ("~/a", "/users/$me/a"), ("local-dir:~/clip", "local-dir:/users/$me/clip"),
        ("a/~", "a/~"), ("~you/a", "~you/a"), ("s3://b/~/a", "s3://b/~/a"),
    ]:  # fmt: skip
        assert parse_settings(Tree, {"place": text}, "x").place == value


def test_an_escaped_location_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("/a/$b", "$$", "${x", "plain"):
        assert expand_location(literal_location(text)) == text


def test_values_that_contain_themselves_are_refused() -> None:
    values: dict[str, Any] = {"inner": {}}
    values["inner"]["inner"] = values
    with pytest.raises(SettingsError, match="x: "):
        parse_settings(Tree, values, "x")


def test_none_for_a_section_is_refused_in_python() -> None:
    """Only YAML has sections whose keys are commented out; null in a damaged config.json is an error."""
    with pytest.raises(SettingsError, match="inner: expected a section, that is keys with values"):
        parse_settings(Tree, {"inner": None}, "x")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.learning_rate", "did you mean 'train.optimiser.learning_rate'?"),
        ("train.lr", "did you mean 'train.optimiser.learning_rate'?"),
        ("train.optimiser.lr", "did you mean 'learning_rate'?"),
        ("batch_size", "did you mean 'embed.batch_size' or 'train.batch_size'?"),
        ("train.bs", "did you mean 'batch_size'?"),
        ("train.width", "did you mean 'train.network.width'?"),
        ("train.optimizer.lr", "train.optimizer: unknown key; did you mean 'optimiser'?"),
        ("train.epochs", "training is counted in optimiser steps: 'steps'"),
        ("train.num_workers", "did you mean 'compute.workers' or 'read.read_threads'?"),
        ("embed.model", "did you mean 'embed.clip.model'?"),
        ("evaluate.steps", "did you mean 'evaluate.sample.steps' or 'evaluate.sweep.steps'?"),
        ("Train.steps", "Train: unknown key; did you mean 'train'?"),
        ("seed", "did you mean 'evaluate.seed' or 'train.seed'?"),
        ("embeddings", "did you mean 'folders.embeddings'?"),
        ("train.qqzz", "train.qqzz: unknown key; known keys: accumulate, "),
        ("foo", "known keys: compute, download, embed, evaluate, folders, read, train, urls"),
    ],
)
def test_the_nearest_key_is_named_in_any_section(key: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_recipe(None, [f"{key}=1"])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 250
    if "did you mean" not in said:
        assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "key", "said"),
    [
        ("prior-transformer", "num_layer", "unknown key; did you mean 'num_layers'?"),
        (
            "prior-transformer", "heads",
            "a key of family causal-transformer, not of prior-transformer; did you mean 'num_attention_heads'?",
        ),
        ("prior-transformer", "threads", "unknown key; did you mean 'train.threads'?"),
        ("prior-transformer", "width", "not of prior-transformer; known keys: attention_head_dim, "),
        (
            "causal-transformer", "num_layers",
            "a key of family prior-transformer, not of causal-transformer; did you mean 'depth'?",
        ),
        (None, "num_layers", "a key of family prior-transformer, not of causal-transformer; did you mean 'depth'?"),
        ("prior-transfomer", "heads", "network.family: unknown family; known are causal-transformer, prior-transfor"),
    ],
)  # fmt: skip
def test_only_keys_of_the_selected_class_are_suggested(family: str | None, key: str, said: str) -> None:
    overrides = [f"train.network.{key}=1", "train.diffusion.normaliser=clip_stats"]
    with pytest.raises(SettingsError) as caught:
        load_recipe(None, overrides if family is None else [f"train.network.family={family}", *overrides])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 250


def test_keys_elsewhere_are_those_of_the_selected_class() -> None:
    with pytest.raises(SettingsError, match=r"train\.depth: unknown key; did you mean 'train\.network\.num_layers'\?"):
        load_recipe(
            None, ["train.depth=1", "train.network.family=prior-transformer", "train.diffusion.normaliser=clip_stats"]
        )


def test_only_sections_that_are_read_are_suggested() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(Recipe, with_overrides({}, ["batch_size=1"]), "x", ("embed", "compute"))
    assert "did you mean 'embed.batch_size'?" in str(caught.value)


@pytest.mark.parametrize("override", ["train={steps: 5}", "train=5", "urls=x", "train.steps=5"])
def test_an_override_that_has_no_effect_is_refused(override: str) -> None:
    sections = ("embed", "compute")
    with pytest.raises(SettingsError, match=r"this command reads embed, compute only"):
        parse_settings(PipelineSettings, with_overrides({}, [override], sections), "x", sections)


@pytest.mark.parametrize("override", ["a..b=1", ".a=1", "a.=1", "=1", ". =1"])
def test_an_override_without_a_name_is_refused(override: str) -> None:
    with pytest.raises(SettingsError, match="expected KEY=VALUE"):
        with_overrides({}, [override])


class Later(Settings):
    """A class with fields that were added after folders had been written."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"size", "inner", "names"})

    text: str = "text"
    size: int = 1
    inner: Inner = Inner()
    names: list[str] = Field(default_factory=list)


def test_later_fields_are_part_of_the_identity_only_if_they_are_changed() -> None:
    assert Later(size=1).identity() == {"text": "text"}
    changed = Later(size=2, inner=Inner(size=3), names=["a"])
    assert changed.identity() == {"text": "text", "size": 2, "inner": {"size": 3, "choice": "yes"}, "names": ["a"]}
