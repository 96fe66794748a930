"""`python -m pymq.cli` is the command `pymq`."""

from pymq.cli import main

main()
