"""What a channel may be called, what matches it, and what a message is."""

from __future__ import annotations

import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymq.pubsub import Channel, Message, fetch, publish, subscribe
from pymq.topics import WORDS as WORDS_MARK
from pymq.topics import Bindings, words_matcher

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "=", "+"]), min_size=1, max_size=6).map(".".join)
TOPICS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=6).map(".".join)
HEADERS = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text())


def as_regex(pattern: str) -> str:
    return re.escape(pattern).replace("=", "[^.]+").replace(r"\+", r"[^.]+(\.[^.]+)*")


@settings(deadline=None)
@given(WORDS, TOPICS)
def test_words_match_as_a_regular_expression_says(pattern, topic):
    assert words_matcher(pattern)(topic) == bool(re.fullmatch(as_regex(pattern), topic))


@pytest.mark.parametrize(
    ("pattern", "topics", "others"),
    [
        ("logs.=", ["logs.app"], ["logs", "logs.app.debug", "log.app", "logsx.app"]),
        ("logs.+", ["logs.app", "logs.app.debug"], ["logs", "app.logs.x"]),
        ("=.+.end", ["a.b.end", "a.b.c.end", "a.end.end"], ["a.end", "end", "a.b.end.x"]),
        ("+.b.=.c", ["a.b.x.c", "a.b.c.b.x.c"], ["a.b.x.y.c", "b.x.c"]),
        ("+", ["a", "a.b"], []),
    ],
)
def test_wildcards(pattern, topics, others):
    assert [topic for topic in topics + others if words_matcher(pattern)(topic)] == topics


def test_words_are_bound_within_their_space_and_beside_globs():
    bindings = Bindings()
    for queue, pattern in (("words", f"{WORDS_MARK}+"), ("glob", "e/*"), ("strange", "=e*")):
        bindings.bind(queue, pattern, False)
    assert bindings.matching(["e/a.b"]) == ["words", "glob"]
    assert bindings.matching(["r/a.b"]) == []
    assert bindings.matching(["=e"]) == ["strange"]


def test_no_topic_takes_long_to_match():
    begin = time.process_time()
    assert not words_matcher(".".join(["+.a"] * 60) + ".b")(".".join(["a"] * 600))
    assert time.process_time() - begin < 5  # 40 ms; a backtracking matcher would not end


@pytest.mark.parametrize(
    ("topic", "complaint"),
    [
        ("", "empty word"),
        ("a..b", "empty word"),
        (".a", "empty word"),
        ("a.", "empty word"),
        ("a.b_c", "'_'"),
        ("a/b", "'/'"),
        ("a.b\n", r"'\\n'"),
        ("ä.b", "'ä'"),
        ("a.b=", "'='"),
        ("a.++", r"'\+'"),
        ("a.*", r"'\*'"),
    ],
)
def test_a_bad_topic_says_what_is_wrong_with_it(topic, complaint):
    for use in (Channel, lambda topic: publish(topic, b"")):
        with pytest.raises(ValueError, match=complaint):
            use(topic)


@pytest.mark.parametrize("topic", ["a.=", "a.+", "=", "a.+.b"])
def test_nobody_publishes_to_wildcards(topic):
    with pytest.raises(ValueError, match=r"wildcards are for channels"):
        publish(topic, b"")


@pytest.mark.parametrize("topic", [None, b"a", 7, ["a"]])
def test_a_topic_is_a_text(topic):
    for use in (Channel, lambda topic: publish(topic, b""), lambda topic: Message(topic=topic, content=b"")):
        with pytest.raises(TypeError, match="a topic is a str"):
            use(topic)


@settings(deadline=None)
@given(TOPICS, st.binary(), HEADERS)
def test_a_message_survives_its_bytes(topic, content, headers):
    message = Message(topic=topic, content=content, headers=headers)
    twin = Message.from_bytes(message.to_bytes())
    assert (twin.topic, twin.content, twin.headers) == (topic, content, headers)
    assert (twin.id, twin.timestamp) == (message.id, message.timestamp)
    assert [type(value) for value in twin.headers.values()] == [type(value) for value in headers.values()]
    assert Message.from_bytes(memoryview(twin.to_bytes())).id == message.id


