"""Damage to bytes, text, JSON values, arrays, tables and archives, each a function of a seeded generator."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOKENS = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\r\n", b"\n\n", b'"', b'""', b"'", b", ", b"\t", b":",
    b"{", b"}", b"[", b"]", b"[" * 500, b'{"a":' * 500, b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"9" * 30,
    b"9" * 5000, b"null", b"true", b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b"../", b"/", b"%s", b"{{ x }}",
    b"<<: *a", b"&a", b"*a", b"!!", b"|", b"- ", b"? ", b"---\n", b"...", b"\x1a", b"\x1f\x8b", b"PAR1", b"\x93NUMPY",
    b"ustar", "\u2028\U0001f409".encode(), b"18446744073709551616", b"-9223372036854775809", b"2147483648",
    b"a" * 70_000,
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1.5, 1e300, float("nan"), float("inf"), "", "x", "../x",
    "a/b", "\x00", "\ud800", "9" * 400, [], [[]], {}, {"": {}}, [None] * 3, "1" * 64, "sha256", "/etc/passwd",
)  # fmt: skip


def damage_bytes(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change, cut, insert, repeat or move parts of a file, up to eight times."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice((1, 2, 4, 8, 64, 1000, len(data))))
        how = chance.randrange(9)
        if how == 0 and data:
            place = min(place, len(data) - 1)
            data = data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
        elif how == 1:
            data = data[:place]
        elif how == 2:
            data = data[:place] + data[end:]
        elif how == 3:
            data = data[:place] + chance.choice(TOKENS) + data[place:]
        elif how == 4:
            data = data[:place] + chance.choice(TOKENS) + data[end:]
        elif how == 5:
            data = data[:end] + data[place:end] * chance.choice((1, 2, 100)) + data[end:]
        elif how == 6:
            size = chance.choice((1, 2, 4, 8))
            number = (chance.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, chance.choice(("little", "big")))
            data = data[:place] + number + data[place + size :]
        elif how == 7:
            data = data[:place] + chance.randbytes(end - place) + data[end:]
        else:
            other = chance.choice(others)
            data = data[:place] + other[chance.randrange(len(other) + 1) :]
        data = data[:2_000_000]
    return data


def damage_json(chance: random.Random, text: bytes) -> bytes:
    """Replace, remove, add or rename values of a JSON text."""
    value = json.loads(text)
    for _ in range(chance.choice((1, 1, 2, 4))):
        value = _changed(chance, value)
    return json.dumps(value).encode()


def _changed(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(sorted(value))
        how = chance.randrange(8)
        changed = dict(value)
        if how == 0:
            del changed[name]
        elif how == 1:
            changed[chance.choice(("", "x", "../x", "\x00", name + "x", name.upper()))] = changed.pop(name)
        else:
            changed[name] = _changed(chance, value[name])
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], _changed(chance, value[place]), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.4:
        return value + chance.choice((-1, 1, 1000))
    return chance.choice(VALUES)


def random_array(chance: random.Random, rows: int, width: int) -> bytes:
    """An array that is almost what a folder of embeddings holds."""
    dtype = chance.choice(
        ("<f2", "<f4", "<f8", ">f4", ">f2", "<i8", "|b1", "<U3", "|S4", "<c8", "<M8[s]", "|O", "|V4", "f16", "<f2,<f4")
    )
    shape = chance.choice(
        (
            (rows, width),
            (rows,),
            (),
            (rows, width, 1),
            (rows, 0),
            (0, width),
            (rows + 1, width),
            (rows, width + 1),
            (1, rows, width),
        )
    )
    values = np.zeros(shape, "f8")
    if values.size:
        values[...] = np.random.default_rng(chance.randrange(2**32)).standard_normal(shape)
        if chance.random() < 0.3:
            values.flat[chance.randrange(values.size)] = chance.choice((np.nan, np.inf, -np.inf, 1e300, 0))
        if values.ndim == 2 and chance.random() < 0.7:
            with np.errstate(all="ignore"):
                values /= np.linalg.norm(values, axis=1, keepdims=True)
    buffer = io.BytesIO()
    with np.errstate(all="ignore"):
        try:
            typed = values.astype(dtype)
        except (TypeError, ValueError):
            typed = np.zeros(shape, dtype)
    np.save(buffer, np.asfortranarray(typed) if chance.random() < 0.2 else typed, allow_pickle=True)
    return buffer.getvalue()


def _maker(kind: pa.DataType, value: Any) -> Callable[[int], pa.Array]:
    return lambda rows: pa.array([value] * rows, kind)


COLUMNS: tuple[Callable[[int], pa.Array], ...] = (
    lambda rows: pa.array([f"http://127.0.0.1/{row}.jpg" for row in range(rows)]),
    lambda rows: pa.array([f"text {row}" if row % 3 else None for row in range(rows)]),
    lambda rows: pa.array(range(rows)),
    lambda rows: pa.array([f"text {row}" for row in range(rows)]).dictionary_encode(),
    lambda rows: pa.nulls(rows),
    lambda rows: pa.array([b"\xff\x00"] * rows),
    lambda rows: pa.array([[1, None]] * rows),
    lambda rows: pa.array([{"a": 1, "b": "x"}] * rows),
    _maker(pa.large_string(), "x"), _maker(pa.large_binary(), b"x"), _maker(pa.binary(3), b"xyz"),
    _maker(pa.bool_(), True),
    _maker(pa.float16(), np.float16(1)), _maker(pa.float64(), float("nan")), _maker(pa.uint64(), 2**64 - 1),
    _maker(pa.decimal128(30, 2), None), _maker(pa.timestamp("ns"), 2**62), _maker(pa.timestamp("s"), 2**50),
    _maker(pa.date32(), 2**30),
    _maker(pa.duration("ms"), 5), _maker(pa.time64("us"), 5), _maker(pa.map_(pa.string(), pa.int32()), [("a", 1)]),
    _maker(pa.list_(pa.string()), ["a", "b"]), _maker(pa.string(), "a\x00\ud7ff\n\"'"), _maker(pa.int8(), None),
)  # fmt: skip


def random_table(chance: random.Random, names: Sequence[str], rows: int) -> bytes:
    """A Parquet file with some of these columns, of any types."""
    chosen = [name for name in names if chance.random() < 0.8]
    chosen += [chance.choice((*names, "x", "", "a.b", "URL"))] if chance.random() < 0.4 else []
    count = chance.choice((rows, rows, rows, 0, 1, rows + 1))
    columns = [chance.choice(COLUMNS[:2] if chance.random() < 0.5 else COLUMNS)(count) for _ in chosen]
    size = chance.choice((1, 3, 100))
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=chosen), buffer, row_group_size=size)
    except pa.ArrowException:  # a type that Parquet does not store
        return random_table(chance, names, rows)
    return buffer.getvalue()


STEMS = ("000000000", "a", "a.b", ".hidden", "../up", "/abs", "d/e", "", "x" * 90, "\udcff", "é", "a b")
KINDS = (tarfile.REGTYPE,) * 8 + (
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
)  # fmt: skip


def random_tar(chance: random.Random, image: bytes) -> bytes:
    """An archive with members of odd names, kinds and sizes."""
    buffer = io.BytesIO()
    form = chance.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode=chance.choice(("w", "w", "w", "w:gz")), format=form) as tar:
        for _ in range(chance.randrange(12)):
            stem = chance.choice(
                ("000000000", "a", "a.b", ".hidden", "../up", "/abs", "d/e", "", "x" * 90, "\udcff", "é", "a b")
            )
            info = tarfile.TarInfo(stem + chance.choice((".jpg", ".txt", ".json", ".cls", "", ".", ".JPG", ".seg.png")))
            data = chance.choice((image, b"", b"caption", b'{"a": 1}', b"[", b"\xff\xfe", image[:50]))
            info.size = len(data)
            info.type = chance.choice(
                (tarfile.REGTYPE,) * 8
                + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
            )
            info.linkname = chance.choice(("", "a.jpg", "/etc/passwd", "../x")) if not info.isreg() else ""
            if form == tarfile.PAX_FORMAT and chance.random() < 0.2:
                info.pax_headers = {chance.choice(("path", "comment", "GNU.sparse.map", "GNU.sparse.size")): "1,2,3"}
            try:
                tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
            except (ValueError, UnicodeError):  # a name that the format cannot hold
                continue
    return buffer.getvalue()
