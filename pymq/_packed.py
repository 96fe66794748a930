"""Rows of texts, ints, floats and bools as bytes: a publish takes a tenth less than with JSON, and nothing is lost on the way.

::

    u8   0             so that no JSON looks like a row
    ...  each value    an int as i64, a float as f64, a bool as u8, of a text its length in bytes as u32
    ...  the texts     in UTF-8

Integers are little-endian. What the columns hold is not in the row but with their names, as a code behind a colon.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from pymq.exceptions import CodecError

CODES: dict[Any, str] = {int: "q", float: "d", bool: "?", str: "s"}
"""Those of `struct`; an `s` is a text."""

Decode = Callable[[bytes], Any]


def layout(codes: Sequence[str]) -> struct.Struct:
    """All of a row that is in front of the texts."""
    return struct.Struct("<x" + "".join("I" if code == "s" else code for code in codes))


def make_packer(codes: Sequence[str], before: str = "") -> tuple[str, dict[str, Any]]:
    """An expression that packs the values `f0`, `f1`, …, and the names in it; behind others, the `pack` that it wants is another.

    It raises ValueError or struct.error for those of the right types that have no place in a row.
    """
    values = [f"len(s{place} := f{place}.encode())" if code == "s" else f"f{place}" for place, code in enumerate(codes)]
    texts = [f" + s{place}" for place, code in enumerate(codes) if code == "s"]
    return f"pack({before}{', '.join(values)}){''.join(texts)}", {"pack": layout(codes).pack}


def make_reader(codes: Sequence[str]) -> Callable[[Callable[..., Any], Decode], Decode]:
    """What gives a decoder, once it is told `make` and `slow`: `make` gets the values in a row, `slow` whatever is no such row."""
    fixed = layout(codes)
    lines, end = ["".join(f"f{place}, " for place in range(len(codes))) + "= unpack(data)"], str(fixed.size)
    for place, code in enumerate(codes):
        if code == "s":
            lines.append(f"f{place} = data[{end} : (e{place} := {end} + f{place})].decode()")
            end = f"e{place}"
    values = ", ".join(f"f{place}" for place in range(len(codes)))
    names: dict[str, Any] = {"unpack": fixed.unpack_from, "StructError": struct.error}
    exec(_DECODE.format(lines="\n            ".join(lines), end=end, values=values), names)
    bind: Callable[[Callable[..., Any], Decode], Decode] = names["bind"]
    return bind


_DECODE = """
def bind(make, slow):
    def decode(data):
        try:
            {lines}
            if not data[0] and len(data) == {end}:
                return make({values})
        except (ValueError, StructError):
            pass
        return slow(data)
    return decode
"""


def read_row(codes: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """The values in a row whose columns somebody else has named. Raises CodecError."""
    if not set(codes) <= set(CODES.values()):
        raise CodecError(f"columns of the kinds {', '.join(codes)}; were they sent by a newer pymq?")
    try:
        fixed = layout(codes)
        values, end = list(fixed.unpack_from(data)), fixed.size
        for place, code in enumerate(codes):
            if code == "s":
                begin, end = end, end + values[place]
                values[place] = data[begin:end].decode()
        if end != len(data):
            raise CodecError(f"a row of {len(data)} bytes, not {end}")
    except (struct.error, ValueError) as error:
        raise CodecError(f"no row of {len(codes)} values: {error}") from error
    return tuple(values)
