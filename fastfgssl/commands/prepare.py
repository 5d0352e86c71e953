"""Makes an archive for training from folders of images, or checks one.

fastfgssl prepare photographs more/photo.png --out archive --labels labels.csv --short-side 512
fastfgssl prepare tree --out archive --labels-from folders
fastfgssl prepare downloads --out archive --labels-preset isic2018
fastfgssl prepare --verify archive

Every image is decoded completely, by Pillow and by the decoder that training uses. What is not usable is listed with
the reason in the archive's quarantine.csv. The archive appears at --out when it is complete, and not before.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from fastfgssl.archive.labels_presets import PRESETS
from fastfgssl.archive.manifest import QUARANTINE, Archive
from fastfgssl.archive.prepare import MIB, PrepareOptions, Progress, Summary, prepare
from fastfgssl.runtime.console import Parser, ProgressLine, make_console, print_line, print_table
from fastfgssl.runtime.errors import UserError


def main() -> int | None:
    arguments = parse_arguments()
    if arguments.verify:
        return verify(arguments.verify)
    if arguments.out is None:
        raise UserError("--out is missing: the folder to make the archive in")
    options = PrepareOptions(**{name: value for name, value in vars(arguments).items() if name != "verify"})
    console = make_console()
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False), TimeRemainingColumn()
    with ProgressLine(console, *columns) as line:

        def show(progress: Progress) -> None:
            rate = f"{line.speed:.0f} images/s, " if line.speed else ""
            state = f"{rate}{progress.quarantined:,} quarantined"
            line.update(progress.done, progress.total, state)
            line.line(f"{progress.done:,} of {progress.total:,} images, {state}")

        summary = prepare(options, show)
    print_table(console, report_rows(options, summary))
    archive = shlex.quote(str(options.out))
    print_line(console, f"\nnext: fastfgssl train --config paper data.path={archive} output=runs/first")
    if options.labels_preset:
        settings = f"model.weights=CHECKPOINT data.path={archive} output=runs/tuned"
        print_line(console, f"then: fastfgssl finetune --config {options.labels_preset} {settings}")
    return None


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "sources", nargs="*", type=Path, metavar="SOURCE", help="folder of JPEG, PNG, TIFF, BMP, WebP; or one such file"
    )
    add("--out", type=Path, metavar="DIR", help="the archive to make")
    add("--labels", type=Path, metavar="CSV", help="table with the columns image, label, and perhaps a group and split")
    add("--group-column", metavar="NAME", help="column of --labels that says which images belong together")
    add(
        "--labels-preset",
        choices=PRESETS,
        help="a challenge, unpacked as it is downloaded: its classes, groups and split are taken from its own tables",
    )
    add(
        "--labels-from",
        choices=["folders"],
        help="the class is the first folder below SOURCE, or below a folder train, val or test there",
    )
    add("--short-side", type=int, metavar="N", help="make larger images smaller, to N pixels on their short side")
    add("--workers", type=int, metavar="N", help="processes (default: one a core)")
    add(
        "--shard-size",
        type=float,
        metavar="MIB",
        default=PrepareOptions.shard_size,
        help="of images (default %(default)g)",
    )
    add(
        "--max-pixels",
        type=int,
        metavar="N",
        default=PrepareOptions.max_pixels,
        help="limit of an image (default %(default)d)",
    )
    add("--overwrite", action="store_true", help="replace the archive at --out once the new one is complete")
    add(
        "--verify",
        type=Path,
        metavar="DIR",
        help="check every byte of an archive instead; exit code 1 if it is damaged",
    )
    arguments = parser.parse_args()
    if arguments.verify:
        others = {name: value for name, value in vars(arguments).items() if name != "verify"}
        for name, value in others.items():
            if value and value != parser.get_default(name):
                what = f"--{name.replace('_', '-')}" if name != "sources" else str(value[0])
                parser.error(f"--verify checks an archive and makes none: leave out {what}")
    return arguments


def verify(path: Path) -> int:
    archive = Archive.open(path, check_table=False)  # it is among what is verified
    problems = archive.verify()
    for line in problems or [f"{path}: all {archive.num_samples:,} samples are as they were written"]:
        print_line(make_console(), line)
    return 1 if problems else 0


def report_rows(options: PrepareOptions, summary: Summary) -> Iterator[tuple[str, str]]:
    rate = (summary.samples + summary.quarantined.total()) / summary.seconds
    shards = f"{summary.shards:,} shard{'s' * (summary.shards != 1)}"
    yield "kept", f"{summary.samples:,} images in {shards}, {summary.bytes / MIB:,.1f} MiB"
    if summary.classes:
        yield "labels", f"{summary.labelled:,} images have one of {summary.classes:,} classes"
    if summary.unmatched:
        where = options.labels or f"{options.labels_preset}'s tables"
        yield "unmatched", f"{len(summary.unmatched):,} rows of {where}, e.g. {summary.unmatched[0]}"
    if summary.missing:
        yield "missing", summary.missing
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
