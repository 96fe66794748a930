"""`python docs/_features.py` writes the tables of the pages on providers anew: what the providers' code says of itself.

A table stands between `<!-- features -->` or `<!-- options -->` and `<!-- end -->`. A test holds the pages to it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pymq.provider.aws import AwsConfig, AwsProvider
from pymq.provider.base import Features
from pymq.provider.ipc import IpcConfig, IpcProvider
from pymq.provider.redis import RedisConfig, RedisProvider
from pymq.provider.shm import ShmConfig, ShmProvider
from pymq.provider.simple import SimpleConfig, SimpleProvider

DOCS = Path(__file__).parent
FEATURES = {
    "shm": ShmProvider.features,
    "simple": SimpleProvider.features,
    "redis": RedisProvider.features,
    "aws": AwsProvider.features,
    "ipc": IpcProvider.features,
}
CONFIGS = {"shm": ShmConfig, "simple": SimpleConfig, "redis": RedisConfig, "aws": AwsConfig, "ipc": IpcConfig}

OPTIONS = {
    "namespace": "who has the same one meets",
    "home": "the directory of all namespaces; by default `$PYMQ_HOME`, or `/dev/shm/pymq-<uid>`",
    "max_pending": "bytes that wait for one receiver of events before its publishers wait",
    "publish_timeout": "seconds that a publish waits, at most, for all full receivers together",
    "spin": "seconds (0.05 at most) that a receiver yields the processor before it sleeps; by default only in a conversation",
    "max_message_bytes": "the largest message",
    "session": "a `boto3.Session`; without one, what the environment says",
    "region": "the region; without one, what the environment says",
    "endpoint_url": "the URL of an emulator, or of another endpoint",
    "ordered": "FIFO topics and queues; the same for all participants",
    "lease": "seconds after which a process that has not said that it lives is dead",
    "refresh": "seconds for which it may be believed who serves a remote, and that nobody binds a pattern",
    "poll": "seconds for which SQS is asked to wait for messages, 1 to 20",
    "max_queue_bytes": "bytes in one queue or group, what is leased and delayed included, before senders wait",
}


def features_table(names: Iterable[str] = FEATURES) -> str:
    """What these providers can do, with what the fields' docstrings say of them."""
    rows = [(f"`{field}`", text, *(_shown(field, getattr(FEATURES[name], field)) for name in names)) for field, text in _documented()]
    return _table(("feature", "what it says", *names), rows)


def _documented() -> Iterable[tuple[str, str]]:
    """The fields of Features, each with the docstring below it."""
    (cls,) = ast.parse(inspect.getsource(Features)).body
    assert isinstance(cls, ast.ClassDef)
    for field, text in pairwise(cls.body):
        if isinstance(field, ast.AnnAssign):
            yield ast.unparse(field.target), " ".join(ast.literal_eval(text.value).split())  # type: ignore[attr-defined]


def options_table(provider: str) -> str:
    """The fields of a provider's config and their defaults."""
    parameters = inspect.signature(CONFIGS[provider]).parameters.values()
    rows = [(f"`{each.name}`", _shown(each.name, each.default), OPTIONS[each.name]) for each in parameters if each.name in OPTIONS]
    return _table(("option", "default", "what it is"), rows)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(("_bytes", "_pending")):
        return f"{value >> 20} MiB" if value >= 1 << 20 else f"{value >> 10} KiB"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{value!r}`" if name in OPTIONS else str(value)


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(heading), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def pages() -> dict[Path, str]:
    """Each page with tables, as it ought to be."""
    overview = DOCS / "providers.md"
    return {overview: renewed(overview, FEATURES)} | {
        path: renewed(path, [path.stem]) for path in sorted((DOCS / "providers").glob("*.md")) if path.stem in FEATURES
    }


def renewed(path: Path, names: Iterable[str]) -> str:
    """The page, with its tables made anew for these providers."""
    tables = {"features": partial(features_table, names), "options": partial(options_table, path.stem)}
    pattern = re.compile(rf"(<!-- ({'|'.join(tables)}) -->\n).*?(<!-- end -->)", re.S)
    return pattern.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n{found[3]}", path.read_text())


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
