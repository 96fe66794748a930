"""Values arrive exactly as they were sent, or are refused; and no message makes the receiver do anything."""

# ruff: noqa: UP007, UP045 - both ways of writing a union are tested

from __future__ import annotations

import itertools
import json
import math
import struct
import subprocess
import sys
import threading
from collections import ChainMap, OrderedDict, UserDict, UserList, namedtuple
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field, make_dataclass, replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from functools import cached_property
from typing import Annotated, Any, Dict, Final, Generic, List, Literal, NamedTuple, Optional, TypedDict, TypeVar, Union  # noqa: UP035
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from pymq import _hints, _tagged, codec, handlers
from pymq.codec import (
    PACKED,
    RAW,
    TAGGED,
    TYPED,
    convert,
    decode_arguments,
    decoder_for,
    encode_arguments,
    encoder_for,
    name_type,
)
from pymq.exceptions import CodecError
from pymq.message import Message, Prefix, names_in, pack_prefix, unpack
from pymq.topics import topic_of


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Text(str, Enum):
    A = "a"


class Mixed(Enum):
    ONE = 1
    TEXT = "1"
    PAIR = (1, 2)


class Rights(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Reading:
    a: int
    b: str
    c: float
    d: str


@dataclass
class Urgent(Reading):
    e: int = 0


@dataclass(frozen=True)
class Frozen:
    a: int
    b: Decimal = Decimal(1)


@dataclass
class Everything:
    i: int
    s: str
    f: float
    b: bool
    n: None
    d: Decimal
    t: datetime
    day: date
    u: UUID
    e: Color
    level: Level
    items: list[int]
    nested: list[list[Frozen]]
    table: dict[str, list[float]]
    maybe: Optional[int]
    either: str | None
    one: Reading


@dataclass
class Line:
    price: Decimal
    name: str


@dataclass
class Bill:
    due: Optional[date]
    paid: list[list[datetime]]
    by: dict[str, UUID]
    lines: list[Line]
    first: Line | None
    note: str = "1.50"


class Slotted:
    __slots__ = ("__private", "a")

    def __init__(self, a: int) -> None:
        self.a = a
        self.__private = a + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and (self.a, self.__private) == (other.a, other.__private)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class KeywordOnly:
    a: int = field(kw_only=True)
    b: list[int] = field(default_factory=list, kw_only=True)


@dataclass
class Numbered:
    a: int
    number: int = field(init=False, default=7)
    seen: list[int] = field(init=False, default_factory=list)


@dataclass
class Watched:
    a: int

    def __setattr__(self, name: str, value: Any) -> None:
        """Halves what it is given: nothing of this may happen to what arrives."""
        object.__setattr__(self, name, value // 2)


class _Doubling:
    """A field's descriptor: what is set is doubled."""

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            raise AttributeError  # the field has no default
        return instance.__dict__["a"]

    def __set__(self, instance: Any, value: int) -> None:
        instance.__dict__["a"] = value * 2


@dataclass
class Doubled:
    a: int = _Doubling()  # type: ignore[assignment]


class _Counting(type):
    def __call__(cls, *args: Any) -> Any:
        made = super().__call__(*args)
        made.a += 1
        return made


@dataclass
class Counted(metaclass=_Counting):
    a: int


@dataclass
class Single:
    a: int


@dataclass(init=False)
class InitOfItsBase(Single):
    b: int = 0


def inherited() -> InitOfItsBase:
    value = InitOfItsBase(1)
    value.b = 2
    return value


@dataclass
class Nothing:
    pass


@dataclass(frozen=True, slots=True)
class SlottedFrozen:
    a: int
    b: tuple[int, ...] = ()


@dataclass(slots=True)
class SlottedTyped:
    a: int


@dataclass
class Computed:
    a: int
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.a * 2


@dataclass
class OwnInit:
    a: int

    def __init__(self, a: int) -> None:
        self.a = a


@dataclass
class Allowed:
    rights: Rights


@dataclass
class Early:
    late: Late  # type: ignore[name-defined]  # noqa: F821 - defined by a test


@dataclass
class Growing:
    a: int

    def __post_init__(self) -> None:
        self.a += 1


@dataclass
class Cached:
    a: int

    @cached_property
    def double(self) -> int:
        return self.a * 2


@dataclass
class Node:
    value: int
    children: list[Node] = field(default_factory=list)


@dataclass
class Anything:
    value: Any


class Point(NamedTuple):
    x: int
    y: float = 0.0


Pair = namedtuple("Pair", "left right")


class Movie(TypedDict):
    title: str
    year: int


class Plain:
    kind = "class attribute"

    def __init__(self, a: int, b: str = "b") -> None:
        self.a = a
        self.b = b
        self.c: Any = [a]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __repr__(self) -> str:
        return f"Plain({vars(self)})"

    __hash__ = None  # type: ignore[assignment]


class Positional:
    def __init__(self, a: int, /) -> None:
        self.a = a

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positional) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int
    name: str = Field("x", alias="NAME")
    at: datetime | None = None
    inner: Frozen | None = None
    _secret: int = PrivateAttr(default=3)


class Aliased(BaseModel):
    """Of which each field is given under another name than its own."""

    model_config = ConfigDict(extra="allow")
    chosen: int = Field(validation_alias=AliasChoices("first", "second"))
    deep: int = Field(validation_alias=AliasPath("outer", 1, "deep"))
    deeper: int = Field(validation_alias=AliasChoices(AliasPath("outer", 1, "deeper", 0), "deeper"))


class Shouting(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def louder(cls, value: str) -> str:
        return value + "!"


class Place(NamedTuple):
    x: int
    y: int = 2


class Numbers(RootModel[list[int]]):
    pass


T = TypeVar("T")


@pydantic_dataclass
class Validated:
    a: int
    b: list[int] = Field(default_factory=list)


@dataclass
class Box(Generic[T]):
    item: T


READING = Reading(1, "hello", 2.5, "x")
EVERYTHING = Everything(
    *(1, "é\x00\u2028", math.inf, True, None, Decimal("1E+2"), datetime(2020, 1, 2, 3, 4, 5, 6), date(1, 1, 1), UUID(int=7)),
    *(Color.RED, Level.HIGH, [1, 2], [[Frozen(1)], []], {"~": [-0.0, math.nan], "": []}, None, "x", READING),
)


def model() -> Model:
    made = Model.model_validate({"a": 1, "NAME": "n", "other": {1: (2,)}, "at": "2020-01-01T00:00:00+01:00"})
    made._secret = 4
    return made


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, -(2**63) - 1, 10**5000, 0.0, -0.0, 1e22, 5e-324, math.nan, math.inf, -math.inf),
    *("", "é", "\U0001f600", "\ud83d\ude00", "\udcff", b"", b"\xff\x00", bytearray(b"x"), [], [1, [2]], (), (1, (2,)), (1, [2])),
    *(set(), {1, "a"}, frozenset({(1, 2)}), {}, {"a": 1}, {1: "a", (1, 2): None, True and "t": 1.0, None: 0, b"k": 2, 1.5: 3}),
    *({"~": 1}, {"~": "tuple", "v": [1]}, {"~": "object", "t": "x", "v": {}}, [{"~": {"~": 1}}], {"\udc00": 1}),
    *(date(9999, 12, 31), time(1, 2, 3, 4), time(1, fold=1, tzinfo=timezone.utc), timedelta(-1, 2, 3), timedelta.max),
    *(datetime.min, datetime(2020, 1, 1, fold=1), datetime(2020, 1, 1, tzinfo=timezone.utc), timezone.utc),
    datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=-5, microseconds=1), "odd")),
    datetime(2020, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    *(Decimal("NaN123"), Decimal("-sNaN7"), Decimal("1E+2"), Decimal("-0.00"), Decimal("-Infinity"), UUID(int=2**128 - 1)),
    *(Color.RED, Level.LOW, Text.A, Mixed.ONE, Mixed.TEXT, Mixed.PAIR, Rights.READ | Rights.WRITE, Rights(0)),
    *(READING, Urgent(1, "", 0.0, "", 5), Frozen(1), Frozen(2, Decimal("sNaN")), EVERYTHING, replace(EVERYTHING, i=2**80)),
    *(Nothing(), Numbered(1), Watched(8), replace(EVERYTHING, i=10**4000), Frozen(-(2**63) - 1)),
    *(Doubled(1), inherited()),
    *(Slotted(1), KeywordOnly(a=1), SlottedFrozen(1, (2,)), SlottedTyped(1), Computed(2), Growing(1), Node(1, [Node(2)])),
    *(
        Point(1),
        Pair([1], {2}),
        Plain(1),
        Positional(1),
        Validated(1, [2]),
        Box[int](1),
        Box("x"),
        model(),
        Shouting(text="a"),
        Numbers([1]),
    ),
    *(Anything(READING), Anything({1: Point(1)}), Anything((Color.RED, model())), {"movie": Movie(title="t", year=1)}),
    *(
        Reading(1, "\udcff", 0.0, ""),
        Reading(1, "", 3, ""),
        replace(EVERYTHING, one=Urgent(1, "", 0.0, "")),
        Reading(Level.LOW, "", 0.0, ""),
    ),
    replace(EVERYTHING, t=datetime(2020, 1, 1, tzinfo=timezone.utc)),
]


