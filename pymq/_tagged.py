"""Our own JSON: any value that pymq can carry, exactly.

None, bool, str, float (with NaN and Infinity), an int of up to 64 bits and a list are themselves; so is a dict whose keys are text
other than "~". Everything else is a marker, an object with the key "~": `{"~": "tuple", "v": [1, 2]}`. A dict with other keys is
a marker too, so no key of the user's is special. Instances carry the name of their class: `{"~": "object", "t": "app.Order",
"v": {"total": …}}` becomes an `Order` where this process has named that class, and a plain dict elsewhere.
"""

from __future__ import annotations

import enum
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel
from pydantic_core import TzInfo, from_json, to_json

from pymq._hints import Find, cached, is_own_class, name_class
from pymq._objects import is_named_tuple, is_plain, rebuild, state_of
from pymq.exceptions import CodecError
from pymq.topics import topic_of

MAX_DEPTH = 90
"""How deep values may nest: a marker takes two levels of JSON, and the parser refuses more than 200 of them."""

SURROGATE = re.compile("[\ud800-\udfff]")
_zones = cached(available_timezones)  # reads the zone files' first bytes, once: 20 ms

Lower: TypeAlias = Callable[[Any, int], Any]
Raise: TypeAlias = Callable[[Any, Find], Any]


def write(value: Any) -> bytes:
    """The value as tagged JSON. Raises CodecError naming what cannot travel."""
    return dump(lambda: lower(value, 0), type(value))


def dump(make_node: Callable[[], Any], cls: type) -> bytes:
    """JSON of what `make_node` returns; whatever goes wrong is a CodecError."""
    try:
        return to_json(make_node())
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"{cls.__qualname__} cannot be sent: {error or type(error).__name__}") from error


def lower(value: Any, depth: int) -> Any:
    """The value as a tree of what JSON has."""
    cls = type(value)
    return (_LOWER.get(cls) or _lower_class(cls))(value, depth)


def raise_(node: Any, find: Find) -> Any:
    """The value that was lowered. Raises CodecError, or any other Exception, for what nobody can have lowered."""
    if type(node) is list:
        return [raise_(item, find) for item in node]
    if type(node) is not dict:
        return node
    if "~" not in node:
        return {key: raise_(item, find) for key, item in node.items()}
    return _RAISE[node["~"]](node, find)


def parse(data: bytes) -> Any:
    """The JSON tree. Raises ValueError, also for what is nested 201 deep or has ints of 5000 digits."""
    return from_json(data)


def _mark(tag: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"~": tag, **more, "v": value}


def _same(value: Any, depth: int) -> Any:
    return value


def _lower_int(value: int, depth: int) -> Any:
    return value if -(1 << 63) <= value < 1 << 63 else _mark("int", f"{value:x}")


def _lower_str(value: str, depth: int) -> Any:
    """UTF-8 has no lone surrogates, which file names on Linux may bring."""
    if value.isascii() or not SURROGATE.search(value):
        return value
    return _mark("str", [ord(letter) for letter in value])


