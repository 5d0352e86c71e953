"""Measures speed: each suite is checked before it is timed, next to its baseline and its limit.

fastfgssl bench all --json runs/bench.json
"""

from __future__ import annotations

import importlib
from dataclasses import asdict

from fastfgssl.benchmarks import SUITES
from fastfgssl.runtime.console import Parser, make_console, print_line, print_table
from fastfgssl.runtime.environment import require_alone
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import check_writable, user_path, write_json


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("suite", choices=(*SUITES, "all"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the records there")
    parser.add_argument(
        "--profile",
        type=user_path,
        metavar="DIR",
        help="write a Chrome trace of each case there, on a GPU NVTX ranges too",
    )
    parser.add_argument(
        "--real", type=user_path, metavar="ARCHIVE", help="a prepared archive for input, train and scaling"
    )
    parser.add_argument(
        "--index-samples",
        type=int,
        default=100_000_000,
        metavar="N",
        help="length of the index that input opens; it takes 53 bytes each in TMPDIR (default: %(default)s)",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes, each case once: whether all runs; numbers mean nothing"
    )
    args = parser.parse_args()
    if args.index_samples < 1:
        parser.error(f"--index-samples {args.index_samples}: must be at least 1")

    from fastfgssl.archive.manifest import Archive
    from fastfgssl.benchmarks.measure import CheckFailed, Settings
    from fastfgssl.benchmarks.page import COLUMNS, row
    from fastfgssl.benchmarks.trace import Traces
    from fastfgssl.kernels.build import BuildError
    from fastfgssl.runtime.distributed import start_world

    require_alone("a benchmark", advice="; `scaling` starts its ranks itself")
    if args.real is not None:
        Archive.open(args.real)
    for file in (args.json, args.profile and args.profile / "trace.json"):
        if file is not None:
            check_writable(file)
    console, beside = make_console(), make_console(stderr=True)
    records, wrong = [], False
    try:
        with start_world(args.device) as world:
            settings = Settings(
                device=world.device,
                archive=args.real,
                index_samples=args.index_samples,
                traces=Traces(args.profile),
                rehearse=args.rehearse,
            )
            for name in SUITES if args.suite == "all" else (args.suite,):
                try:
                    for record in importlib.import_module(f"fastfgssl.benchmarks.{name}").run(settings):
                        records.append(asdict(record))
                        if args.json:
                            write_json(args.json, records)
                        print_line(beside, f"{name}: {record.case}: {record.value:.4g} {record.unit}")
                except BuildError as error:  # no compiler, or a cache that cannot be written
                    raise UserError(str(error)) from None
                except CheckFailed as error:
                    print_line(beside, f"error: suite {name} computes wrong results: {error}")
                    wrong = True
    finally:  # what was measured is shown whatever came after
        if records:
            title = ", ".join(f"{package} {version}" for package, version in records[0]["versions"].items())
            print_table(console, map(row, records), title=f"{records[0]['device']}; {title}", columns=COLUMNS)
    return int(wrong)
