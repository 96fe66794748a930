"""What type checkers say: the programs of README and docs are accepted, strictly, and the whole package is typed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT
from test_readme import PAGES, blocks_of

import pymq
import pymq.asyncio
from pymq.provider.simple import SimpleConfig

PYRIGHT = "basedpyright"
"""Pyright as a wheel with all it needs; the package `pyright` fetches its program from elsewhere when it is first run."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed, and nothing of the checkout beside it."""
    site = tmp_path_factory.mktemp("site")
    (site / "pymq").symlink_to(ROOT / "pymq")
    return site


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each page's blocks as one program, its terminals' as others."""
    directory = tmp_path_factory.mktemp("programs")
    (directory / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    for page in PAGES:
        blocks = [block for block in blocks_of(page.read_text()) if block.language == "python"]
        name = page.stem.lower().replace("-", "_")
        (directory / f"{name}_page.py").write_text("\n".join(block.source for block in blocks if block.word is None))
        terminals = {str(block.argument): block.source for block in blocks if block.word == "terminal"}
        stems = "|".join(Path(file).stem for file in terminals)
        for file, source in terminals.items():  # one may import another
            (directory / f"{name}_{file}").write_text(re.sub(rf"^(from|import) ({stems})\b", rf"\1 {name}_\2", source, flags=re.M))
    return directory


def checked(*command: str, cwd: Path, site: Path | str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "MYPYPATH": str(site)}
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_mypy_accepts_the_programs_of_readme_and_docs(programs, site):
    done = checked("mypy", "--strict", "--config-file=", "--follow-imports=silent", ".", cwd=programs, site=site)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_accepts_the_programs_of_readme_and_docs(programs, site):
    done = checked(PYRIGHT, "--pythonpath", sys.executable, ".", cwd=programs, site=site)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_accepts_the_examples(site):
    examples = [directory for directory in (ROOT / "examples").iterdir() if directory.is_dir()]
    site = f"{site}:{':'.join(map(str, examples))}"
    files = [str(file) for directory in examples for file in directory.glob("*.py")]
    assert len(files) > 8
    done = checked("mypy", "--strict", "--config-file=", "--follow-imports=silent", *files, cwd=ROOT / "examples", site=site)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_public_is_typed(site):
    command = (PYRIGHT, "--pythonpath", sys.executable, "--verifytypes", "pymq", "--ignoreexternal", "--outputjson")
    found = json.loads(checked(*command, cwd=site, site=site).stdout)["typeCompleteness"]
    unknown = [symbol["name"] for symbol in found["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    ambiguous = [symbol["name"] for symbol in found["symbols"] if symbol["isExported"] and symbol["isTypeAmbiguous"]]
    assert (found["completenessScore"], unknown, ambiguous) == (1, [], [])


PROGRAM = """
import asyncio
import pymq
import pymq.asyncio
from dataclasses import dataclass

@dataclass
class Job:
    number: int

def product(a: int, b: int = 2) -> int:
    return a * b

async def slow_product(a: int, b: int = 2) -> int:
    return a * b

reveal_type(pymq.stub(product, multi=True)(3))
async def main() -> None:
    async with pymq.asyncio.connect() as bus:
        reveal_type(await bus.publish(Job(1)))
        reveal_type(await bus.stub(product)(1))
        reveal_type(await bus.stub(slow_product)(1))
        reveal_type(await bus.stub(product, multi=True)(1, b=3))
        async for result in bus.stub(product, multi=True)(1):
            reveal_type(result)
        async for event, message in bus.events(Job):
            reveal_type(event)
            reveal_type(message)
        reveal_type(await bus.queue("jobs", type=Job).get())
        async with bus.queue("jobs", type=Job).take() as job:
            reveal_type(job.value)
        await bus.stub(product)("three")
        await bus.queue("jobs", type=Job).put("four")
"""

REVEALED = ["list[int]", "int | None", "int", "int", "list[int]", "int", "Job", "Message", "Job", "Job"]


def test_what_pyright_makes_of_stubs_events_and_queues(tmp_path, site):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = checked(PYRIGHT, "--pythonpath", sys.executable, "--outputjson", ".", cwd=tmp_path, site=site)
    found = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [each["message"].split('" is "')[1][:-1] for each in found if each["severity"] == "information"]
    assert revealed == REVEALED
    errors = [each["message"] for each in found if each["severity"] == "error"]
    assert len(errors) == 2, errors
    assert all('"Literal[' in error for error in errors)


def test_the_checkers_would_find_something(tmp_path, site):
    (tmp_path / "program.py").write_text("import pymq\n\npymq.queue('jobs', type=int).put('text')\n")
    assert checked("mypy", "--strict", "--config-file=", "--follow-imports=silent", ".", cwd=tmp_path, site=site).returncode == 1
    assert checked(PYRIGHT, "--pythonpath", sys.executable, ".", cwd=tmp_path, site=site).returncode == 1


ACCEPTED_AND_REFUSED = """
import pymq
import pymq.asyncio
from dataclasses import dataclass

