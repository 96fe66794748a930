"""Row 20: patterns made to take for ever. Matching is linear, and says what the standard library's says."""

from __future__ import annotations

import fnmatch
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from programs import shop

from pymq.topics import matcher


def test_a_hostile_pattern_costs_nothing(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.channels, "a*" * 40 + "b", pattern=True)
    started = time.monotonic()
    for length in (2000, 4000):
        alice.publish("x", "a" * length)
    alice.publish("x", "a" * 4000 + "b")
    assert bob.hear() == "a" * 4000 + "b"
    assert time.monotonic() - started < 5


def test_time_grows_with_the_product_of_the_lengths_at_most() -> None:
    """A backtracking matcher would not end with any of these."""
    begun = time.process_time()
    for pattern in ("a*" * 5000 + "b", "*a" * 5000, "?*" * 5000, "[ab]*" * 2500 + "c", "*" * 10_000 + "x"):
        assert not matcher(pattern)("a" * 4000)
    assert time.process_time() - begun < 20  # 1 s


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(st.text("ab*?c", max_size=8), st.text("abc", max_size=8))
def test_it_says_what_the_standard_library_says(pattern: str, topic: str) -> None:
    assert matcher(pattern)(topic) == fnmatch.fnmatchcase(topic, pattern)
