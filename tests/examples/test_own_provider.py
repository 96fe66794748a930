"""The provider of `examples/own-provider`, as somebody else's project: a wheel, an environment of its own, its own tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from started import EXAMPLES, ROOT

PROJECT = EXAMPLES / "own-provider"
GUARD = 100


def run(*command: object, cwd: Path, **env: str) -> str:
    """What it prints; it must end well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYMQ"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """The interpreter of an environment in which both wheels are installed; pytest and pydantic are borrowed from this one.

    Names in a .pth file are directories to look into, last; .pth files in there, of an editable pymq for one, do not count.
    """
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        venv.create(home / "venv", symlinks=True)
        python, wheels = home / "venv" / "bin" / "python", home / "wheels"
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT, PROJECT, cwd=home)
        run(*pip, "--python", python, "install", "--no-deps", "--no-index", *wheels.glob("*.whl"), cwd=home)
        (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
        (packages / "borrowed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
        yield python


def test_it_passes_the_whole_suite(python: Path, tmp_path: Path) -> None:
    for name in ("conftest.py", "test_pigeon_post.py", "pyproject.toml"):
        (tmp_path / name).write_text((PROJECT / name).read_text())
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", cwd=tmp_path)
    assert re.fullmatch(r"\d+ passed, 6 skipped in .*", printed.splitlines()[-1]), "only a thread can wait for a pigeon"


def test_its_directory_is_a_project_of_its_own(python: Path) -> None:
    """Its tests run there with nothing but pytest, and are not taken for pymq's, which want more."""
    found = run(python, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", cwd=PROJECT, PYTHONDONTWRITEBYTECODE="1")
    assert f"rootdir: {PROJECT}\n" in found


@pytest.fixture
def url(python: Path, tmp_path: Path) -> Iterator[str]:
    """Of a loft that is open."""
    loft = subprocess.Popen([python, "-m", "pigeon_loft", tmp_path / "loft"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert loft.stdout is not None
    assert loft.stdout.readline() == b"the loft is open\n"
    yield f"pigeon://shop{tmp_path}/loft"
    loft.kill()
    loft.communicate()


def test_it_is_found_by_its_entry_point(python: Path, tmp_path: Path, url: str) -> None:
    run(python, "-c", "import pymq; pymq.init(); pymq.queue('jobs').put('sweep')", cwd=tmp_path, PYMQ_URL=url)
    program = "import pymq; print(pymq.__file__, type(pymq.init().config).__name__, pymq.queue('jobs').get(timeout=5))"
    file, *rest = run(python, "-c", program, cwd=tmp_path, PYMQ_URL=url).split()
    assert rest == ["PigeonConfig", "sweep"]
    assert Path(file).is_relative_to(python.parents[1])


PLUGIN = """
import pymq

def test_it(pymq_bus):
    pymq.publish("coo", "loft")
    assert pymq_bus.assert_published("loft") == "coo"
"""


def test_the_pytest_plugin_comes_with_the_wheel(python: Path, tmp_path: Path) -> None:
    (tmp_path / "test_plugin.py").write_text(PLUGIN)
    assert "1 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", cwd=tmp_path)


DIES = """
import os, signal, pymq

pymq.init()
pymq.subscribe(print, "news")
jobs = pymq.queue("jobs")
jobs.put("sweep")
jobs.receive(lease=1000)
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_child_does_not_keep_its_dead_parent_alive(python: Path, tmp_path: Path, url: str) -> None:
    with subprocess.Popen([python, "-c", DIES], stdout=subprocess.PIPE, env=os.environ | {"PYMQ_URL": url}, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
    try:
        program = "import pymq; pymq.init(); print(pymq.queue('jobs').receive(timeout=20).attempt)"
        assert run(python, "-c", program, cwd=tmp_path, PYMQ_URL=url) == "2\n"
    finally:
        os.kill(child, signal.SIGKILL)
