"""The `pymq` command. Its packages are the extra `cli`; without them it says so."""

from __future__ import annotations

import sys

EXTRA = ("typer", "click", "rich")


def main() -> None:
    """Runs the command; exits with status 1, saying why, where its packages are missing or its output cannot be written."""
    try:
        import rich  # noqa: F401 - typer does without, until it has an error to show

        from pymq.cli.app import app
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(f"pymq: the command needs {missing.name}; in a checkout of pymq: pip install -e '.[cli]'")
    try:
        app()
    except OSError as error:  # click itself is silent where a pipe's reader is gone
        sys.exit(f"pymq: {error}")