@dataclass
class Job:
    number: int

def product(a: int, b: int = 2) -> int:
    return a * b

async def slow_product(a: int) -> int:
    return a

def note(text: str) -> None: ...

bus, loop = pymq.EventBus(), pymq.asyncio.EventBus()

def accepted(multi: bool) -> None:
    first: pymq.Queue[Job] = bus.queue("jobs", type=Job, maxsize=3)
    either: pymq.Queue[int | str] = pymq.queue("jobs", int | str)
    also: pymq.Queue[int | str] = bus.queue("jobs", type=int | str)
    more: pymq.asyncio.Queue[int | str] = loop.queue("jobs", type=int | str)
    any_type = bus.queue("jobs").get().anything
    number: int = bus.stub(product)(1, b=2)
    numbers: list[int] = bus.stub(slow_product, multi=True)(1)
    error: bool = bus.stub(product).rpc(1).error
    errors: list[bool] = [response.error for response in bus.stub("product", multi=True).rpc(1)]
    length: int = len(pymq.stub("product", multi=True)(1)) + len(pymq.stub(product, multi=True).rpc(1))
    anything: str = pymq.stub("product", multi=multi)(1)
    pymq.subscriber("x", True, "billing", retries=3, backoff=0.5, lease=3.0, workers=2)(note)
    bus.subscriber(channel="x", pattern=True, group="billing", retries=3)(note)
    loop.subscriber("x", group="billing", retries=3)(note)
    pymq.subscribe(note, "x", group="billing", retries=3)
    pymq.remote(product)(1, 2)
    bus.remote(channel="product")(product)(1, 2)
    loop.remote("product")(product)(1, 2)

def refused() -> None:
    bus.queue("jobs", type=Job).put("text")
    pymq.queue("jobs", type=Job).put("text")
    bus.stub(product)("text")
    bus.stub(product, multi=True)("text")
    pymq.stub(product).rpc(1).wrong
    pymq.stub("product", multi=True)(1).wrong
    pymq.subscriber("x", group="billing", retry=2)(note)
    bus.subscriber("x", group="billing", retry=2)(note)
    loop.subscriber("x", group="billing", retries="two")(note)
    pymq.subscribe(note, "x", retry=2)
    pymq.remote(name="product")(product)
    bus.remote(name="product")(product)
    loop.remote(name="product")(product)
"""


@pytest.mark.parametrize("checker", ["mypy", PYRIGHT])
def test_what_is_refused_and_what_is_not(checker, tmp_path, site):
    (tmp_path / "program.py").write_text(ACCEPTED_AND_REFUSED)
    options = {"mypy": ["--strict", "--config-file=", "--follow-imports=silent"], PYRIGHT: ["--pythonpath", sys.executable]}
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    found = checked(checker, *options[checker], "program.py", cwd=tmp_path, site=site).stdout
    lines = ACCEPTED_AND_REFUSED.splitlines()
    first = lines.index("def refused() -> None:") + 2
    wrong = sorted({int(line) for line in re.findall(r"program\.py:(\d+):.*error", found)})
    assert wrong == list(range(first, len(lines) + 1)), found


class Holder:
    async def takes_nothing(self) -> None: ...


WRONG: dict[str, Any] = {
    "nothing": lambda: None,
    "three": lambda event, message, more: None,
    "a keyword": lambda event, *, more: None,
    "a method of nothing": Holder().takes_nothing,
    "no function": "print",
}


@pytest.mark.parametrize("handler", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("how", ["subscribe", "subscriber", "group", "before init", "loop"])
def test_a_handler_with_a_wrong_signature_is_refused_and_a_right_one_shown(handler, how):
    with pytest.raises(TypeError, match=r"(?s)takes the event.*def on_order\(event: OrderPlaced, message: pymq.Message\)") as raised:
        subscribe(handler, how)
    assert (getattr(handler, "__qualname__", None) or repr(handler)) in str(raised.value)


def subscribe(handler: Any, how: str) -> None:
    bus = pymq.EventBus(SimpleConfig("types"))
    if how == "before init":
        return bus.subscribe(handler, "news")
    if how == "loop":
        return asyncio.run(subscribe_in_loop(handler))
    with bus:
        if how == "subscriber":
            return bus.subscriber(channel="news")(handler)
        return bus.subscribe(handler, "news", group="readers" if how == "group" else None)


async def subscribe_in_loop(handler: Any) -> None:
    async with pymq.asyncio.connect(SimpleConfig("types")) as bus:
        await bus.subscribe(handler, "news")


def test_a_handler_that_says_no_class_is_refused_and_told_how_to_say_one():
    with pytest.raises(ValueError, match="annotate its first parameter with one, or give channel="):
        pymq.EventBus(SimpleConfig("types")).subscribe(lambda event: None)
