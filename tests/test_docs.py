"""What the docs say of the code is so: tables, files, tests, commands."""

from __future__ import annotations

import ast
import os
import re
import runpy
from pathlib import Path

import pytest
from test_readme import blocks_of

import pymq

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_the_tables_of_the_providers_are_the_codes() -> None:
    page = (DOCS / "providers.md").read_text()
    tables = runpy.run_path(str(DOCS / "_features.py"))
    assert tables["features_table"]() in page
    assert page == tables["renewed"](page), "run python docs/_features.py"


def test_every_file_of_the_package_is_in_the_design() -> None:
    listed = set(re.findall(r"^\| `(pymq/[\w./]+)` \|", (DOCS / "design.md").read_text(), re.M))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "pymq").rglob("*.py")} | {"pymq/py.typed"}
    assert {name for name in files if not name.startswith("pymq/cli/demo/")} | {"pymq/cli/demo/"} == listed


def test_every_test_that_a_page_names_exists() -> None:
    named = [found for page in DOCS.glob("*.md") for found in NAMED_TEST.findall(page.read_text())]
    assert len(named) > 30
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(ROOT / file)] == []


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = re.search(r"^:::\{toctree\}\n(.*?)^:::", (DOCS / "index.md").read_text(), re.M | re.S)
    assert contents is not None
    assert {f"{line}.md" for line in contents[1].split() if line.isalpha()} == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_the_tree_of_errors_is_the_codes() -> None:
    page = (DOCS / "index.md").read_text()
    (tree,) = [block.source for block in blocks_of(page) if block.language == "text"]
    named = re.findall(r"^[│├└─ ]*(\w+)", tree, re.M)
    errors = [
        name for name in pymq.__all__ if isinstance(getattr(pymq, name), type) and issubclass(getattr(pymq, name), pymq.PymqError)
    ]
    assert sorted(named) == sorted(errors)


def test_the_promise_of_an_ack_is_in_the_first_paragraph() -> None:
    first = (DOCS / "delivery.md").read_text().split("\n\n")[1]
    assert all(word in first for word in ("ack", "shm", "kill -9", "reboot", "simple"))


def test_ci_runs_the_readmes_test_command_as_it_is() -> None:
    _, test_command = [block.source for block in blocks_of((ROOT / "README.md").read_text()) if block.language == "sh"]
    run = ROOT / ".ci" / "run"
    assert f"\n{test_command}" in run.read_text()
    assert os.access(run, os.X_OK)


@pytest.mark.parametrize("command", ["ruff format --check", "ruff check", "mypy", "sphinx-build -q -W --keep-going docs docs/_build"])
def test_tox_checks_what_ci_checks(command: str) -> None:
    assert f"\n.venv/bin/{command}\n" in (ROOT / ".ci" / "run").read_text()
    assert re.search(rf"^(commands =)? *{re.escape(command)}$", (ROOT / "tox.ini").read_text(), re.M)
