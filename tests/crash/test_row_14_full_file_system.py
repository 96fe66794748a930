"""No room on a file system of 1 MiB, by bytes or by inodes: errors that say so, never a signal; with room, everything goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import Nursery, Witness

from pymq.provider.shm import ShmConfig

pytestmark = [pytest.mark.needs_root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    command = ["mount", "-t", "tmpfs", "-o", f"{request.param},mode=700", "tmpfs", str(tmp_path)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


VERBS = {"put", "put_large", "publish", "publish_to_a_group", "declare", "subscribe", "call", "start"}


@pytest.mark.parametrize(("mount", "by"), [("size=1m", "bytes"), ("size=1m,nr_inodes=60", "inodes")], indirect=["mount"])
def test_everything_fails_and_goes_on(mount: Path, by: str, actors: Nursery) -> None:
    home = mount / "pymq"
    witness = Witness(ShmConfig("faults", str(home), max_pending=1 << 20, publish_timeout=0.05))
    try:
        said = actors.run("cramp", str(home), str(mount), by)
        failed = set(said[0][1:])
        assert failed <= VERBS, said
        assert failed >= (
            {"put", "put_large", "declare", "subscribe", "call"} if by == "bytes" else {"declare", "start", "subscribe", "call"}
        ), said
        heard = witness.heard()
        assert heard[-1] == "after"
        assert set(heard[:-1]) <= {"x", ""}, "whole events only"
        assert witness.left_behind() == set()
    finally:
        witness.close()
    assert list(home.rglob("*")) == []