def same(a: Any, b: Any) -> bool:
    """Equal by type and repr, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (set, frozenset)):
        return same(sorted(a, key=repr), sorted(b, key=repr))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, int) and not isinstance(a, Enum):
        return a == b
    if hasattr(a, "__dict__") and not isinstance(a, Enum):
        return same(attributes(a), attributes(b))
    return (repr(a) == repr(b) or type(a).__repr__ is object.__repr__) and ("nan" in repr(a).lower() or a == b)


def attributes(value: Any) -> dict[str, Any]:
    return {name: item for name, item in vars(value).items() if name != "__orig_class__"}


def send(value: Any, hint: Any = Any) -> Any:
    encoder = encoder_for(type(value))
    return decoder_for(encoder.form, encoder.type_name, hint)(encoder.encode(value))


@pytest.fixture
def unnamed() -> Iterator[None]:
    """As in a process that has named nothing."""
    kept = _hints._named.copy(), _hints._in_hints.copy()
    _hints._named.clear()
    _hints._in_hints.clear()
    codec._encoders.pop(Reading, None)
    yield
    _hints._named.update(kept[0])
    _hints._in_hints.update(kept[1])


def ids(value: Any) -> str:
    """The same in every process."""
    if isinstance(value, int):
        return f"int{value % 1000}"
    text = ascii(value)
    return type(value).__name__ if isinstance(value, set | frozenset) or " at 0x" in text else f"{type(value).__name__}-{text[:30]}"


@pytest.mark.parametrize("value", VALUES, ids=ids)
class TestTypeTable:
    def test_arrives_exactly(self, value: Any) -> None:
        assert same(send(value), value)

    def test_arrives_exactly_for_its_own_type(self, value: Any) -> None:
        assert same(send(value, type(value)), value)

    def test_arrives_exactly_in_a_container(self, value: Any) -> None:
        assert same(send([value, {"k": value}]), [value, {"k": value}])

    def test_arrives_exactly_as_an_argument(self, value: Any) -> None:
        args, kwargs = decode_arguments(encode_arguments((value,), {"k": value, "~": value}))
        assert same((args, kwargs), ([value], {"k": value, "~": value}))

    def test_fits_its_own_type(self, value: Any) -> None:
        assert same(convert(value, type(value)), value)


def test_a_model_whose_fields_are_given_under_other_names() -> None:
    value = Aliased.model_validate({"second": 1, "outer": [0, {"deep": 2, "deeper": [3]}], "more": 4})
    assert same(send(value, Aliased), value)
    assert same(send([value]), [value])


class TestForms:
    @pytest.mark.parametrize("cls", [Reading, Urgent, SlottedTyped, Watched])
    def test_packed(self, cls: type) -> None:
        assert encoder_for(cls).form == PACKED

    @pytest.mark.parametrize("cls", [Frozen, Everything, KeywordOnly, Numbered, Nothing])
    def test_typed(self, cls: type) -> None:
        assert encoder_for(cls).form == TYPED

    @pytest.mark.parametrize(
        "cls", [Computed, OwnInit, Allowed, Node, Anything, Box, SlottedFrozen, Model, Plain, Point, Color, int, dict]
    )
    def test_tagged(self, cls: type) -> None:
        assert encoder_for(cls).form == TAGGED

    def test_bytes_travel_as_they_are(self) -> None:
        assert encoder_for(bytes).form == RAW
        assert encoder_for(bytes).encode(b"\xff") == b"\xff"

    def test_typed_json_is_plain(self) -> None:
        assert json.loads(encoder_for(Frozen).encode(Frozen(1))) == [1, "1"]

    def test_a_row_has_the_numbers_then_the_texts(self) -> None:
        fixed = struct.pack("<BqIdI", 0, 1, 5, 2.5, 1)
        assert encoder_for(Reading).encode(READING) == fixed + b"hellox"

    def test_a_row_is_packed_with_its_head_and_what_cannot_travel_takes_no_number(self) -> None:
        encoder, numbers = encoder_for(Reading), itertools.count(7)
        heads, encode, size = encoder.numbered(numbers, pack_prefix(Prefix(1, PACKED, 0, 5, "c", encoder.type_name, ())))
        values = [READING, replace(READING, a=1 << 70), replace(READING, b="\ud800"), replace(READING, c=1)]
        for number, value in enumerate(values, 7):
            message = encode(value)
            assert unpack(message)[::3] == (number, encoder.encode(value)) == (number, message[size:])
            with pytest.raises(CodecError):
                encode(replace(READING, a=object()))
        assert heads is None

    def test_names(self) -> None:
        names = [encoder_for(cls).type_name for cls in (int, type(None), datetime, Decimal, Reading)]
        assert names == ["int", "NoneType", "datetime.datetime", "decimal.Decimal", f"{topic_of(Reading)}(a:q,b:s,c:d,d:s)"]

    def test_the_type_of_a_message_is_named_without_its_fields(self) -> None:
        encoder = encoder_for(Reading)
        assert Message(1, Prefix(1, encoder.form, 0, 1, "c", encoder.type_name, ()), {}).type_name == topic_of(Reading)
        assert Message(1, Prefix(1, TAGGED, 0, 1, "c", "named(so)", ()), {}).type_name == "named(so)"

    def test_encoders_are_made_once(self) -> None:
        assert encoder_for(Reading) is encoder_for(Reading)

    def test_unknown_form(self) -> None:
        with pytest.raises(CodecError, match="form 9"):
            decoder_for(9, "int")


class TestNotOfTheDeclaredType:
    @pytest.mark.parametrize(
        "value",
        [
            *(Reading("a", "", 0.0, ""), Reading(1.5, "", 0.0, ""), Reading(True, "", 0.0, ""), Reading(1, 1, 0.0, "")),
            *(Reading(1, None, 0.0, ""), Reading(1, b"x", 0.0, ""), Reading(1, "", True, ""), Reading(1, "", "1", "")),
            *(replace(EVERYTHING, items=["a"]), replace(EVERYTHING, items=(1,)), replace(EVERYTHING, items=[True])),
            *(replace(EVERYTHING, one={"a": 1, "b": "", "c": 0.0, "d": ""}), replace(EVERYTHING, e="red"), Frozen(1, "1")),
            *(replace(EVERYTHING, d="1"), replace(EVERYTHING, t="2020-01-01"), replace(EVERYTHING, table={1: []})),
            *(Plain("a"), Point("a"), Model.model_construct(a="1"), Node(1, [Reading(1, "", 0.0, "")]), SlottedFrozen(1, [2])),
        ],
        ids=ids,
    )
    def test_is_refused_by_the_sender(self, value: Any) -> None:
        with pytest.raises(CodecError):
            encoder_for(type(value)).encode(value)

    def test_the_place_is_named(self) -> None:
        with pytest.raises(CodecError, match=r"Reading\.a: 'x' is str, not int"):
            encoder_for(Reading).encode(Reading("x", "", 0.0, ""))

    @pytest.mark.parametrize("data", [b'{"a":true,"b":"","c":1.0,"d":""}', b'{"a":1,"b":"","c":"1","d":""}', b'{"a":1}', b"[1]", b""])
    def test_is_refused_by_the_receiver(self, data: bytes) -> None:
        with pytest.raises(CodecError):
            decoder_for(TYPED, topic_of(Reading), Reading)(data)

    @pytest.mark.parametrize("data", [b'[true,"",1.0,""]', b'[1,"","1",""]', b'[1,"",1.0]', b'[1,"",1.0,"",2]', b"[]", b'[1,"",1.0,""'])
    def test_values_that_are_not_those_of_the_fields(self, data: bytes) -> None:
        with pytest.raises(CodecError):
            decoder_for(TYPED, f"{topic_of(Reading)}(a,b,c,d)", Reading)(data)

    @pytest.mark.parametrize(
        "fields", ["a:q,b:s,c:d,d:s", "a:q,b:s,c:d,d:s,e:q", "a:q,b:s", "a:q,b:s,c:d,d:Z", "a,b,c,d", "a:q:q,b:s,c:d,d:s"]
    )
    def test_rows_that_are_none(self, fields: str) -> None:
        """Cut, longer, with lengths that lead elsewhere, with texts that are not UTF-8: an error, whoever is to read it."""
        row = encoder_for(Reading).encode(READING)
        decoders = [decoder_for(PACKED, f"{topic_of(cls)}({fields})", hint) for cls in (Reading, Urgent) for hint in (Reading, Any)]
        damaged = [
            row[:-1],
            row + b"x",
            row[:10],
            row[:1],
            b"\0",
            b"",
            row[:-1] + b"\xff",
            row[:9] + b"\xff" * 4 + row[13:],
            b"\1" + row[1:],
        ]
        for data in damaged:
            for decode in decoders:
                with pytest.raises(CodecError):
                    decode(data)

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            *(("x", float), ("x", int), (True, int), (1.0, int), (1, str), (1, bool), (b"x", str), ("1", Decimal), ([1], tuple)),
            *((READING, Frozen), (Frozen(1), Reading), (READING, dict), ([1, "a"], list[int]), ({"a": "b"}, dict[str, int])),
            *((1, Union[str, bytes]), ("c", Literal["a", "b"]), (True, Literal[1]), ({"title": 1, "year": 1}, Movie)),
            *(({"title": "x"}, Movie), ((1, "a", 2), tuple[int, str]), (2**53 + 1, float), (10**400, float), ("red", Color)),
            *(
                ({"a": "x", "b": "", "c": 1, "d": ""}, Reading),
                ({"a": 1}, Reading),
                (dict(vars(READING), z=1), Reading),
                (1, type(None)),
            ),
        ],
        ids=str,
    )
    def test_does_not_fit_the_hint(self, value: Any, hint: Any) -> None:
        with pytest.raises(CodecError):
            send(value, hint)
        with pytest.raises(CodecError):
            convert(value, hint)

    def test_a_field_too_many_is_refused_by_the_receiver(self) -> None:
        with pytest.raises(CodecError, match="has no e"):
            decoder_for(TYPED, topic_of(Reading), Reading)(json.dumps({**vars(READING), "e": 1}).encode())

    def test_a_tagged_field_is_refused_by_the_receiver(self) -> None:
        data = json.dumps({"~": "object", "t": topic_of(Computed), "v": {"a": 1, "total": "2"}}).encode()
        with pytest.raises(CodecError, match="total"):
            decoder_for(TAGGED, topic_of(Computed), Computed)(data)


class TestHints:
    @pytest.mark.parametrize(
        ("value", "hint", "expected"),
        [
            *((1, float, 1.0), (1, Union[int, float], 1), (1, Union[float, int], 1), (1, Optional[float], 1.0)),
            *(
                (None, Optional[Reading], None),
                ({"a": 1}, Validated, Validated(1)),
                ({"READING": READING}, dict[str, Reading], {"READING": READING}),
            ),
            *((READING, Reading | None, READING), (READING, Annotated[Reading, "x"], READING), (1, Any, 1), (1, object, 1)),
            *(
                (vars(READING), Reading, READING),
                ([vars(READING)], list[Reading], [READING]),
                ((1, "a"), tuple[int, str], (1, "a")),
            ),
            *(
                ({"a": 1, "b": "2.50"}, Frozen, Frozen(1, Decimal("2.50"))),
                ({"a": 1}, Plain, Plain(1)),
                ({"x": 1}, Point, Point(1)),
            ),
            *(({"a": 1, "NAME": "q"}, Model, Model(a=1, NAME="q")), ({"item": 1}, Box[int], Box(1)), ("a", Literal["a"], "a")),
            *(({"a": 2, "total": 9}, Computed, Computed(2)), ({"a": 1, "b": [1, 2]}, SlottedFrozen, SlottedFrozen(1, (1, 2)))),
            *(
                ({"value": 1, "children": [{"value": 2}]}, Node, Node(1, [Node(2)])),
                (Level.LOW, int, Level.LOW),
                ((), tuple[int, ...], ()),
            ),
        ],
        ids=str,
    )
    def test_fits(self, value: Any, hint: Any, expected: Any) -> None:
        if isinstance(expected, Computed):
            expected.total = 9
        assert same(send(value, hint), expected)
        assert same(convert(value, hint), expected)

    def test_json_texts_inside_a_dict(self) -> None:
        encoder = encoder_for(Everything)
        _, fields, _ = names_in(encoder.form, encoder.type_name)
        node = dict(zip(fields, json.loads(encoder.encode(replace(EVERYTHING, f=1.0, table={}))), strict=True))
        assert same(convert(node, Everything), replace(EVERYTHING, f=1.0, table={}))

    def test_a_subclass_arrives_as_itself(self) -> None:
        assert same(send(Urgent(1, "", 0.0, "", 7), Reading), Urgent(1, "", 0.0, "", 7))

    def test_unresolvable_hints_count_as_any(self) -> None:
        @dataclass
        class Local:
            value: Missing  # type: ignore[name-defined]  # noqa: F821

        assert send(Local((1,))) == Local((1,))

    def test_hints_that_cannot_be_hashed(self) -> None:
        assert convert(1, Annotated[int, {}]) == 1

    def test_a_class_of_the_same_name_is_the_one_in_the_hint(self) -> None:
        name = topic_of(Reading)
        other = dataclass(type("Reading", (), {"__annotations__": {"a": "int"}, "__module__": __name__, "__qualname__": "Reading"}))
        decode = decoder_for(TAGGED, name, Reading)
        try:
            assert decoder_for(TYPED, name, other)(b'{"a":1}') == other(1)
            assert decode(json.dumps({"~": "object", "t": name, "v": vars(READING)}).encode()) == READING
        finally:
            name_type(Reading)


class TestCannotTravel:
    def test_init_var(self) -> None:
        @dataclass
        class Hashed:
            a: int
            salt: InitVar[int]

        with pytest.raises(CodecError, match="salt"):
            encoder_for(Hashed).encode(Hashed(1, 2))

    def test_a_parameter_without_an_attribute(self) -> None:
        class Hidden:
            def __init__(self, secret: int) -> None:
                self._secret = secret

        with pytest.raises(CodecError, match="secret"):
            encoder_for(Hidden).encode(Hidden(1))

    def test_a_missing_field(self) -> None:
        value = Reading(1, "", 0.0, "")
        del value.a
        with pytest.raises(CodecError, match=r"no attribute a"):
            encoder_for(Reading).encode(value)

    @pytest.mark.parametrize(
        "value",
        [
            threading.Lock(),
            len,
            lambda: 1,
            int,
            sys,
            OrderedDict(a=1),
            object(),
            ValueError("x"),
            iter([]),
            (i for i in ()),
            1j,
            range(3),
        ],
        ids=ids,
    )
    def test_more_than_attributes(self, value: Any) -> None:
        for sent in (value, [value], Anything(value)):
            with pytest.raises(CodecError):
                encoder_for(type(sent)).encode(sent)

    def test_a_class_without_hints_is_read_once(self) -> None:
        """Each message with a name that nobody knows had it, and all others of its kind, read again."""
        for cls in (Nothing, Color):
            assert _hints.hints_of(cls) is _hints.hints_of(cls)

    def test_the_innermost_field_is_named(self) -> None:
        for sent in (Anything(object()), [Anything(object())], Anything({"k": (Anything(object()),)})):
            with pytest.raises(CodecError, match=r"^Anything\.\w+: builtins\.object cannot be sent"):
                encoder_for(type(sent)).encode(sent)

    def test_an_own_builtin(self) -> None:
        class Name(str):
            pass

        for sent in (Name("x"), Reading(1, Name("x"), 0.0, ""), {Name("x"): 1}):
            with pytest.raises(CodecError, match="Name"):
                encoder_for(type(sent)).encode(sent)

    def test_a_value_in_itself(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(CodecError, match="nested deeper"):
            encoder_for(list).encode(loop)

    @pytest.mark.parametrize("wrap", [list, tuple, frozenset, lambda it: {"k": it[0]}, lambda it: Anything(it[0])])
    def test_what_is_accepted_can_be_decoded(self, wrap: Any) -> None:
        value, sent = None, 0
        while True:
            try:
                data = encoder_for(list).encode([value])
            except CodecError:
                break
            decoder_for(TAGGED, "list")(data)
            value, sent = wrap([value]), sent + 1
        assert sent > 80


class TestState:
    def test_an_extra_attribute_is_kept(self) -> None:
        value = Reading(1, "", 0.0, "")
        value.extra = 3  # type: ignore[attr-defined]
        assert vars(send(value)) == vars(value)

    def test_a_cached_property_is_kept(self) -> None:
        value = Cached(2)
        assert value.double == 4
        assert vars(send(value)) == {"a": 2, "double": 4}

    def test_what_init_computes_is_replaced_by_what_was_sent(self) -> None:
        value = Plain(1)
        value.c = "changed"
        assert send(value).c == "changed"
        del value.c
        assert not hasattr(send(value), "c")

    def test_models_keep_everything(self) -> None:
        got = send(model())
        assert got == model()
        assert (got._secret, got.model_fields_set, got.model_extra) == (4, model().model_fields_set, {"other": {1: (2,)}})

    def test_a_refusing_init_is_a_codec_error(self) -> None:
        class Positive:
            def __init__(self, a: int) -> None:
                if a < 0:
                    raise KeyError("negative")
                self.a = a

        value = Positive(1)
        value.a = -1
        with pytest.raises(CodecError, match="negative"):
            send(value)

    def test_fields_are_found_by_their_names_whatever_their_order(self) -> None:
        assert decoder_for(TYPED, f"{topic_of(Reading)}(d,c,a,b)", Reading)(b'["x",2.5,1,"hello"]') == READING
        with pytest.raises(CodecError, match="has no e"):
            decoder_for(TYPED, f"{topic_of(Reading)}(a,b,c,d,e)", Reading)(b'[1,"",1.0,"",2]')

    def test_columns_are_found_by_their_names_whatever_their_order(self) -> None:
        row = struct.pack("<BIdqI", 0, 1, 2.5, 1, 5) + b"xhello"
        assert decoder_for(PACKED, f"{topic_of(Reading)}(d:s,c:d,a:q,b:s)", Reading)(row) == READING
        assert decoder_for(PACKED, f"{topic_of(Frozen)}(a:q)", Frozen)(struct.pack("<Bq", 0, 7)) == Frozen(7)
        assert decoder_for(PACKED, "elsewhere.Thing(a:q)")(struct.pack("<Bq", 0, 7)) == {"a": 7}
        with pytest.raises(CodecError, match="has no e"):
            decoder_for(PACKED, f"{topic_of(Frozen)}(a:q,e:?)", Frozen)(struct.pack("<Bq?", 0, 7, True))

    def test_attributes_that_were_set_in_another_order(self) -> None:
        value = Reading(1, "b", 2.0, "d")
        del value.b
        value.b = "later"
        assert send(value, Reading) == Reading(1, "later", 2.0, "d")

    def test_a_field_the_sender_does_not_know_has_its_default(self) -> None:
        assert decoder_for(TYPED, f"{topic_of(Frozen)}(a)", Frozen)(b"[1]") == Frozen(1)
        assert decoder_for(TYPED, topic_of(Frozen), Frozen)(b'{"a":1}') == Frozen(1)
        name = topic_of(Computed)
        data = json.dumps({"~": "object", "t": name, "v": {"a": 1}}).encode()
        assert decoder_for(TAGGED, name, Computed)(data) == Computed(1)

    def test_a_named_tuple_s_too(self) -> None:
        name = topic_of(Place)
        data = json.dumps({"~": "object", "t": name, "v": {"x": 1}}).encode()
        assert decoder_for(TAGGED, name, Place)(data) == Place(1, 2)


@pytest.mark.usefixtures("unnamed")
class TestNamedByThisProcess:
    @staticmethod
    def sent(value: Any) -> tuple[int, str, bytes]:
        """As from another process: encoding names the class, so forget it again."""
        encoder = encoder_for(type(value))
        data = encoder.encode(value)
        _hints._named.clear()
        _hints._in_hints.clear()
        return encoder.form, encoder.type_name, data

    @pytest.mark.parametrize(
        ("value", "plain"),
        [
            *((READING, vars(READING)), (Plain(1), {"a": 1, "b": "b", "c": [1]}), (Point(1, 2.0), {"x": 1, "y": 2.0})),
            *((Color.RED, "red"), (Anything((READING,)), {"value": (vars(READING),)}), (Shouting(text="a"), {"text": "a!"})),
        ],
        ids=ids,
    )
    def test_an_unknown_type_is_plain_data(self, value: Any, plain: Any) -> None:
        form, name, data = self.sent(value)
        assert same(decoder_for(form, name)(data), plain)

    def test_what_is_in_an_unknown_type_is_what_was_sent(self) -> None:
        line = {"price": Decimal("1.50"), "name": "2020-01-01"}
        noon, by = datetime(2020, 1, 1, 12, 0, 0, 500), {"a": UUID(int=1)}
        bill = Bill(date(2020, 1, 1), [[], [noon]], by, [Line(**line)], None)
        form, name, data = self.sent(bill)
        assert form == TYPED
        assert same(decoder_for(form, name)(data), {**vars(bill), "lines": [line]})
        form, name, data = self.sent(replace(bill, due=None, first=bill.lines[0]))
        assert same(decoder_for(form, name)(data), {**vars(bill), "due": None, "lines": [line], "first": line})
        assert same(decoder_for(form, name.replace("uuid", "newer"))(data)["by"], {"a": str(UUID(int=1))})
        with pytest.raises(CodecError):
            decoder_for(form, name.replace("uuid", "decimal"))(data)

    def test_a_type_named_after_the_decoder_was_made(self) -> None:
        form, name, data = self.sent(READING)
        decode = decoder_for(form, name)
        assert type(decode(data)) is dict
        name_type(dict[str, Reading | None])
        assert decode(data) == READING

    def test_a_subclass_of_a_hint(self) -> None:
        form, name, data = self.sent(Urgent(1, "", 0.0, ""))
        assert type(decoder_for(form, name, Reading)(data)) is Urgent

    def test_a_subclass_of_what_was_only_sent_is_not_named(self) -> None:
        form, name, data = self.sent(Urgent(1, "", 0.0, ""))
        _hints.name_class(Reading)
        assert type(decoder_for(form, name)(data)) is dict

    def test_an_unknown_subclass_fits_exactly_or_not_at_all(self) -> None:
        fitting, extra = json.dumps(vars(READING)).encode(), json.dumps({**vars(READING), "e": 1}).encode()
        assert decoder_for(TYPED, "elsewhere.Rush", Reading)(fitting) == READING
        with pytest.raises(CodecError, match="has no e"):
            decoder_for(TYPED, "elsewhere.Rush", Reading)(extra)

    def test_the_classes_in_the_fields_of_a_hint(self) -> None:
        form, name, data = self.sent(replace(EVERYTHING, f=1.0, table={}, t=datetime(2020, 1, 1, tzinfo=timezone.utc)))
        assert form == TYPED
        assert type(decoder_for(form, name, Everything)(data).nested[0][0]) is Frozen

    def test_a_class_in_a_field_that_is_defined_later(self) -> None:
        decode = decoder_for(TAGGED, topic_of(Early), Early)
        late = dataclass(type("Late", (), {"__annotations__": {"a": int}, "__module__": __name__, "__qualname__": "Late"}))
        globals()["Late"] = late
        inner = {"~": "object", "t": topic_of(late), "v": {"a": 1}}
        assert decode(json.dumps({"~": "object", "t": topic_of(Early), "v": {"late": inner}}).encode()) == Early(late(1))

    def test_sending_names_the_class(self) -> None:
        encoder = encoder_for(Reading)
        assert decoder_for(TYPED, encoder.type_name)(encoder.encode(READING)) == READING

    def test_arguments(self) -> None:
        data = encode_arguments((READING,), {"k": Color.RED})
        _hints._named.clear()
        args, kwargs = decode_arguments(data)
        assert (args, kwargs) == ([vars(READING)], {"k": "red"})
        assert convert(args[0], Reading) == READING


GADGETS = [
    *(
        b"[" * 100_000,
        b'{"~":' * 100_000,
        b"1" * 5000,
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b'{"a":1,"a":2}',
        b"1e999",
        b"-1e999",
        b"NaN",
    ),
    *(
        b"",
        b"nul",
        b"[1",
        b'{"~":"no"}',
        b'{"~":[]}',
        b'{"~":{}}',
        b'{"~":"object"}',
        b'{"~":"object","t":"os.system","v":{"command":"id"}}',
    ),
    *(b'{"~":"object","t":["x"],"v":{}}', b'{"~":"object","t":"builtins.eval","v":[]}', b'{"~":"enum","t":"os","v":1}'),
    *(
        b'{"~":"object","t":"subprocess.Popen","v":{"args":["id"]}}',
        b'{"~":"enum","t":"pathlib.Path","v":"/"}',
        b'{"~":"zone","v":"../../etc/passwd"}',
    ),
    *(
        b'{"~":"zone","v":"os/path"}',
        b'{"~":"zone","v":["UTC"]}',
        b'{"~":"decimal","v":[1]}',
        b'{"~":"decimal","v":"1e99999999999999999999"}',
    ),
    *(
        b'{"~":"set","v":[[1]]}',
        b'{"~":"dict","v":[[1],[]]}',
        b'{"~":"dict","v":[[{"a":1}],[1]]}',
        b'{"~":"int","v":"zz"}',
        b'{"~":"str","v":[-1]}',
    ),
    *(
        b'{"~":"str","v":[1114112]}',
        b'{"~":"bytes","v":"*"}',
        b'{"~":"timezone","v":[1]}',
        b'{"~":"timedelta","v":[1e308]}',
        b'{"~":"datetime","v":1}',
    ),
    *(
        b'{"py/object":"os.system"}',
        b'{"__reduce__":["os.system",["id"]]}',
        b"cos\nsystem\n(S'id'\ntR.",
        b"!!python/object/apply:os.system ['id']",
    ),
    *(
        json.dumps({"~": "object", "t": name, "v": state}).encode()
        for name in (topic_of(Plain), topic_of(Model), topic_of(Point), topic_of(Slotted), topic_of(Color))
        for state in (
            {"__class__": "x"},
            {"a": 1, "__dict__": {}},
            {"__init__": 1},
            {"x": 1},
            [],
            {"a": 1, "__pydantic_extra__": 3},
        )
    ),
]


class TestHostileBytes:
    @pytest.mark.parametrize("form", [TYPED, TAGGED, PACKED])
    @pytest.mark.parametrize("hint", [Any, Reading, Model, Plain], ids=str)
    @pytest.mark.parametrize("data", GADGETS, ids=range(len(GADGETS)))
    def test_is_refused_or_plain_data(self, form: int, hint: Any, data: bytes) -> None:
        try:
            value = decoder_for(form, "os.system", hint)(data)
        except CodecError:
            return
        assert type(value) in (dict, float, int, str, Plain, Model, Point)

    def test_arguments(self) -> None:
        for data in [*GADGETS, b"[[],[[1,2]]]", b'[1,"ab"]']:
            try:
                args, kwargs = decode_arguments(data)
            except CodecError:
                continue
            pytest.fail(f"{data!r} became {args}, {kwargs}")

    @pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "os/path", "No/Where"])
    def test_no_zone_is_looked_for_that_does_not_exist(self, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(_tagged, "ZoneInfo", asked.append)
        with pytest.raises(CodecError, match="no time zone"):
            decoder_for(TAGGED, "x")(json.dumps({"~": "zone", "v": key}).encode())
        assert not asked

    def test_nothing_is_imported_opened_or_run(self) -> None:
        """In a process of its own, as an audit hook stays for good."""
        script = f"""
