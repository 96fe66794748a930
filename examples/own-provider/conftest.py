"""A loft for the tests, in a process of its own."""

import os
import subprocess
import sys
import tempfile

directory = tempfile.TemporaryDirectory()
os.environ["PIGEON_LOFT"] = f"{directory.name}/loft"
loft = subprocess.Popen([sys.executable, "-m", "pigeon_loft"], stdout=subprocess.PIPE)
assert loft.stdout
assert loft.stdout.readline() == b"the loft is open\n"


def pytest_unconfigure() -> None:
    loft.kill()
    loft.communicate()
    directory.cleanup()
