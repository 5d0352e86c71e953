"""Measures speed: each suite is checked before it is timed, next to its baseline and its limit.

python tools/bench.py all --json runs/bench.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastfgssl.runtime.console import Parser
from fastfgssl.runtime.environment import rank_environment
from fastfgssl.runtime.errors import UserError, check_writable, file_errors

SUITES = ("loss", "jigsaw", "input", "step", "train", "scaling")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=(*SUITES, "all"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="write a Chrome trace of each case there, on a GPU NVTX ranges too"
    )
    parser.add_argument("--real", type=Path, metavar="ARCHIVE", help="a prepared archive for input, train and scaling")
    parser.add_argument(
        "--index-samples",
        type=int,
        default=100_000_000,
        metavar="N",
        help="length of the index that input opens; it takes 45 bytes each in TMPDIR (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.index_samples < 1:
        parser.error(f"--index-samples {args.index_samples}: must be at least 1")

    from fastfgssl.archive.manifest import Archive
    from fastfgssl.benchmarks.measure import CheckFailed, as_json
    from fastfgssl.benchmarks.trace import traces
    from fastfgssl.runtime.distributed import start_world

    if rank_environment().size > 1:
        raise UserError("the benchmark runs alone: start it without torchrun; `scaling` starts its ranks itself")
    if args.real is not None:
        Archive.open(args.real)
    for file in (args.json, args.profile and args.profile / "trace.json"):
        if file is not None:
            with file_errors("write", file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
            check_writable(file)
    options = {suite: {"archive": args.real} for suite in ("input", "train", "scaling")}
    options["input"]["index_samples"] = args.index_samples
    records, wrong = [], False
    try:
        with start_world(args.device) as world, traces(args.profile):
            for suite in SUITES if args.suite == "all" else (args.suite,):
                try:
                    module = importlib.import_module(f"fastfgssl.benchmarks.{suite}")
                    for record in module.run(world.device, **options.get(suite, {})):
                        records.append(record)
                        print(f"{suite}: {record.case}: {record.value:.4g} {record.unit}", file=sys.stderr)
                        if args.json:
                            args.json.write_text(json.dumps(as_json(records), indent=2) + "\n")
                except CheckFailed as error:
                    print(f"error: suite {suite} computes wrong results: {error}", file=sys.stderr)
                    wrong = True
    finally:  # what was measured is shown whatever came after
        if records:
            _print(records)
    return int(wrong)


def _print(records: list) -> None:
    table = Table(title=f"{records[0].device}; " + ", ".join(f"{k} {v}" for k, v in records[0].versions.items()))
    for column in ("suite", "case", "ours", "baseline", "ratio (iqr)", "limit", "of limit"):
        table.add_column(column)
    for record in records:
        table.add_row(
            record.suite,
            record.case,
            f"{record.value:.4g} {record.unit}",
            f"{record.baseline_value:.4g} ({record.baseline})",
            f"{record.ratio:.2f} ({record.spread:.2f})",
            f"{record.limit_value:.4g} ({record.limit})",
            f"{record.fraction_of_limit:.2f}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit
    console.print(table)
