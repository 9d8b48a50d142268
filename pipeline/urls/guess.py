"""Functions that suggest columns of a URL list instead of those that it lacks."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence

import pyarrow as pa

from ..contract.arrow.types import is_bytes, is_text
from ..errors import InputError
from ..yaml_text import PlainScalar, read_yaml
from .nested import field_names, field_type, is_list
from .settings import UrlListSettings

_SYNONYMS = {
    "url_column": (
        "url", "image_url", "img_url", "image_urls", "img_urls", "imageurl", "imgurl", "urls", "url_link", "image_link",
        "photo_image_url", "original_url", "originalurl", "coco_url", "image", "img", "src", "link", "uri",
    ),
    "caption_column": (
        "caption", "text", "alt", "alt_text", "alttext", "captions", "texts", "title", "top_caption", "description",
        "caption_alt_text_description", "sentence", "sentences", "prompt",
    ),
    "hash_column": ("sha256", "md5", "hash", "sha1", "sha512"),
    "bbox_column": ("face_bboxes", "bboxes", "bbox", "boxes", "faces"),
}  # fmt: skip
"""Common column names for each setting, most common first. They are suggested if the configured column is missing."""
_SHOWN_COLUMNS = 6
"""Maximum number of columns listed in an error message."""
_SHOWN_CHARACTERS = 40
"""Maximum number of characters of a column name shown in an error message."""


def guess_columns(settings: UrlListSettings, schema: pa.Schema) -> dict[str, str]:
    """Return a column for each of the settings `url_column` and `caption_column` whose column is missing.

    The column has a common name for it, and contains text. Settings for which there is no such column are left out, and
    so are settings with another value than the default, because another column than the named one would be wrong.

    Args:
        settings: configured column names.
        schema: columns of the list.
    """
    guessed = {}
    for setting in ("url_column", "caption_column"):
        column = getattr(settings, setting)
        is_default = column == UrlListSettings.model_fields[setting].default
        if is_default and field_type(schema, column) is None and (found := _guess(setting, schema)) is not None:
            guessed[setting] = found
    return guessed


def _guess(setting: str, schema: pa.Schema) -> str | None:
    by_name: dict[str, str] = {}
    for name in field_names(schema):
        kind = field_type(schema, name)
        if setting == "caption_column" and kind is not None and is_list(kind):
            kind = kind.value_type
        if kind is not None and (is_text(kind) or is_bytes(kind)):
            by_name.setdefault(_canonical(name), name)
    # columns take precedence over fields of structs, which are recognised by the last part of their names
    by_field = {name.rpartition(".")[2]: original for name, original in reversed(by_name.items()) if "." in name}
    return next((found[name] for found in (by_name, by_field) for name in _SYNONYMS[setting] if name in found), None)


def _canonical(name: str) -> str:
    """Return a name in lower case, with underscores in place of spaces and hyphens: `image_url` for `Image URL`."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def require_column(column: str, setting: str, schema: pa.Schema, source: str, settings: UrlListSettings) -> None:
    """Check that a list has a column.

    Args:
        column: name of the column.
        setting: name of the setting that contains it, such as `url_column`.
        schema: columns of the list.
        source: location of the list, for the error message.
        settings: all configured column names.

    Raises:
        InputError: the column is missing. The message suggests a similar column, and the options that work.
    """
    if field_type(schema, column) is not None:
        return
    available = field_names(schema)
    guessed = guess_columns(settings, schema)
    nearest = guessed.get(setting) or _suggestion(column, setting, available)
    hint = f"did you mean {shortened(nearest)}? " if nearest is not None else ""
    if any(len(name) > 1 and name[0] == name[-1] == '"' for name in available):
        hint = "its header is quoted: set download.quoting=rfc4180. "
    shown = [shortened(name) for name in schema.names[:_SHOWN_COLUMNS]]
    if len(schema.names) > len(shown):
        shown.append(f"{len(schema.names) - len(shown)} more")
    advice = _advice(setting, nearest, guessed)
    raise InputError(f"{source}: no column {shortened(column)}; {hint}The list has {', '.join(shown)} ({advice})")


def _advice(setting: str, nearest: str | None, guessed: Mapping[str, str]) -> str:
    """Return the options that replace a missing column, for an error message.

    Args:
        setting: name of the setting whose column is missing.
        nearest: column that is suggested instead of it, or None.
        guessed: columns that `--guess-columns` would use, by setting.
    """
    if nearest is None or setting == "keep_columns":
        none = ", or null for none; a prior needs captions" if setting == "caption_column" else ""
        return f"`--set download.{setting}=NAME`{none}"
    columns = {**guessed, setting: nearest}
    options = " ".join(
        f"--set {shlex.quote(f'download.{name}={_yaml_text(column)}')}" for name, column in columns.items()
    )
    return f"`{options}`" + (", or `--guess-columns`" if columns == guessed else "")


def _yaml_text(name: str) -> str:
    """Return a column name as YAML, as a value of `--set`. It is quoted if YAML would read it as something else."""
    try:
        value = read_yaml(name)
    except InputError:
        value = None
    is_plain = isinstance(value, PlainScalar) and value.text == name
    return name if is_plain else json.dumps(name, ensure_ascii=False)


def shortened(name: str) -> str:
    """Return the `repr` of a column name, cut to `_SHOWN_CHARACTERS` characters."""
    return repr(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")


def _suggestion(column: str, setting: str, available: Sequence[str]) -> str | None:
    """Return the column that the user probably meant instead of a missing one, or None if no column is similar.

    The returned name differs from `column` only in case or separators, is a common name for the setting, or has a
    similar spelling.

    Args:
        column: configured name, which is missing.
        setting: name of the setting that contains it, such as `url_column`.
        available: names of the columns in the URL list.
    """
    by_case: dict[str, str] = {}
    for name in available:
        by_case.setdefault(_canonical(name), name)
    common = _SYNONYMS.get(setting, ())
    wanted = _canonical(column)
    candidates = [wanted, *common]
    similar = difflib.get_close_matches(wanted, by_case, n=1, cutoff=0.8)
    if wanted not in common:
        candidates[1:1] = similar
    return next((by_case[name] for name in [*candidates, *similar] if name in by_case), None)