import sys
from tests.unit.test_codec import *
decoders = [decoder_for(form, "os.system", hint) for form in (TYPED, TAGGED) for hint in (Any, Reading, Model, Plain)]
def decode_all():
    for data in GADGETS:
        for decode in (*decoders, decode_arguments):
            try:
                decode(data)
            except CodecError:
                pass
decode_all()  # what Python and pydantic load when they are first used
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)) if event.split(".")[0] in {_FORBIDDEN!r} else None)
decode_all()
assert not seen, seen
open("/dev/null").close()
assert seen
"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


_FORBIDDEN = {"open", "import", "exec", "compile", "os", "subprocess", "socket", "ctypes", "marshal", "pickle", "shutil"}

scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=[])), st.binary()),
    *(st.decimals(), st.uuids(), st.dates(), st.times(), st.timedeltas(), st.datetimes(), st.sampled_from(Color)),
    st.datetimes(timezones=st.sampled_from([timezone.utc, ZoneInfo("UTC"), ZoneInfo("Asia/Kolkata"), ZoneInfo("America/St_Johns")])),
)
keys = st.one_of(st.text(max_size=3), st.just("~"), st.integers(), st.booleans(), st.none(), st.tuples(st.integers()))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        *(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4), st.tuples(inner, inner)),
        *(st.builds(Anything, inner), st.builds(Pair, inner, inner), st.frozensets(keys, max_size=4)),
    ),
    max_leaves=12,
)


