"""Row 22: no more open files. Errors that say so, nothing leaks, and with room for descriptors everything goes on."""

from __future__ import annotations

from stage import Nursery, Witness


def test_everything_fails_and_goes_on(actors: Nursery, witness: Witness) -> None:
    said = actors.run("cramp", str(witness.config.home), "", "descriptors")
    failed = set(said[0][1:])
    print(failed)
    assert (
        {"declare", "start"} <= failed <= {"put", "put_large", "publish", "publish_to_a_group", "declare", "subscribe", "call", "start"}
    )
    heard = witness.heard()
    assert heard[-1] == "after"
    assert set(heard[:-1]) <= {"x", ""}, "whole events only"
    assert witness.left_behind() == set()


def test_more_receivers_than_descriptors(actors: Nursery, witness: Witness) -> None:
    """200 subscribers, and a publisher that may open 64 files: an error that names the limit; raised, it reaches all of them."""
    said = actors.run("publish_to_many", str(witness.config.home), 200, 64)
    assert ["refused"] in said
    assert ["reached", "200"] in said
    witness.heard()
    assert witness.left_behind() == set()
