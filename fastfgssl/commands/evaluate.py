"""Scores what a pretrained network has learned, from frozen features.

    python tools/evaluate.py --checkpoint runs/first/checkpoints/step_000001000.pt --data ARCHIVE --protocol matching
    python tools/evaluate.py --checkpoint ... --data LABELLED_ARCHIVE --protocol knn --json scores.json

matching needs no labels: among all scoring images, how often is the anchor nearest to a puzzle view that of the same
image. knn: cosine, k = 20, weighted. linear: logistic regression, classes weighted, C chosen on the training split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastfgssl.runtime.console import Parser
from fastfgssl.runtime.errors import check_writable


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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

    import torch

    from fastfgssl.archive.manifest import Archive
    from fastfgssl.evaluation.features import FeatureExtractor
    from fastfgssl.evaluation.pretrained import build_untrained, load_pretrained
    from fastfgssl.evaluation.protocols import evaluate
    from fastfgssl.runtime.distributed import start_world

    if args.json:
        check_writable(args.json)  # before minutes go into scores that could not be kept
    model, config, step = load_pretrained(args.checkpoint)
    if args.untrained is not None:
        model, step = build_untrained(config, args.untrained), 0
    archive = Archive.open(args.data)
    with start_world(args.device) as world:
        model = model.to(world.device, memory_format=torch.channels_last)
        extractor = FeatureExtractor(model, config, archive, world.device, args.batch_size)
        report = evaluate(
            extractor,
            archive,
            args.protocol,
            batch_statistics=args.batch_statistics,
            scoring=args.split,
            seed=args.seed,
        )
    if not args.quiet:
        _print(report, step)
    if args.json:
        record = dataclasses.asdict(report) | {"checkpoint": str(args.checkpoint), "data": str(args.data), "step": step}
        record |= {"untrained_seed": args.untrained, "seed": args.seed}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


def _print(report, step: int) -> None:
    console = Console()
    table = Table(
        title=f"{report.protocol} after {step} steps; {report.val_samples} images ({report.split}) scored"
        + (f", {report.fit_samples} to train" if report.fit_samples else "")
        + f"; batch statistics {report.batch_statistics}"
    )
    columns = [name for name in next(iter(report.results.values())) if name != "confusion"]
    table.add_column("features")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, result in report.results.items():
        table.add_row(name, *(f"{result[column]:.4g}" for column in columns))
    console.print(table)
    if report.protocol != "matching":
        confusion = Table(title="confusion of features 'all': true class by row, predicted by column")
        confusion.add_column("")
        for name in report.classes:
            confusion.add_column(name, justify="right")
        for name, counts in zip(report.classes, report.results["all"]["confusion"], strict=True):
            confusion.add_row(name, *map(str, counts))
        console.print(confusion)
        console.print(
            f"standard errors: over {report.val_groups} groups of the scoring images, drawn again (bootstrap)"
        )
    if report.left_out:
        console.print("left out, by split:", ", ".join(f"{name} {count}" for name, count in report.left_out.items()))
