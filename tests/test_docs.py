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
import pymq.asyncio
import pymq.pubsub

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_the_tables_of_the_providers_are_the_codes() -> None:
    tables = runpy.run_path(str(DOCS / "_features.py"))
    assert tables["features_table"]() in (DOCS / "providers.md").read_text()
    for page, text in tables["pages"]().items():
        assert page.read_text() == text, "run python docs/_features.py"


def test_every_provider_has_a_page_with_its_features() -> None:
    tables = runpy.run_path(str(DOCS / "_features.py"))
    modules = {path.stem for path in (ROOT / "pymq" / "provider").glob("[a-z]*.py")} - {"base"}
    assert modules == set(tables["FEATURES"]) == {path.stem for path in (DOCS / "providers").glob("*.md")}
    for name in modules:
        assert tables["features_table"]([name]) in (DOCS / "providers" / f"{name}.md").read_text()


def test_every_file_of_the_package_is_in_the_design() -> None:
    listed = set(re.findall(r"^\| `(pymq/[\w./]+)` \|", (DOCS / "design.md").read_text(), re.M))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "pymq").rglob("*.py")} | {"pymq/py.typed"}
    assert {name for name in files if not name.startswith("pymq/cli/demo/")} | {"pymq/cli/demo/"} == listed


def test_every_test_that_a_page_names_exists() -> None:
    named = [found for page in DOCS.glob("*.md") for found in NAMED_TEST.findall(page.read_text())]
    assert len(named) > 30
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(ROOT / file)] == []


def test_every_row_of_the_faults_has_its_line_and_its_tests() -> None:
    page = (DOCS / "faults.md").read_text()
    rows = {int(number): line for line, number in re.findall(r"^(\| (\d+) \|.*)$", page, re.M)}
    assert list(rows) == list(range(1, 33))
    for number, line in rows.items():
        files = re.findall(r"`(tests/crash/test_rows?[_\d]*_\w+\.py)`", line)
        assert any(f"_{number:02}_" in file for file in files), line
        assert all((ROOT / file).is_file() and functions_of(ROOT / file) for file in files), line
    of_rows = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "crash").glob("test_row*.py")}
    assert of_rows == set(re.findall(r"tests/crash/test_row\w+\.py", page))


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = "".join(re.findall(r"^:::\{toctree\}\n(.*?)^:::", (DOCS / "index.md").read_text(), re.M | re.S))
    listed = set(re.findall(r"^[\w/-]+$", contents, re.M))
    assert listed == {str(path.relative_to(DOCS).with_suffix("")) for path in pages_of_docs()} - {"index"}


def test_llms_txt_links_every_page() -> None:
    linked = set(re.findall(r"\]\((?:docs/)?([\w./-]+)\)", (DOCS / "llms.txt").read_text()))
    assert {str(path.relative_to(DOCS)) for path in pages_of_docs()} <= linked
    assert [name for name in linked if not (DOCS / name).exists() and not (ROOT / name).exists()] == []


def pages_of_docs() -> list[Path]:
    """All of them, in whatever language, and not what was built."""
    return [path for path in DOCS.rglob("*") if path.suffix in (".md", ".rst") and "_build" not in path.parts]


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (DOCS / "api.rst").read_text()
    errors = [name for name in pymq.__all__ if getattr(getattr(pymq, name), "__module__", "") == "pymq.exceptions"]
    assert "automodule:: pymq.exceptions\n   :members:\n" in page
    assert [name for name in pymq.__all__ if name not in (*errors, "Empty", "Full") and not re.search(rf"\b{name}\b", page)] == []


def test_every_public_name_of_the_other_modules_is_on_the_page_of_the_api() -> None:
    page = (DOCS / "api.rst").read_text()
    assert [name for name in pymq.asyncio.__all__ if not re.search(rf":: pymq\.asyncio\.{name}\n", page)] == []
    (members,) = re.findall(r"automodule:: pymq\.pubsub\n   :members: (.*)", page)
    assert sorted(members.split(", ")) == sorted(pymq.pubsub.__all__)
    for line in (
        "class:: pymq.testing.ProviderSuite",
        "class:: pymq.recording.RecordingBus",
        "module:: pymq.provider.base\n   :members: Provider",
    ):
        assert f".. auto{line}" in page


def test_every_link_of_the_readmes_leads_somewhere() -> None:
    for readme in (ROOT / "README.md", *(ROOT / "examples").rglob("README.md")):
        links = re.findall(r"\]\(([^)#]+)", readme.read_text())
        assert [link for link in links if not (readme.parent / link).exists()] == [], readme


def test_services_of_docker_compose_are_for_this_machine_only() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    ports = re.findall(r"[\d.:]*\d:\d+", text)
    assert len(ports) >= text.count("image:") >= 2
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


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
