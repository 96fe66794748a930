"""Fixtures of the shared queue's tests."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from shm_peers import Peer

spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def home() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="pymq-test-", dir="/dev/shm")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def peer(home: str) -> Iterator[Peer]:
    with Peer(home) as made:
        yield made


@pytest.fixture
def other(home: str, peer: Peer) -> Iterator[Peer]:
    with Peer(home) as made:
        yield made


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    started = []

    def begin(target: Callable[..., None], *args: object) -> Any:
        process = spawn.Process(target=target, args=args, daemon=True)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()
