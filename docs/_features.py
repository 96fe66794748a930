"""`python docs/_features.py` writes the tables of docs/providers.md anew: what the providers' code says of itself.

A test holds the page to it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pymq.provider.base import Features
from pymq.provider.shm import ShmConfig, ShmProvider
from pymq.provider.simple import SimpleConfig, SimpleProvider

PAGE = Path(__file__).with_name("providers.md")
PROVIDERS = {"shm": ShmProvider.features, "simple": SimpleProvider.features}
CONFIGS = {"shm": ShmConfig, "simple": SimpleConfig}

OPTIONS = {
    "namespace": "who has the same one meets",
    "home": "the directory of all namespaces; by default `$PYMQ_HOME`, or `/dev/shm/pymq-<uid>`",
    "max_pending": "bytes that wait for one receiver of events before its publishers wait",
    "publish_timeout": "seconds that a publish waits, at most, for all full receivers together",
    "spin": "seconds that a receiver of events or replies yields the processor before it sleeps",
    "max_message_bytes": "the largest message",
    "max_queue_bytes": "bytes in one queue or group, what is leased and delayed included, before senders wait",
}


def features_table() -> str:
    """What each provider can do, with what the fields' docstrings say of them."""
    rows = [(f"`{name}`", text, *(_shown(name, getattr(each, name)) for each in PROVIDERS.values())) for name, text in _documented()]
    return _table(("feature", "what it says", *PROVIDERS), rows)


def _documented() -> Iterable[tuple[str, str]]:
    """The fields of Features, each with the docstring below it."""
    (cls,) = ast.parse(inspect.getsource(Features)).body
    assert isinstance(cls, ast.ClassDef)
    for field, text in pairwise(cls.body):
        if isinstance(field, ast.AnnAssign):
            yield ast.unparse(field.target), " ".join(ast.literal_eval(text.value).split())  # type: ignore[attr-defined]


def options_table(provider: str) -> str:
    """The fields of a provider's config and their defaults."""
    rows = [
        (f"`{field.name}`", _shown(field.name, field.default), OPTIONS[field.name]) for field in dataclasses.fields(CONFIGS[provider])
    ]
    return _table(("option", "default", "what it is"), rows)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(("_bytes", "_pending")):
        return f"{value >> 20} MiB"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{value!r}`" if name in OPTIONS else str(value)


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(heading), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def renewed(page: str) -> str:
    """The page with its tables, which stand between `<!-- name -->` and `<!-- end -->`, made anew."""
    tables = {"features": features_table(), **{name: options_table(name) for name in CONFIGS}}
    return re.sub(
        r"(<!-- (features|shm|simple) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[3]}",
        page,
        flags=re.S,
    )


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
