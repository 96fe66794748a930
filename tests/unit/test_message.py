"""A message whose payload is beside its head is read like any other."""

from __future__ import annotations

from pymq import message as frames
from pymq.message import EVENT, TAGGED, Head, Prefix


def test_a_payload_beside_its_head_is_not_copied() -> None:
    payload = bytes(100_000)
    packed = frames.pack_sequence(7) + frames.pack_prefix(Prefix(EVENT, TAGGED, 0, 1, "channel", "str", ()))
    head = Head(packed)
    head.payload = payload
    frame = frames.unpack(head)
    assert frame.payload is payload
    assert (frame.sequence, frame.prefix.channel) == (7, "channel")
    assert frames.size_of(head) == len(packed) + 100_000
    assert frames.size_of(packed) == len(packed)
    assert frames.unpack(packed).payload == b""
