"""JSON parser in which each kind of invalid text is a ValueError.

`json.loads` raises RecursionError for values that are nested too deeply, which callers easily forget to catch.
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes | bytearray) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: the text is not JSON, or its values are nested more deeply than Python's recursion limit. For a
            syntax error, this is a `json.JSONDecodeError`, which gives the position.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None
