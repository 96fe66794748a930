"""Without any dependency: installed with --no-deps into a venv of its own, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from pymq.pubsub import Channel, Message, publish, fetch, subscribe

def foreign():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"__main__", "pymq"}

assert not foreign(), foreign()
with Channel(topic="logs.+") as channel:
    assert publish("logs.app.debug", b"cache hit", headers={"k": 1, "~": None}) == 1
    message = fetch(channel)
    assert (message.content, message.headers) == (b"cache hit", {"k": 1, "~": None})
    assert Message.from_bytes(message.to_bytes()).id == message.id
    publish("logs.x", bytes(100_000))
    assert subscribe(channel, print, timeout_seconds=0.01) == 1
assert not foreign(), foreign()
try:
    import pydantic
except ModuleNotFoundError:
    print("no pydantic")
print(sys.modules["pymq"].__file__)
"""


def test_in_a_venv_without_dependencies(home, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--target", site, ROOT]
    subprocess.run(install, check=True, timeout=100, stdout=subprocess.DEVNULL)
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run([python, "-I", "-c", PROGRAM], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["no pydantic", str(site / "pymq" / "__init__.py")]