class TestAnyValue:
    @given(values)
    def test_arrives_exactly(self, value: Any) -> None:
        assert same(send(value), value)
        assert same(decode_arguments(encode_arguments((value,), {})), ([value], {}))

    @given(st.builds(Reading, st.integers(), st.text(st.characters(exclude_categories=[])), st.floats(), st.text()))
    def test_typed(self, value: Reading) -> None:
        assert same(send(value, Reading), value)

    @given(
        st.builds(
            Everything,
            *(
                st.integers(),
                st.text(),
                st.floats(),
                st.booleans(),
                st.none(),
                st.decimals(),
                st.datetimes(),
                st.dates(),
                st.uuids(),
            ),
            *(st.sampled_from(Color), st.sampled_from(Level), st.lists(st.integers(), max_size=3), st.just([[Frozen(1)]])),
            *(st.dictionaries(st.text(), st.lists(st.floats(), max_size=3), max_size=3), st.none() | st.integers()),
            *(st.none() | st.text(), st.just(READING)),
        )
    )
    def test_every_typed_field(self, value: Everything) -> None:
        assert same(send(value, Everything), value)

    @given(st.builds(Reading, *[scalars] * 4))
    def test_exact_or_refused(self, value: Reading) -> None:
        """Whatever is in the fields: it arrives as it is, or it does not travel."""
        try:
            got = send(value, Reading)
        except CodecError:
            return
        assert same(got, value)

    @given(st.binary())
    def test_any_bytes(self, data: bytes) -> None:
        for form, fields in ((TYPED, ""), (TYPED, "(a,b,c,d)"), (TAGGED, ""), (PACKED, "(a:q,b:s,c:d,d:s)"), (PACKED, "(d:s,a:q)")):
            try:
                decoder_for(form, topic_of(Reading) + fields, Reading)(data)
            except CodecError:
                pass


