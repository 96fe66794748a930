"""The script, cut to what a batch of operations needs.

A server runs a script from its first line each time, and defining all functions takes it longer than most operations do: 35 us of 57
for a batch of none. So a batch is run by a script that has only the functions which its operations use; and those that are marked as
rare, with what only they use, are defined when one of them is called.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pymq.provider._redis.operations import Operation

PARTS = ("start", "inboxes", "queues", "members", "sending", "receiving", "numbers", "calls", "batch")
SOURCE = "\n".join([Path(__file__).with_name("lua").joinpath(f"{part}.lua").read_text() for part in PARTS])
MOST_KINDS = 3
"""Kinds of operations for which there is a script of their own: a server keeps all that it has seen."""
_FUNCTION = re.compile(r"^(?:local function |function operations\.)(\w+)", re.M)
_BLOCKS = SOURCE.split("\n\n")


class Script(NamedTuple):
    """A script's text and the name that the server has for it."""

    text: bytes
    sha: bytes


def script_for(operations: Sequence[Operation]) -> Script:
    """What runs a batch of these."""
    if len(operations) == 1:
        return script(operations[0].name)
    names = {operation.name for operation in operations}
    return script(*sorted(names)) if len(names) <= MOST_KINDS else script()


def _script(text: bytes) -> Script:
    return Script(text, hashlib.sha1(text).hexdigest().encode())


REPLY = _script(Path(__file__).with_name("lua").joinpath("reply.lua").read_bytes())
"""A script of its own, which takes the server 12 us where `send` takes it 35: half of these are for defining functions."""


@lru_cache(1000)
def script(*names: bytes) -> Script:
    """The script of these operations, or, without a name, of all."""
    wanted = {name.decode() for name in names} or {name for name in map(_name, _BLOCKS) if f"function operations.{name}" in SOURCE}
    defined = _needed({"", *wanted}, into_rare=False)
    text = "\n\n".join(_late(block, defined) if _is_rare(block) else block for block in _BLOCKS if _name(block) in defined).encode()
    return _script(text)


def _needed(names: Collection[str], into_rare: bool) -> set[str]:
    """These functions and those that they call; of the rare ones only the name, or what they call as well."""
    wanted = set(names)
    for block in reversed(_BLOCKS):  # what a function calls stands before it
        if _name(block) in wanted and (into_rare or not _is_rare(block)):
            wanted |= set(re.findall(r"(\w+)\(", block))
    return wanted


def _late(block: str, defined: set[str]) -> str:
    """A function that defines itself, and what it lacks, when it is called first."""
    name = _name(block)
    inner = _needed({name}, into_rare=True) - (defined - {name})
    parts = [each for each in _BLOCKS if _name(each) and _name(each) in inner]
    start = f"local late_{name}\nlocal function {name}(...)\nif not late_{name} then"
    return "\n".join([start, *parts, f"late_{name} = {name}\nend\nreturn late_{name}(...)\nend"])


def _is_rare(block: str) -> bool:
    return ")  -- rare\n" in block


def _name(block: str) -> str:
    """The function that a block defines; none for what every script has."""
    found = _FUNCTION.search(block)
    return found[1] if found else ""
