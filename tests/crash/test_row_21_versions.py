"""Messages and files of other versions: what this one wrote once it must read for ever; what it does not know it skips, and says so."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from harness import GUARD

import pymq
from pymq import message as frames
from pymq.message import Prefix
from pymq.provider.shm import ShmConfig

GOLDEN = bytes.fromhex("07000000000000001c00010102002a00000000000000") + b'["n", "str", []]"golden"'
"""Version 1 of an event, as it was when that version was made."""


def test_a_golden_frame() -> None:
    prefix = Prefix(frames.EVENT, 2, 0, 42, "n", "str", ())
    assert frames.pack_sequence(7) + frames.pack_prefix(prefix) + b'"golden"' == GOLDEN
    assert frames.unpack(GOLDEN) == frames.Frame(7, prefix, {}, b'"golden"')


@pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)
@pytest.mark.parametrize("way", ["inbox", "group", "queue"])
def test_a_newer_version_is_skipped_and_reported(way: str, bus: pymq.EventBus, caplog: pytest.LogCaptureFixture) -> None:
    newer = bytearray(GOLDEN)
    newer[10] = 2
    got: SimpleQueue[Any] = SimpleQueue()
    bus.subscribe(got.put, "n", group="members" if way == "group" else None)
    jobs = bus.queue("jobs")
    target = {"inbox": bus.inbox, "group": bus.group("members").queue_of("n", False), "queue": "queue/jobs"}[way]
    with caplog.at_level(logging.WARNING, "pymq"):
        bus.provider.send(target, bytes(newer))
        bus.provider.send(target, GOLDEN)
        if way == "queue":
            with pytest.raises(pymq.CodecError, match="version 2"):
                jobs.get(timeout=0)
            assert jobs.get(timeout=0) == "golden"
            assert len(jobs.dead) == 1
        else:
            assert got.get(timeout=GUARD) == "golden"
            assert any(re.search("version 2|newer pymq", record.getMessage()) for record in caplog.records)
    jobs.dead.purge()
    jobs.free()
    bus.provider.delete("queue-dead/jobs")
    bus.group("members").delete()


def test_two_versions_in_one_place(place_of_two: Any, heard: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A program with a newer pymq, whose messages are of another version and whose files are the same: it is heard of, not heard."""
    config, newer = place_of_two
    with pymq.EventBus(config) as bus, caplog.at_level(logging.WARNING, "pymq"):
        bus.subscribe(heard, "n")
        jobs = bus.queue("jobs")
        done = subprocess.run([sys.executable, "-c", NEWER, str(config.home)], check=False, **newer)
        assert (done.stdout, done.stderr) == ("reached 1\n", "")
        assert bus.publish("of our own", "n") == 1
        assert heard.next() == "of our own"
        assert "newer pymq" in caplog.text or "version 2" in caplog.text
        with pytest.raises(pymq.CodecError, match="version 2"):
            jobs.get(timeout=GUARD)
        assert len(jobs.dead) == 1
        jobs.dead.purge()
        jobs.free()
        bus.provider.delete("queue-dead/jobs")


def test_files_of_another_version_are_refused(place_of_two: Any) -> None:
    config, newer = place_of_two
    library = Path(newer["cwd"], "pymq", "provider", "_shm", "registry.py")
    text = library.read_text()
    library.write_text(re.sub(r'(_VERSION = int.from_bytes\(b"pymq-r..)..', r"\1\\9", text))
    assert library.read_text() != text
    with pymq.EventBus(config) as bus:
        bus.queue("jobs").put("untouched")
        done = subprocess.run([sys.executable, "-c", NEWER, str(config.home)], check=False, **newer)
        assert done.stdout == ""
        assert re.search("ProviderError: .* is of another version of pymq .* remove it", done.stderr)
        assert bus.queue("jobs").get(timeout=0) == "untouched"
        bus.queue("jobs").free()


NEWER = """
import sys
import pymq
from pymq.provider.shm import ShmConfig

with pymq.EventBus(ShmConfig("versions", sys.argv[1])) as bus:
    print("reached", bus.publish("of a newer version", "n"))
    bus.queue("jobs").put("of a newer version")
"""


@pytest.fixture
def place_of_two(stage: Path, tmp_path: Path) -> Iterator[Any]:
    """A config, and how to run programs that import a pymq whose messages are of version 2: from where they begin."""
    shutil.copytree(Path(pymq.__file__).parent, tmp_path / "pymq")
    message = tmp_path / "pymq" / "message.py"
    message.write_text(message.read_text().replace("\nVERSION = 1\n", "\nVERSION = 2\n"))
    program = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60}
    yield ShmConfig("versions", str(stage / "pymq")), program
    assert list((stage / "pymq").rglob("*")) == []
