"""The YAML reader: values of scalars, merges, limits and short errors."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.yaml_text import PlainScalar, read_yaml


def values_of(read: Any) -> Any:
    """Return a document with the value of each plain scalar."""
    if isinstance(read, dict):
        return {name: values_of(value) for name, value in read.items()}
    if isinstance(read, list):
        return [values_of(value) for value in read]
    return read.value if isinstance(read, PlainScalar) else read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "---\na: 1\n...\n",
        "a: {b: [1, -2, +3, 0x1F], c: .5, d: 1.0e-3, e: -.inf}",
        "a: true\nb: No\nc: ~\nd: null\ne:\nf: OFF",
        "a: 'no'\nb: \"1\"\nc: |\n  1\n  2\nd: >-\n  folded\n  text",
        "base: &b {x: 1, y: 2}\nover: {<<: *b, y: 3, z: 4}\nboth: {<<: [{x: 5, w: 6}, *b]}",
        "compute:\n  <<: {workers: 1}\n",
        "a: [&x 1, *x]\nb: plain text",
    ],
)
def test_common_yaml_is_read_like_pyyaml(text: str) -> None:
    assert values_of(read_yaml(text)) == yaml.safe_load(text)


def test_a_merge_of_a_merge_has_all_keys() -> None:
    """PyYAML gives 1 here: it ignores that the merged mapping's own keys have priority."""
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}"
    assert values_of(read_yaml(text))["c"] == {"x": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e5", 1e5), ("1E-4", 1e-4), ("1_000", 1000), ("1_0.5", 10.5), ("010", 10), ("0o10", 8), ("0b11", 3),
        ("2024-01-01", "2024-01-01"), ("1:30", "1:30"), ("nO", "nO"), ("0x", "0x"), ("=", "="),
        ("9" * 5000, "9" * 5000),
        ("!!str 5", 5), ("1.2.3", "1.2.3"), ("e5", "e5"), ("1e", "1e"), ("+", "+"), (".", "."),
    ],
)  # fmt: skip
def test_plain_scalars_are_numbers_words_or_text(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}")["a"]
    assert (read.value, type(read.value)) == (value, type(value))
    assert read.text == text.removeprefix("!!str ")


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_ignored(prefix: bytes) -> None:
    assert read_yaml(prefix + "a: 猫".encode()) == {"a": PlainScalar("猫", "猫")}
    assert read_yaml("\ufeffa: 猫".encode("utf-16")) == read_yaml("a: 猫")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' stands twice"),
        ("a: &x {k: 1}\nb: {<<: *x, c: 1, c: 2}", "key 'c' stands twice"),
        ("folders:\n  prior: {{ prior_dir }}", "line 2, column 11: unhashable key; quote text that holds {{ }}"),
        ("{{ a }}: 1", "unhashable key"),
        ("? [a, b]\n: 1", "unhashable key; a key is text, this is a list"),
        ("a: &x [*x]", "line 1, column 4: an alias stands inside what it stands for"),
        ("a: &x {b: *x}", "an alias stands inside"),
        ("a: &x {<<: *x}", "an alias stands inside"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document"),
        ("a:\n\tb: 1", "line 2, column 1"),
        ("a: *nowhere", "found undefined alias"),
        ("<<: 3", "<< merges a mapping or a list of mappings"),
        ("a: !env X", "the tag !env is not supported"),
        ("!!python/object/apply:os.system ['x']", "the tag !!python/object/apply:os.system is not supported"),
        ("a: !!binary aGk=", "the tag !!binary is not supported"),
        ("a: \x00", "character 0 at position 3"),
        (b"a: \xff", "not UTF-8: byte 0xff at 3"),
        ("[" * 60 + "]" * 60, "nested more than 50 levels deep"),
        ("[" * 3000, "nested too deeply"),
        ("{a: " * 3000 + "}" * 3000, "nested too deeply"),
        ("- " * 3000, "nested too deeply"),
        ("a: [1", "line 1"),
        ("%YAML 9.9\n---\na", "line 1"),
    ],
)  # fmt: skip
def test_unsupported_yaml_is_a_short_error(text: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("not YAML")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_aliases_do_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(InputError, match="more than 100,000 values, aliases expanded"):
        read_yaml("\n".join(lines))


@given(st.one_of(st.text(), st.binary(), st.text(alphabet="a:{}[]-&*<!'\"\n 1_e.|>?,%#~")))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        read_yaml(text)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
