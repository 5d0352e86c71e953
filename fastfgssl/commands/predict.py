"""Writes a table with the probability of each class for the images of a folder or an archive.

fastfgssl predict --checkpoint runs/tuned/checkpoints/best.pt --data photographs --out predictions.csv

The table has a row for each image: image, predicted, p_CLASS for each class, and problem, which says why an image could
not be decoded.
"""

from __future__ import annotations

from argparse import BooleanOptionalAction

from fastfgssl.runtime.console import Parser, log_to, make_console, print_line, print_table
from fastfgssl.runtime.files import user_path

_SHOWN = 5  # images that could not be decoded


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        metavar="FILE",
        help="or a run's folder, for its newest checkpoint",
    )
    parser.add_argument("--data", required=True, type=user_path, metavar="DIR", help="folder of images, or an archive")
    parser.add_argument("--out", required=True, type=user_path, metavar="CSV")
    parser.add_argument(
        "--flips",
        action=BooleanOptionalAction,
        help="means over an image and its three mirror images (default: as supervised.flips of the training says)",
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", default=100_000_000, help="limit of an image of a folder"
    )
    args = parser.parse_args()

    from fastfgssl.evaluation.prediction import predict

    log_to(make_console(stderr=True))
    predicted = predict(
        args.checkpoint,
        args.data,
        args.out,
        flips=args.flips,
        device=args.device,
        batch_size=args.batch_size,
        max_pixels=args.max_pixels,
    )
    console = make_console()
    print_table(
        console,
        [(name, f"{count:,}") for name, count in predicted.images.items()],
        title=f"images by their most probable class; each is in {args.out}",
        columns=["class", "images"],
    )
    problems = list(predicted.problems.items())
    for name, problem in problems[:_SHOWN]:
        print_line(console, f"could not be decoded: {name}: {problem}")
    if len(problems) > _SHOWN:
        print_line(console, f"and {len(problems) - _SHOWN:,} more; the column problem has each")
