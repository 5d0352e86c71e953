"""Scores what a pretrained network has learned, from frozen features.

fastfgssl evaluate --checkpoint runs/first/checkpoints/step_000001000.pt --data ARCHIVE --protocol matching
fastfgssl evaluate --checkpoint ... --data LABELLED_ARCHIVE --protocol knn --json scores.json

matching needs no labels: among all scoring images, how often is the anchor nearest to a puzzle view that of the same
image. knn: cosine, k = 20, weighted. linear: logistic regression, classes weighted, C chosen on the training split.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from fastfgssl.runtime.console import Parser, make_console, print_line, print_table
from fastfgssl.runtime.files import check_writable, write_json

if TYPE_CHECKING:
    from fastfgssl.evaluation.protocols import Report


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="FILE")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="a prepared archive")
    parser.add_argument("--protocol", required=True, choices=("matching", "knn", "linear"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the report as JSON too")
    parser.add_argument(
        "--untrained",
        type=int,
        metavar="SEED",
        help="scores a network like the checkpoint's with random weights of this seed instead",
    )
    parser.add_argument(
        "--batch-statistics",
        choices=("stored", "recomputed"),
        default="stored",
        help="of batch norm: as the checkpoint has them, or of the training split",
    )
    parser.add_argument(
        "--split", choices=("val", "test"), help="the archive's split that scores (default val, or test without val)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the distortions that matching compares, and of what recomputed draws"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--quiet", action="store_true", help="prints no table; for use with --json")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    from fastfgssl.evaluation.checkpoint import evaluate

    if args.json:
        check_writable(args.json)  # before minutes go into scores that could not be kept
    report = evaluate(
        args.checkpoint,
        args.data,
        args.protocol,
        split=args.split,
        untrained=args.untrained,
        batch_statistics=args.batch_statistics,
        seed=args.seed,
        device=args.device,
        batch_size=args.batch_size,
    )
    try:
        if args.json:
            asked = {"checkpoint": str(args.checkpoint), "data": str(args.data), "seed": args.seed}
            write_json(args.json, dataclasses.asdict(report) | asked | {"untrained_seed": args.untrained})
    finally:
        if not args.quiet:
            _print(report)


def _print(report: Report) -> None:
    console = make_console()
    title = f"{report.protocol} after {report.step} steps; {report.val_samples} images ({report.split}) scored"
    title += f", {report.fit_samples} to train" if report.fit_samples else ""
    names = [name for name in next(iter(report.results.values())) if name != "confusion"]
    print_table(
        console,
        [(name, *(f"{result[column]:.4g}" for column in names)) for name, result in report.results.items()],
        title=f"{title}; batch statistics {report.batch_statistics}",
        columns=["features", *(name.replace("_", " ") for name in names)],
    )
    if report.protocol != "matching":
        shown = "all" if "all" in report.results else "backbone"
        counts = zip(report.classes, report.results[shown]["confusion"], strict=True)
        print_table(
            console,
            [(name, *map(str, row)) for name, row in counts],
            title=f"confusion of features {shown!r}: true class by row, predicted by column",
            columns=["", *report.classes],
        )
        groups = f"over {report.val_groups} groups of the scoring images, drawn again (bootstrap)"
        print_line(console, f"standard errors: {groups}")
    if report.left_out:
        print_line(console, "left out, by split: " + ", ".join(f"{name} {n}" for name, n in report.left_out.items()))
