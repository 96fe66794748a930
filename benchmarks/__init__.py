"""How fast pymq is beside what it is built on and beside others, measured in one call: `python -m benchmarks`."""