def _lower_items(value: Any, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise CodecError(f"a value nested deeper than {MAX_DEPTH}, or in itself, cannot be sent")
    return [lower(item, depth + 1) for item in value]


def _lower_dict(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    if all(type(key) is str and key != "~" and not SURROGATE.search(key) for key in value):
        return dict(zip(value, _lower_items(value.values(), depth), strict=True))
    return _mark("dict", [_lower_items(each, depth + 1) for each in (value.keys(), value.values())])  # three levels of JSON


def _items_in(tag: str) -> Lower:
    return lambda value, depth: _mark(tag, _lower_items(value, depth))


def _text_of(tag: str, text: Callable[[Any], str]) -> Lower:
    return lambda value, depth: _mark(tag, text(value))


def _lower_clock(tag: str) -> Lower:
    return lambda value, depth: _mark(tag, [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, lower(value.tzinfo, depth)])


def _lower_timedelta(value: timedelta, depth: int) -> Any:
    return _mark("timedelta", [value.days, value.seconds, value.microseconds])


def _lower_timezone(value: timezone, depth: int) -> Any:
    return _mark("timezone", _lower_items(value.__getinitargs__(), depth))  # type: ignore[attr-defined]


def _lower_zone(value: ZoneInfo, depth: int) -> Any:
    if value.key not in _zones():
        raise CodecError(f"the time zone {value!r} has no name in the time zone database")
    return _mark("zone", value.key)


def _lower_class(cls: type) -> Lower:
    """How to lower instances of a class that is met for the first time; sending them names it."""
    if not _is_sendable(cls):
        raise CodecError(f"{topic_of(cls)} cannot be sent, since its values are more than their attributes: send what is in it")
    name_class(cls)
    _LOWER[cls] = _lower_enum(topic_of(cls)) if issubclass(cls, enum.Enum) else _lower_object(cls)
    return _LOWER[cls]


def _is_sendable(cls: type) -> bool:
    return is_own_class(cls) and (issubclass(cls, (enum.Enum, BaseModel)) or is_named_tuple(cls) or is_plain(cls))


def _lower_enum(name: str) -> Lower:
    return lambda value, depth: _mark("enum", lower(value.value, depth), t=name)


def _lower_object(cls: type) -> Lower:
    name = topic_of(cls)

    def lower_object(value: Any, depth: int) -> Any:
        state = state_of(value)
        try:
            return _mark("object", dict(zip(state, _lower_items(state.values(), depth), strict=True)), t=name)
        except CodecError as error:
            if error.__cause__ is not None:
                raise  # it names a field already
            raise _of_field(cls, state, depth, error) from error

    return lower_object


def _of_field(cls: type, state: dict[str, Any], depth: int, error: CodecError) -> CodecError:
    """The same, with the name of the field whose value cannot travel: the innermost says enough."""
    for name, item in state.items():
        try:
            lower(item, depth + 1)
        except CodecError as found:
            return CodecError(f"{cls.__qualname__}.{name}: {found}")
    return CodecError(str(error))


_LOWER: dict[type, Lower] = {
    type(None): _same,
    bool: _same,
    float: _same,
    int: _lower_int,
    str: _lower_str,
    list: _lower_items,
    dict: _lower_dict,
    tuple: _items_in("tuple"),
    set: _items_in("set"),
    frozenset: _items_in("frozenset"),
    bytes: _text_of("bytes", lambda value: b64encode(value).decode()),
    bytearray: _text_of("bytearray", lambda value: b64encode(value).decode()),
    Decimal: _text_of("decimal", str),
    UUID: _text_of("uuid", str),
    date: _text_of("date", date.isoformat),
    datetime: _lower_clock("datetime"),
    time: _lower_clock("time"),
    timedelta: _lower_timedelta,
    timezone: _lower_timezone,
    ZoneInfo: _lower_zone,
    TzInfo: lambda value, depth: _mark("pydantic.TzInfo", value.utcoffset(None).total_seconds()),
}


def _leaf(make: Callable[[Any], Any]) -> Raise:
    return lambda node, find: make(node["v"])


def _items(make: Callable[[Any], Any]) -> Raise:
    return lambda node, find: make([raise_(item, find) for item in node["v"]])


def _raise_dict(node: Any, find: Find) -> Any:
    keys, values = node["v"]
    return dict(zip([raise_(key, find) for key in keys], [raise_(value, find) for value in values], strict=True))


def _raise_clock(cls: type[datetime] | type[time]) -> Raise:
    def raise_clock(node: Any, find: Find) -> Any:
        text, fold, zone = node["v"]
        return cls.fromisoformat(text).replace(fold=fold, tzinfo=raise_(zone, find))

    return raise_clock


def _find_zone(key: str) -> ZoneInfo:
    if key not in _zones():  # ZoneInfo would look for files and packages of that name
        raise CodecError(f"no time zone {key!r} on this machine")
    return ZoneInfo(key)


def _raise_enum(node: Any, find: Find) -> Any:
    cls, value = find(node["t"]), raise_(node["v"], find)
    return value if cls is None or not issubclass(cls, enum.Enum) else cls(value)


def _raise_object(node: Any, find: Find) -> Any:
    cls, state = find(node["t"]), {name: raise_(item, find) for name, item in node["v"].items()}
    if cls is None:
        return {name: item for name, item in state.items() if not name.startswith("__pydantic_")}
    if issubclass(cls, enum.Enum) or not _is_sendable(cls):
        raise CodecError(f"{node['t']} is not a class whose instances travel as objects")
    return rebuild(cls, state)


_RAISE: dict[str, Raise] = {
    "int": _leaf(lambda text: int(text, 16)),
    "str": _leaf(lambda codes: "".join(map(chr, codes))),
    "tuple": _items(tuple),
    "set": _items(set),
    "frozenset": _items(frozenset),
    "dict": _raise_dict,
    "bytes": _leaf(lambda text: b64decode(text, validate=True)),
    "bytearray": _leaf(lambda text: bytearray(b64decode(text, validate=True))),
    "decimal": _leaf(Decimal),
    "uuid": _leaf(UUID),
    "date": _leaf(date.fromisoformat),
    "datetime": _raise_clock(datetime),
    "time": _raise_clock(time),
    "timedelta": _leaf(lambda parts: timedelta(*parts)),
    "timezone": _items(lambda parts: timezone(*parts)),
    "zone": _leaf(_find_zone),
    "pydantic.TzInfo": _leaf(TzInfo),
    "enum": _raise_enum,
    "object": _raise_object,
}
