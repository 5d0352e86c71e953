"""Makes an archive for training from folders of images, or checks one.

fastfgssl prepare photographs more/photo.png --out archive --labels labels.csv --short-side 512
fastfgssl prepare tree --out archive --labels-from folders
fastfgssl prepare downloads --out archive --labels-preset isic2018
fastfgssl prepare dump.zip s3://hospital/scans --list chosen.txt --out archive
fastfgssl prepare dicomweb+https://pacs.hospital.example/dicom-web --out archive
fastfgssl prepare --verify archive

Every image is decoded completely, as training decodes it, and a damaged one is left out. The archive appears at --out
when it is complete, and not before; the same command goes on where it was stopped or killed. If --out holds an archive,
what is new in the sources is added to it. It holds no name of a file or a patient: names, and what became of each file,
are in a table beside the key, which by default are both in a folder OUT.private, to be kept to yourself. Two pages show
it: report.html in the archive, without names, and OUT.report.html beside the key, with them and with left-out pictures.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from fastfgssl.archive.labels.presets import PRESETS
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.prepare import prepare
from fastfgssl.archive.report.samples import mostly_gray
from fastfgssl.archive.report.table import report_rows
from fastfgssl.archive.sources.opening import path_or_url
from fastfgssl.archive.summary import Progress
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.console import Parser, ProgressLine, log_to, make_console, print_line, print_table
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import user_path

_LIMITS = (
    ("max-pixels", "images with more are quarantined undecoded"),
    ("max-bytes", "files with more are quarantined unread"),
    ("max-seconds", "files that take longer are quarantined"),
    ("max-memory", "MiB that one file may take; those that need more are quarantined"),
    ("max-ratio", "bytes that a container may give for each of its own, beyond the first 64 MiB"),
    ("max-expanded", "bytes that a container may give"),
    ("max-unreadable", "share of the files that may be unreadable before the run ends"),
)

_FILTERS = (
    ("min-side", int, "leave out pictures with fewer pixels on their short side"),
    ("min-contrast", float, "leave out pictures whose brightness has a smaller standard deviation, of 255 levels"),
    ("max-aspect", float, "leave out pictures whose long side has more times the short one"),
)


def main() -> int | None:
    arguments = parse_arguments()
    if arguments.verify:
        return check(arguments.verify)
    if arguments.out is None:
        raise UserError("--out is missing: the folder to make the archive in")
    options = PrepareOptions(**{name: value for name, value in vars(arguments).items() if name != "verify"})
    console = make_console()
    log_to(console)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with ProgressLine(console, *columns) as line:

        def show(progress: Progress) -> None:
            rate = f"{line.speed:.0f} {progress.stage}/s, " if line.speed else ""
            state = f"{rate}{progress.quarantined:,} quarantined" if progress.stage == "images" else progress.stage
            line.update(progress.done, progress.total, state)
            line.line(f"{progress.done:,} of {progress.total:,} {progress.stage}, {state}")

        summary = prepare(options, show)
    print_table(console, report_rows(options, summary))
    if options.part or options.dry_run:
        return None
    archive = shlex.quote(str(options.out))
    config = "grayscale" if mostly_gray(Archive.open(options.out)) else "paper"
    print_line(console, f"\nnext: fastfgssl train --config {config} data.path={archive} output=runs/first")
    if options.labels_preset:
        settings = f"model.weights=CHECKPOINT data.path={archive} output=runs/tuned"
        print_line(console, f"then: fastfgssl finetune --config {options.labels_preset} {settings}")
    return None


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        type=path_or_url,
        metavar="SOURCE",
        help="folder of images, DICOM files, zips and tars; one such file; URL, as s3://BUCKET/DIR or dicomweb+https://HOST/ROOT",
    )
    add("--out", type=user_path, metavar="DIR", help="the archive to make")
    add(
        "--list",
        dest="lists",
        type=user_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a source too: file with a path a line, relative to its folder; may be given again",
    )
    add(
        "--labels",
        type=user_path,
        metavar="TABLE",
        help="CSV, or FILE.xlsx[:SHEET], with the columns image, label, and perhaps a group and split",
    )
    add("--image-column", metavar="NAME", default=PrepareOptions.image_column, help="of --labels (default %(default)s)")
    add("--label-column", metavar="NAME", default="label", help="of --labels (default label); A,B: of each class")
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
    add(
        "--split",
        metavar="A/B/C",
        help="draw splits: shares of train, val and test, as 0.8/0.1/0.1, or of train and test; in each class alike",
    )
    add(
        "--by",
        choices=["group", "image"],
        default=PrepareOptions.by,
        help="what --split does not divide: a group (patient, lesion, near-duplicates), or an image (default group)",
    )
    add("--seed", type=int, default=PrepareOptions.seed, help="of --split (default %(default)s)")
    add(
        "--members",
        choices=["json", "cls"],
        help="what else the shards hold of each image, for other readers: its class's number, or all that is known"
        " (default: nothing)",
    )
    add("--short-side", type=int, metavar="N", help="make larger images smaller, to N pixels on their short side")
    add("--workers", type=int, metavar="N", help="processes (default: one a core; in a cluster, one a CPU it grants)")
    add("--engine", choices=["ray"], help="let the nodes of a Ray cluster that runs do the work, on shared folders")
    add("--ray-address", metavar="HOST:PORT", help="of that cluster (default: $RAY_ADDRESS)")
    add(
        "--shard-size",
        type=float,
        metavar="MIB",
        default=PrepareOptions.shard_size,
        help="of images (default %(default)g)",
    )
    add("--encode", metavar="HOW", default="keep", help="keep, png or jpeg:N: what images become (default %(default)s)")
    add("--pages", choices=["first", "all"], default="all", help="of a TIFF with several (default %(default)s)")
    add("--frames", metavar="WHICH", default="middle", help="of a DICOM file: middle, all, every:N (default middle)")
    add(
        "--window",
        metavar="C/W",
        default="header",
        help="what is black and white in gray DICOM images: header, percentiles, or center/width as 40/400",
    )
    add("--depth", type=int, choices=[8, 16], default=8, help="bits of gray DICOM images (default 8)")
    add("--mpp", type=float, metavar="MICRONS", help="make whole slides tiles of so many microns per pixel")
    add("--tile", type=int, metavar="N", help="pixels on a side of such a tile (default 256)")
    add(
        "--burned-in",
        choices=["skip", "keep", "mask"],
        default=PrepareOptions.burned_in,
        help="images with text in their pixels: left out, kept, or the text painted over (default %(default)s)",
    )
    add(
        "--find-text",
        choices=["dicom", "all"],
        default=PrepareOptions.find_text,
        help="which images are looked at for text: those of DICOM files, or all (default %(default)s)",
    )
    for name, kind, what in _FILTERS:
        default = getattr(PrepareOptions, name.replace("-", "_"))
        add(f"--{name}", type=kind, metavar="N", default=default, help=f"{what}; 0 takes all (default {default:g})")
    add("--modality", metavar="MG,DX", help="of DICOM images, take those of these modalities alone (default: all)")
    add(
        "--leave-out",
        metavar="KINDS",
        default=PrepareOptions.leave_out,
        help="DICOM images: derived, localizer, secondary, separated by commas, or none (default %(default)s)",
    )
    add(
        "--duplicates",
        choices=["drop", "keep"],
        default=PrepareOptions.duplicates,
        help="images whose pixels are those of an earlier one (default %(default)s)",
    )
    add(
        "--near-duplicates",
        choices=["report", "group", "drop"],
        help="images that are nearly the same as another, new or in the archive: tell of them, put them into one group,"
        " or keep the first (default: not looked for)",
    )
    for name, what in _LIMITS:  # text, of which the options make numbers: 8e9 is one of bytes too
        default = getattr(PrepareOptions, name.replace("-", "_"))
        add(f"--{name}", metavar="N", default=default, help=f"{what} (default {default:g})")
    add("--key", type=user_path, metavar="FILE", help="key of the names, made if absent (default OUT.private/key)")
    add(
        "--nested",
        type=int,
        metavar="N",
        default=PrepareOptions.nested,
        help="how many containers may lie in one another; 0 leaves them alone (default %(default)s)",
    )
    add("--follow-links", action="store_true", help="follow symbolic links that lead out of a source")
    add("--retry", action="store_true", help="add, and take what was quarantined or unreadable once again")
    add("--overwrite", action="store_true", help="replace the archive at --out once the new one is complete")
    add(
        "--part", metavar="I/N", help="do the I-th of N shares of the work, as on several machines; then run without it"
    )
    add("--dry-run", action="store_true", help="say what there is to do, and do nothing")
    add(
        "--verify",
        type=user_path,
        metavar="DIR",
        help="check every byte of an archive instead; exit code 1 if it is damaged",
    )
    arguments = parser.parse_args()
    if arguments.verify:
        others = {name: value for name, value in vars(arguments).items() if name != "verify"}
        for name, value in others.items():
            if value not in (None, [], parser.get_default(name)):
                what = "--list" if name == "lists" else f"--{name.replace('_', '-')}"
                what = str(value[0]) if name == "sources" else what
                parser.error(f"--verify checks an archive and makes none: leave out {what}")
    return arguments


def check(path: Path) -> int:
    archive = Archive.open(path, check_table=False)  # it is among what is verified
    problems = verify(archive)
    for line in problems or [f"{path}: all {archive.num_samples:,} samples are as they were written"]:
        print_line(make_console(), line)
    return 1 if problems else 0