@pytest.mark.parametrize("headers", [{}, {"key": "value", "~": 1, "x": None}])
def test_changed_bytes_are_no_message(headers):
    good = Message(topic="a.b", content=b"content", headers=headers).to_bytes()
    bad = [good[:length] for length in range(len(good))] + [good + b"x", bytes(200)]
    bad += [good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :] for place in range(len(good)) for bit in range(8)]
    for data in bad:
        with pytest.raises(ValueError, match="no message"):
            Message.from_bytes(data)


def test_bytes_that_were_made_on_purpose_are_a_value_error_too():
    good = Message(topic="a", content=b"", headers={"k": 1})
    for evil in (b"[1,2]", b"{}", b'[[],[["headers",[1]]]]', b'[[],[["time",{}]]]', b'[[],[["headers",{"~":"dict"}]]]', b"[" * 9999):
        data = forged(good, evil)
        with pytest.raises(ValueError, match="not a message"):
            Message.from_bytes(data)


def forged(message: Message, options: bytes) -> bytes:
    """The bytes of a message with other options, and with a checksum that agrees."""
    from pymq import _channels
    from pymq.message import LENGTH, OPTIONS, pack_sequence

    frame = pack_sequence(1) + _channels._prefix(1, message.topic, OPTIONS) + LENGTH.pack(len(options)) + options
    return _channels._CHECKED.pack(b"pymq", _channels.crc32(frame)) + frame


def test_ids_are_unique_and_increase_in_all_threads():
    found: list[list[int]] = [[] for _ in range(4)]

    def make(ids: list[int]) -> None:
        ids.extend(Message(topic="a", content=b"").id for _ in range(2000))

    threads = [threading.Thread(target=make, args=(ids,)) for ids in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in found)
    assert len({identity for ids in found for identity in ids}) == 8000


def test_what_a_message_is():
    before = time.time_ns() // 1000
    message = Message(topic="a.b", content=bytearray(b"12345"))
    assert before <= message.timestamp <= time.time_ns() // 1000
    assert (message.topic, message.content, message.headers) == ("a.b", b"12345", {})
    assert repr(message) == f"Message(id={message.id}, topic='a.b', content_length=5)"
    with pytest.raises(AttributeError, match="nothing"):
        message.nothing  # noqa: B018


def test_a_message_equals_what_its_bytes_give_and_no_other():
    message = Message("a", b"x", headers={"k": 1})
    again = Message.from_bytes(message.to_bytes())
    assert (again, hash(again)) == (message, hash(message))
    assert message != Message("a", b"x", headers={"k": 1}), "another one with the same content"
    again.headers["k"] = 2
    assert again != message
    assert message != "a"


@pytest.mark.parametrize("headers", [{"k": b"x"}, {"k": [1]}, {1: "x"}, {"k": {}}, {"k": object()}, [("k", 1)], "k"])
def test_headers_are_texts_to_scalars(headers, home):
    for use in (lambda: Message(topic="a", content=b"", headers=headers), lambda: publish("a", b"", headers=headers)):
        with pytest.raises(TypeError, match="header"):
            use()


def test_headers_must_be_unicode(home):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        publish("a", b"", headers={"name": "\ud800"})


@pytest.mark.parametrize("data", ["text", None, 5, ["a"]])
def test_content_is_bytes_like(data, home):
    for use in (lambda: Message(topic="a", content=data), lambda: publish("a", data), lambda: Message.from_bytes(data)):
        with pytest.raises(TypeError, match=f"bytes-like, not {re.escape(repr(data))}"):
            use()


def test_what_is_no_channel_is_named():
    for use in (lambda: fetch("a"), lambda: subscribe("a", print)):
        with pytest.raises(TypeError, match=r"with Channel\('logs'\) as channel.*not 'a'"):
            use()
