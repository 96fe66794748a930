"""The back-off of failed events."""

from __future__ import annotations

from pymq.deliveries import MAX_BACKOFF, Policy


def test_the_back_off_doubles_up_to_an_hour_and_spreads():
    policy = Policy(retries=5, backoff=2.0, dead_queue="")
    for failures, longest in [(1, 2.0), (2, 4.0), (3, 8.0), (11, 2048.0), (12, MAX_BACKOFF), (100_000, MAX_BACKOFF)]:
        delays = [policy.delay(failures) for _ in range(1000)]
        assert longest * 0.75 <= min(delays) < longest * 0.8, "a jitter of a quarter"
        assert longest * 0.95 < max(delays) <= longest
    assert Policy(5, 0.0, "").delay(3) == 0
