"""A call's arguments as bytes: each encoded by itself, so that a dataclass takes the same fast way as an event does.

::

    u16  length of the shape
    JSON [[form, type name] of each argument, names of the last ones: those passed by keyword]
    u32  the length of each encoded argument but the last
    ...  the encoded arguments

The shape is constant for the types and names of a call, so both ends keep what follows from it: the encoders, or the decoders.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from pymq.exceptions import CodecError

_LENGTH = struct.Struct("<H")
_KEPT_SHAPES = 1000

Encoding = tuple[bytes, list[Callable[[Any], bytes]], struct.Struct]
_encodings: dict[Any, Encoding] = {}


def pack_call(args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
    """The bytes of a call. Raises CodecError naming what cannot travel."""
    if len(args) == 1 and not kwargs:  # 0.4 us less
        value = args[0]
        head, encoders, _ = _encodings.get(type(value)) or _learn(type(value), args, kwargs)
        return head + encoders[0](value)
    values = (*args, *kwargs.values()) if kwargs else args
    shape = (*map(type, values), *kwargs)
    head, encoders, lengths = _encodings.get(shape) or _learn(shape, values, kwargs)
    parts = [encode(value) for encode, value in zip(encoders, values)]
    return b"".join((head, lengths.pack(*map(len, parts[:-1])), *parts))


def _learn(shape: Any, values: Sequence[Any], kwargs: dict[str, Any]) -> Encoding:
    from pymq import codec

    encoders = [codec.encoder_for(type(value)) for value in values]
    head = json.dumps([[[e.form, e.type_name] for e in encoders], list(kwargs)]).encode()
    if len(head) > 0xFFFF:
        raise CodecError(f"a call with {len(values)} arguments is too long")
    found = _LENGTH.pack(len(head)) + head, [e.encode for e in encoders], _lengths(len(values))
    if len(_encodings) > _KEPT_SHAPES:
        _encodings.clear()
    _encodings[shape] = found
    return found


Decode = Callable[[bytes], Any]
_Shape = tuple[bytes, Decode | None, list[Decode], list[str], struct.Struct]
"""Its bytes, behind their length; what decodes the one argument where there is no other and it has no name, and what decodes each;
the names of the last ones; the lengths of all but the last."""


def _refuse(data: bytes) -> Any:
    raise CodecError("these are not the arguments of a call")


_NONE: _Shape = (bytes(_LENGTH.size), _refuse, [], [], struct.Struct("<"))


class CallReader:
    """Reads the calls of one function: `hint(index or name)` is what the parameter at that place wants. Safe in all threads."""

    def __init__(self, hint: Callable[[int | str], Any]) -> None:
        self._hint = hint
        self._shapes: dict[bytes, _Shape] = {}
        self._last = _NONE

    def call(self, function: Callable[..., Any], data: bytes, start: int) -> Any:
        """Call it with the arguments that begin at `start`, each as its parameter's hint wants it. Raises CodecError."""
        shape = self._last
        if not data.startswith(shape[0], start):
            shape = self._find(data, start)
        head, only, decoders, names, lengths = shape
        end = start + len(head)
        if only is not None:
            return function(only(data[end:]))
        values = _values(data, end, decoders, lengths)
        first = len(values) - len(names)
        return function(*values[:first], **dict(zip(names, values[first:])))

    def _find(self, data: bytes, start: int) -> _Shape:
        head = data[start : start + _LENGTH.size + int.from_bytes(data[start : start + _LENGTH.size], "little")]
        shape = self._last = self._shapes.get(head) or self._learn(head)
        return shape

    def _learn(self, head: bytes) -> _Shape:
        from pymq import codec

        try:
            kinds, names = json.loads(head[_LENGTH.size :].decode())
            names = [str(name) for name in names]
            places: list[int | str] = [*range(len(kinds) - len(names)), *names]
            decoders = [codec.decoder_for(int(f), str(t), self._hint(p)) for (f, t), p in zip(kinds, places, strict=True)]
        except (ValueError, TypeError, RecursionError) as error:
            raise CodecError("these are not the arguments of a call") from error
        if len(self._shapes) > _KEPT_SHAPES:
            self._shapes.clear()
        only = decoders[0] if len(decoders) == 1 and not names else None
        found = self._shapes[head] = head, only, decoders, names, _lengths(len(kinds))
        return found


def _values(data: bytes, start: int, decoders: list[Decode], lengths: struct.Struct) -> list[Any]:
    position = start + lengths.size
    try:
        sizes = lengths.unpack_from(data, start)
    except struct.error as error:
        raise CodecError("these are not the arguments of a call") from error
    values = []
    for decode, size in zip(decoders, sizes):  # of all but the last
        values.append(decode(data[position : position + size]))
        position += size
    return values + [decode(data[position:]) for decode in decoders[-1:]]


def _lengths(values: int) -> struct.Struct:
    return struct.Struct(f"<{max(0, values - 1)}I")
