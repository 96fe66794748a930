"""Another user can neither read, list, write, replace nor squat what is ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from stage import Nursery, Witness

import pymq
from pymq.provider.shm import ShmConfig

pytestmark = [pytest.mark.needs_root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def test_nothing_of_ours_can_be_touched(actors: Nursery, witness: Witness, stage: Path) -> None:
    stage.chmod(0o1777)  # as /dev/shm itself
    witness.bus.queue("jobs").put("secret")
    home = stage / "pymq"
    files = [str(path) for path in home.rglob("*")]
    assert len(files) > 10
    before = sorted(map(str, stage.rglob("*")))
    said = actors.run("intrude", str(home), files, "/etc")
    assert [line for line in said if line[0] != "failed"] == []
    assert len(said) > 5 * len(files)
    assert sorted(map(str, stage.rglob("*"))) == before
    assert witness.bus.queue("jobs").get() == "secret"
    assert actors.run("look", str(home))[-1] == ["nobody"]
    witness.bus.queue("jobs").free()


SQUATS = ["directory", "open directory", "file", "fifo", "link to a directory of the victim's", "dangling link"]


@pytest.mark.parametrize("what", SQUATS)
def test_who_was_there_first_is_refused(what: str, actors: Nursery, stage: Path) -> None:
    """And nothing was followed or changed: the victim's own directory behind a link stays as it was."""
    stage.chmod(0o1777)
    home, target = stage / "pymq", stage / "private"
    target.mkdir(mode=0o700)
    actors.run("squat", str(home), what, str(target))
    with pytest.raises(pymq.ProviderError, match="set PYMQ_HOME to") as refusal:
        pymq.EventBus(ShmConfig(home=str(home))).start()
    assert str(home) in str(refusal.value)
    assert list(target.iterdir()) == []
    assert sorted(path.name for path in stage.iterdir()) == ["private", "pymq"]
    if what == "open directory":
        assert list(home.iterdir()) == []
        shutil.rmtree(home)
        with pymq.EventBus(ShmConfig(home=str(home))) as bus:  # the remedy that the message names
            assert bus.publish(1, "x") == 0
