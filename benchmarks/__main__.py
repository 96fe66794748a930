"""`python -m benchmarks [row ...]`: measure, print the table, write the figures as JSON."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import channels, contest, report
from benchmarks.contest import Outcome, Row

RUNS = 5


def main() -> int:
    """Exit status 1 when a row could not be measured; a reach that is not met is only said."""
    from benchmarks import asyncio, aws, ipc, redis
    from benchmarks.rows import all_rows  # here: the processes that are measured import this module too, and start faster

    rows, options = _choose(
        all_rows(),
        {"channels": channels.rows(), "asyncio": asyncio.rows(), "ipc": ipc.rows(), "aws": aws.rows(), "redis": redis.rows()},
    )
    begin = time.monotonic()
    outcomes = [_run(row, options) for row in rows]
    print((report.markdown if options.markdown else report.text)(outcomes))
    report.write_json(options.json, outcomes)
    print(f"{len(outcomes)} rows in {time.monotonic() - begin:.0f} s; figures in {options.json}", file=sys.stderr)
    return int(any(outcome.error for outcome in outcomes))


def _choose(rows: list[Row], parts: dict[str, list[Row]]) -> tuple[list[Row], argparse.Namespace]:
    names = [*(row.name for row in rows), *parts]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"which rows (default: all but {', '.join(parts)}): {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="one run of a tenth of the volume: does it work at all?")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/performance.md embeds it")
    default = Path(__file__).with_name("results.json")
    parser.add_argument("--json", type=Path, default=default, help="where the figures go (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(names):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [row for row in rows if not options.rows or row.name in options.rows]
    return chosen + [row for name, part in parts.items() if name in options.rows for row in part], options


def _run(row: Row, options: argparse.Namespace) -> Outcome:
    print(f"{row.title} ...", file=sys.stderr, flush=True)
    return contest.run(row, 1 if options.quick else RUNS, 0.1 if options.quick else 1.0)


if __name__ == "__main__":
    sys.exit(main())