def test_what_a_metaclass_does_to_a_new_instance_is_not_done_to_one_that_arrives() -> None:
    encoder = encoder_for(Counted)
    assert decoder_for(encoder.form, encoder.type_name, Counted)(encoder.encode(Counted(1))) == Counted(1)


def test_threads_make_one_encoder_each_right() -> None:
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(send(Urgent(1, "", 0.0, "")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [Urgent(1, "", 0.0, "")] * 8


class Odd(Enum):
    A = "\ud800"


class Wide(Enum):
    A = 1 << 63
    B = 1


@dataclass
class OddHolder:
    odd: Odd


@dataclass
class WideHolder:
    wide: Wide


@dataclass(frozen=True)
class FrozenSlots:
    __slots__ = ("x",)
    x: int


class FrozenHolder:
    def __init__(self, items: list[FrozenSlots]) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenHolder) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


class TestWhatAReviewFound:
    def test_keys_with_lone_surrogates_stay_apart(self) -> None:
        @dataclass
        class Snapshot:
            files: dict[str, int]

        there_and_back(Snapshot(dict(zip(["caf\udce9", "caf\udcea", "é"], range(3)))))

    def test_an_init_that_changes_what_it_is_given(self) -> None:
        @dataclass
        class Trail:
            steps: list[str]

            def __post_init__(self) -> None:
                self.steps.append("made")

        sent = Trail([])
        there_and_back(sent)
        assert sent.steps == ["made"]

    def test_what_an_init_is_given_may_be_frozen(self) -> None:
        received = there_and_back(FrozenHolder([FrozenSlots(1)]))
        assert received.items[0].x == 1

    def test_hints_that_take_no_none(self) -> None:
        @dataclass
        class Ended:
            x: Final[Optional[int]] = None

        there_and_back(Ended(3))

        def noted(items=None):  # type: ignore[no-untyped-def]
            pass

        noted.__annotations__ = {"items": [int]}
        if sys.version_info >= (3, 11):  # before, `typing` itself refuses what is no type beside a default of None
            assert handlers.hints_of(noted) == {"items": [int]}

    def test_a_dataclass_that_is_made_by_a_function(self) -> None:
        made = make_dataclass("made", [("a", int), ("b", List[str], field(default_factory=list))])  # noqa: UP006
        there_and_back(made(1, ["x"]))
        there_and_back(made(1 << 64))

    def test_bare_containers_of_typing(self) -> None:
        @dataclass
        class Batch:
            items: Optional[List] = None  # noqa: UP006
            names: Optional[Dict] = None  # noqa: UP006

        assert len(_hints.hints_of(Batch)) == 2
        there_and_back(Batch())
        there_and_back(Batch([1, "a"], {1: 2}))

    def test_an_enum_of_what_json_cannot_say(self) -> None:
        there_and_back(OddHolder(Odd.A))

    def test_an_enum_of_ints_that_pydantic_may_not_hold(self) -> None:
        assert encoder_for(WideHolder).form == TAGGED
        there_and_back(WideHolder(Wide.A))
        there_and_back(WideHolder(Wide.B))

    def test_a_typed_dict_whose_hints_only_type_checkers_can_resolve(self) -> None:
        hidden = TypedDict("hidden", {"a": "NobodyHasThis", "b": int})  # type: ignore[name-defined]  # noqa: F821, UP013
        assert codec.convert({"a": 1, "b": 2}, hidden) == {"a": 1, "b": 2}
        with pytest.raises(CodecError):
            codec.convert({"a": 1, "c": 2}, hidden)

    @pytest.mark.parametrize("value", [UserDict(a=1), UserList([1]), ChainMap({})])
    def test_containers_of_the_library_that_nobody_could_name(self, value: Any) -> None:
        with pytest.raises(CodecError, match="collections"):
            encoder_for(type(value)).encode(value)

    def test_dicts_with_other_keys_nest_half_as_deep(self) -> None:
        nested = [value := 1, *(value := {1: value} for _ in range(60))]
        there_and_back(nested[44])
        with pytest.raises(CodecError, match="nested deeper"):
            there_and_back(nested[60])

    def test_none_where_it_is_the_default(self) -> None:
        @dataclass
        class Data:
            note: str = None  # type: ignore[assignment]

        @dataclass(slots=True)
        class Slots:
            note: int = None  # type: ignore[assignment]

        @dataclass
        class Plain:
            note: str

            def __init__(self, note: str = None) -> None:  # type: ignore[assignment]  # noqa: RUF013
                self.note = note

        class Row(NamedTuple):
            note: str = None  # type: ignore[assignment]

        for cls in (Data, Slots, Plain, Row):
            there_and_back(cls())
        with pytest.raises(CodecError):
            encoder_for(Data).encode(Data(1))  # type: ignore[arg-type]
        assert handlers.hints_of(lambda: None) == {}
        assert handlers.hints_of(Plain.__init__)["note"] == Optional[str]


def there_and_back(value: Any) -> Any:
    encoder = encoder_for(type(value))
    received = decoder_for(encoder.form, encoder.type_name, type(value))(encoder.encode(value))
    assert received == value
    return received
