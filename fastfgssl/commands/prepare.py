"""Makes an archive for training from folders of images, or checks one: `python tools/prepare.py --help`."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastfgssl.archive.manifest import QUARANTINE, Archive
from fastfgssl.archive.prepare import MIB, Options, Step, Summary, prepare
from fastfgssl.runtime.console import Parser
from fastfgssl.runtime.errors import UserError

DETAILS = """
Every image is decoded completely, by Pillow and by the decoder that training uses. What is not usable is listed with
the reason in the archive's quarantine.csv. The archive appears at --out when it is complete, and not before.

example:
  python tools/prepare.py photographs more/photo.png --out archive --labels labels.csv --short-side 512
"""
SECONDS_BETWEEN_LINES = 10.0  # of progress, where the output is no terminal


class Display:
    """Progress: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("finding images", total=None)
        self._interval = 0.1 if console.is_terminal else SECONDS_BETWEEN_LINES
        self._started: float | None = None
        self._shown = 0.0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, step: Step) -> None:
        """Shows that `step` is reached, if it is time to."""
        now = time.monotonic()
        if self._started is None:  # starting the workers took time, too
            self._started = self._shown = now
        if now < self._shown + self._interval:
            return
        self._shown = now
        state = f"{step.done / (now - self._started):.0f} images/s, {step.quarantined:,} quarantined"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step.done, total=step.total, description=state)
        else:
            print(f"{step.done:,} of {step.total:,} images, {state}", flush=True)


def main() -> int | None:
    arguments = parse_arguments()
    if arguments.verify:
        return verify(arguments.verify)
    if arguments.out is None:
        raise UserError("--out is missing: the folder to make the archive in")
    options = Options(**{name: value for name, value in vars(arguments).items() if name != "verify"})
    console = Console(highlight=False)
    with Display(console) as display:
        summary = prepare(options, display.update)
    report(console, options, summary)
    return None


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "sources", nargs="*", type=Path, metavar="SOURCE", help="folder of JPEG, PNG, TIFF, BMP, WebP; or one such file"
    )
    add("--out", type=Path, metavar="DIR", help="the archive to make")
    add("--labels", type=Path, metavar="CSV", help="table with the columns image, label, and perhaps a group and split")
    add("--group-column", metavar="NAME", help="column of --labels that says which images belong together")
    add("--short-side", type=int, metavar="N", help="make larger images smaller, to N pixels on their short side")
    add("--workers", type=int, metavar="N", help="processes (default: one a core)")
    add("--shard-size", type=float, metavar="MIB", default=Options.shard_size, help="of images (default %(default)g)")
    add(
        "--max-pixels",
        type=int,
        metavar="N",
        default=Options.max_pixels,
        help="limit of an image (default %(default)d)",
    )
    add("--overwrite", action="store_true", help="replace the archive at --out once the new one is complete")
    add(
        "--verify",
        type=Path,
        metavar="DIR",
        help="check every byte of an archive instead; exit code 1 if it is damaged",
    )
    return parser.parse_args()


def verify(path: Path) -> int:
    archive = Archive.open(path)
    problems = archive.verify()
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{path}: all {archive.num_samples:,} samples are as they were written")
    return 1 if problems else 0


def report(console: Console, options: Options, summary: Summary) -> None:
    table = Table.grid(padding=(0, 2))
    for name, text in report_rows(options, summary):
        table.add_row(name, Text(text))  # a Text, because file names may look like markup
    console.print(table)
    command = f"python tools/train.py --config configs/paper.yaml data.path={shlex.quote(str(options.out))}"
    console.print(f"\nnext: {command}", soft_wrap=True, markup=False)


def report_rows(options: Options, summary: Summary) -> Iterator[tuple[str, str]]:
    rate = (summary.samples + summary.quarantined.total()) / summary.seconds
    shards = f"{summary.shards:,} shard{'s' * (summary.shards != 1)}"
    yield "kept", f"{summary.samples:,} images in {shards}, {summary.bytes / MIB:,.1f} MiB"
    if options.labels:
        yield "labels", f"{summary.labelled:,} images have one of {summary.classes:,} classes"
    if summary.unmatched:
        yield "unmatched", f"{len(summary.unmatched):,} rows of {options.labels}, e.g. {summary.unmatched[0]}"
    for reason, count in summary.changed.most_common():
        yield "changed", f"{count:,} x {reason}"
    for note, count in summary.notes.most_common():
        yield "note", f"{count:,} x {note}"
    for reason, count in summary.quarantined.most_common():
        yield "quarantined", f"{count:,} x {reason}"
    if summary.quarantined:
        yield "", f"each is listed in {options.out / QUARANTINE}"
    for suffix, count in summary.other_files.most_common(5):
        yield "other files", f"{count:,} x {suffix}"
    yield "time", f"{summary.seconds:,.1f} s, {rate:,.0f} images/s"
