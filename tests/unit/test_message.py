"""A message in two pieces is, to everyone who looks at it, the whole one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pymq import message as frames
from pymq.message import EVENT, TAGGED, Prefix, Split

places = st.none() | st.integers(-12, 12)


@given(st.binary(max_size=6), st.binary(min_size=1, max_size=6), places, places)
def test_it_is_measured_and_sliced_as_the_whole(head: bytes, payload: bytes, start: int | None, stop: int | None) -> None:
    split, whole = Split(head, payload), head + payload
    assert len(split) == len(whole)
    assert [split[place] for place in range(len(whole))] == list(whole)
    assert split[start:stop] == whole[start:stop]
    assert type(split[start:stop]) is bytes


def test_its_payload_is_not_copied() -> None:
    payload = bytes(100_000)
    assert Split(b"head", payload)[4:] is payload
    packed = frames.pack_sequence(7) + frames.pack_prefix(Prefix(EVENT, TAGGED, 0, 1, "channel", "str", ()))
    frame = frames.unpack(Split(packed, payload))
    assert frame.payload is payload
    assert (frame.sequence, frame.prefix.channel) == (7, "channel")
