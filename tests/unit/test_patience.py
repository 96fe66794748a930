"""Who waits for an answer looks again before it sleeps, while that pays."""

from __future__ import annotations

import itertools

from pymq.patience import MOMENT, Patience

SHORT, LONG = MOMENT, 10 * MOMENT


def looks(patience: Patience, waits: int, waited: float, pays: bool) -> list[int]:
    """In which of so many waits it was looked again."""
    found = []
    for number in range(waits):
        looked = patience.seconds > 0
        patience.learn(looked, looked and not pays, waited)
        found += [number] if looked else []
    return found


def test_in_vain_it_is_tried_less_and_less_often() -> None:
    assert looks(Patience(), 40, SHORT, pays=False) == [1, 4, 9, 18, 35]


def test_the_pauses_have_a_limit() -> None:
    patience = Patience()
    tries = looks(patience, 20_000, SHORT, pays=False)
    assert max(later - sooner for sooner, later in itertools.pairwise(tries)) == 1025


def test_while_it_pays_it_goes_on_and_failures_are_forgotten() -> None:
    patience = Patience()
    looks(patience, 10, SHORT, pays=False)
    assert looks(patience, 12, SHORT, pays=True) == [8, 9, 10, 11]
    assert looks(patience, 4, SHORT, pays=False) == [0, 3]


def test_long_waits_would_not_have_been_shortened() -> None:
    assert looks(Patience(), 1000, LONG, pays=True) == []
