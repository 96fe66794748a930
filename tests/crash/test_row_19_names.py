"""Row 19: names of any kind. Each is its own, or is refused with a ValueError; none becomes a path."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import GUARD, Heard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pymq
from pymq.provider._shm.files import decode_name, encode_name
from pymq.provider.ipc import IpcConfig
from pymq.provider.shm import ShmConfig

NASTY = [
    "",
    ".",
    "..",
    "/",
    "../..",
    "a/../../b",
    "a\0b",
    "a\n",
    "_",
    "%",
    "%2F",
    "~",
    "-rf",
    "*",
    "[a]",
    "x" * 5000,
    "ä" * 300,
    "\ud800",
]
names = st.text(st.characters(exclude_categories=[]), max_size=20) | st.sampled_from(NASTY) | st.text("./\0%~ \n", max_size=300)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(names, unique=True, max_size=8))
def test_file_names_are_injective(texts: list[str]) -> None:
    encoded = list(map(encode_name, texts))
    assert len(set(encoded)) == len(texts)
    for text, name in zip(texts, encoded):
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert "\0" not in name
        assert len(name.encode()) < 200
        assert decode_name(name) == (None if "~" in name else text)
        assert "~" not in name or len(text) > 10


@pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(names, unique=True, min_size=1, max_size=6))
def test_every_kind_of_name(place: Any, bus: pymq.EventBus, texts: list[str]) -> None:
    """Queues, channels, groups and remotes at once: what goes to one comes from that one alone."""
    heard, handlers, queues, groups = Heard(), {}, {}, {}
    for text in texts:
        handlers[text] = handler_of(text, heard)
        with suppress(ValueError):
            queues[text] = bus.queue(text)
            queues[text].put(text)
        with suppress(ValueError):
            groups[text] = bus.group(text)
            groups[text].bind(text)
        bus.subscribe(handlers[text], text)
        with suppress(ValueError):
            bus.expose(handlers[text], text)
    for text in texts:
        assert bus.publish(text, text) == 1 + (text in groups)
        assert heard.next() == (text, text)
    assert heard.rest() == []
    for text, queue in queues.items():
        assert queue.get(timeout=GUARD) == text
        assert queue.empty()
        queue.free()
    for text, group in groups.items():
        assert group.qsize() == 1
        group.delete()
        bus.unsubscribe(handlers[text], text)
    for text in texts:
        with suppress(ValueError):
            bus.unexpose(handlers[text])
        with suppress(ValueError):
            bus.unsubscribe(handlers[text], text)
    if hasattr(place, "home"):
        assert [path.name for path in place.home.parent.iterdir()] == [place.home.name], "nothing outside of it"


def handler_of(text: str, heard: Heard) -> Any:
    def handler(value: Any) -> None:
        heard((text, value))

    return handler


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(names, unique=True, min_size=2, max_size=3))
@pytest.mark.parametrize("place", ["shm"], indirect=True)
def test_namespaces(place: Any, texts: list[str]) -> None:
    buses = [pymq.EventBus(dataclasses.replace(place.config, namespace=text)) for text in texts]
    for bus in buses:
        bus.start()
    for bus, text in zip(buses, texts):
        bus.queue("same").put(text)
    assert {path.parent for path in place.home.glob("*")} == {place.home}
    assert len(list(place.home.iterdir())) == len(texts)
    for bus, text in zip(buses, texts):
        assert bus.queue("same").get(timeout=0) == text
        bus.queue("same").free()
        bus.shutdown()
    assert [path.name for path in Path(place.home).parent.iterdir()] in ([], [place.home.name])


@pytest.mark.parametrize(
    "what",
    ["notes.txt", "journal.txt", "queues/lp/job1", "inboxes/sent.txt", "bells/jingle", "photos/"],
)
@pytest.mark.parametrize("scheme", ["shm", "ipc"])
def test_a_namespace_that_is_somebody_elses_directory_is_refused(scheme: str, what: str, stage: Path) -> None:
    namespace = stage / {"shm": "printer", "ipc": "ipc.printer"}[scheme]
    (namespace / what).parent.mkdir(parents=True)
    (namespace / what).mkdir() if what.endswith("/") else (namespace / what).write_text("precious")
    refuses(scheme, namespace, what.rstrip("/"))


@pytest.mark.parametrize("content", [b"of births", b"births".ljust(4096)])
def test_a_registry_of_something_else_is_refused(content: bytes, stage: Path) -> None:
    namespace = stage / "printer"
    namespace.mkdir()
    (namespace / "registry").write_bytes(content)
    refuses("shm", namespace, "registry")
    assert (namespace / "registry").read_bytes() == content


def refuses(scheme: str, namespace: Path, stranger: str) -> None:
    for directory in [path for path in [namespace, *namespace.rglob("*")] if path.is_dir()]:
        directory.chmod(0o700)
    before = sorted(namespace.parent.rglob("*"))
    with pytest.raises(pymq.ProviderError, match="set PYMQ_HOME to another directory") as refusal:
        pymq.EventBus({"shm": ShmConfig, "ipc": IpcConfig}[scheme]("printer", home=str(namespace.parent))).start()
    assert f"{namespace}/{stranger} is not pymq's" in str(refusal.value)
    assert sorted(namespace.parent.rglob("*")) == before


def test_what_was_put_beside_a_namespaces_files_stays(stage: Path) -> None:
    with pymq.EventBus(ShmConfig("shop", str(stage))):
        (stage / "shop" / "photos").mkdir()
        for name in ("journal.txt", "journal.1.gz"):
            (stage / "shop" / name).write_text("precious")
    assert sorted(path.name for path in (stage / "shop").iterdir()) == ["journal.1.gz", "journal.txt", "photos"]


def test_a_log_that_is_no_inboxs_stays(stage: Path) -> None:
    for directory in (stage / "mail", stage / "mail" / "inboxes"):
        directory.mkdir(mode=0o700)
    log = stage / "mail" / "inboxes" / "sent.log"
    log.write_text("precious")
    pymq.EventBus(ShmConfig("mail", str(stage))).start()
    pymq.EventBus(ShmConfig("mail", str(stage))).shutdown()
    assert log.read_text() == "precious"
