"""The script, whole or cut to what one operation needs, and operations as it reads them.

A server runs a script from its first line each time, and defining all functions takes it longer than most operations do: 35 us of 57
for a batch of none. So a batch of one kind of operation is run by a script that has only that operation's functions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pymq.provider._redis.wire import bulks

SOURCE = Path(__file__).with_name("script.lua").read_text()
_FUNCTION = re.compile(r"^(?:local function |function operations\.)(\w+)", re.M)


class Script(NamedTuple):
    """A script's text and the name that the server has for it."""

    text: bytes
    sha: bytes


class Operation(NamedTuple):
    """One operation: its name, how many arguments of the command it takes, and these, packed."""

    name: bytes
    words: int
    data: bytes


def packed(name: bytes, *arguments: bytes) -> Operation:
    """An operation with its arguments."""
    return Operation(name, len(arguments) + 2, bulks((name, b"%d" % len(arguments), *arguments)))


def script_for(operations: Sequence[Operation]) -> Script:
    """What runs a batch of these."""
    names = {operation.name for operation in operations}
    return script(names.pop() if len(names) == 1 else b"")


@lru_cache
def script(name: bytes) -> Script:
    """The script of one operation, or, without a name, of all."""
    blocks = SOURCE.split("\n\n")
    wanted = {"", name.decode()} if name else {_name(block) for block in blocks}
    for block in reversed(blocks):  # what a function calls stands before it
        if _name(block) in wanted:
            wanted |= set(re.findall(r"(\w+)\(", block))
    text = "\n\n".join(block for block in blocks if _name(block) in wanted).encode()
    return Script(text, hashlib.sha1(text).hexdigest().encode())


def _name(block: str) -> str:
    """The function that a block defines; none for what every script has."""
    found = _FUNCTION.search(block)
    return found[1] if found else ""
