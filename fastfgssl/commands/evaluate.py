"""Scores what a network has learned: from frozen features, or the classifiers of a fine-tuned one.

fastfgssl evaluate --checkpoint runs/first/checkpoints/step_000001000.pt --data ARCHIVE --protocol matching
fastfgssl evaluate --checkpoint ... --data LABELLED_ARCHIVE --protocol knn --json scores.json
fastfgssl evaluate --checkpoint runs/tuned/checkpoints/best.pt --data OTHER_ARCHIVE --protocol finetuned --split all

matching needs no labels: among all scoring images, how often is the anchor nearest to a puzzle view that of the same
image. knn: cosine, k = 20, weighted. linear: logistic regression, classes weighted, C chosen on the training split.
finetuned: the classifiers of a network of `fastfgssl finetune`, and their sum; of another archive all labelled images
may score. Every score has a 95 % interval; --json has all of them, of each class too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastfgssl.runtime.console import Parser, log_to, make_console, print_line, print_table
from fastfgssl.runtime.files import check_writable, user_path, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from fastfgssl.evaluation.report import Report

_SHOWN = ("top1", "chance", "balanced_accuracy", "macro_auroc", "macro_f1", "accuracy", "C")
_SHOWN_OF_CLASSES = ("recall", "precision", "auroc")
_BESIDE = ("macro_average_precision", "quadratic_weighted_kappa", "brier_score", "expected_calibration_error")
_NO_SHARES = ("quadratic_weighted_kappa", "brier_score")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=user_path, metavar="FILE")
    parser.add_argument("--data", required=True, metavar="DIR|URL", help="a prepared archive")
    parser.add_argument("--cache", metavar="DIR", help="for shards of a URL (default: data.cache of the checkpoint)")
    parser.add_argument("--protocol", required=True, choices=("matching", "knn", "linear", "finetuned"))
    parser.add_argument("--json", type=user_path, metavar="FILE", help="writes the report as JSON too")
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
        "--split",
        choices=("val", "test", "all"),
        help="the archive's split that scores (default val, or test without val; without both a random quarter of the"
        " groups); all: every image, for matching, and for finetuned on another archive than it was fine-tuned on",
    )
    parser.add_argument(
        "--trained-on",
        metavar="DIR|URL",
        help="of finetuned on another archive: that of the fine-tuning, whose images are compared with those that score"
        " (default: where it was then)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the distortions that matching compares, and of what recomputed and --label-fraction draw",
    )
    parser.add_argument(
        "--label-fraction",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the labelled groups of the training split that knn and linear learn from, drawn by --seed",
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--quiet", action="store_true", help="prints no table; for use with --json")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    from fastfgssl.evaluation.checkpoint import evaluate

    log_to(make_console(stderr=True))
    if args.json:
        check_writable(args.json)  # before minutes go into scores that could not be kept
    report = evaluate(
        args.checkpoint,
        args.data,
        args.protocol,
        cache=args.cache,
        split=args.split,
        trained_on=args.trained_on,
        untrained=args.untrained,
        batch_statistics=args.batch_statistics,
        seed=args.seed,
        label_fraction=args.label_fraction,
        device=args.device,
        batch_size=args.batch_size,
    )
    try:
        if args.json:
            asked = {"checkpoint": str(args.checkpoint), "data": args.data, "seed": args.seed}
            write_json(args.json, report.record() | asked | {"untrained_seed": args.untrained})
    finally:
        if not args.quiet:
            _print(report)


def _print(report: Report) -> None:
    console = make_console()
    title = f"{report.protocol} after {report.step} steps; {report.val_samples} images (split: {report.split}) scored"
    title += f", {report.fit_samples} to train" if report.fit_samples else ""
    if report.label_fraction < 1:
        title += f" ({100 * report.label_fraction:g} % of the labels)"
    rows = report.results | report.floors
    shown = [metric for metric in _SHOWN if metric in next(iter(report.results.values()))]
    print_table(
        console,
        [(name, *(_cell(row, metric) for metric in shown)) for name, row in rows.items()],
        title=title,
        columns=["features", *(_words(metric) for metric in shown)],
    )
    lines = [f"per cent, with 95 % intervals over the {report.val_groups} groups of the scoring images"]
    if report.protocol != "matching":
        lines += _print_classes(console, report)
    lines.append(f"batch statistics {report.batch_statistics}; seeds: {_listed(report.seeds)}")
    if report.left_out:
        lines.append(f"left out: {_listed(report.left_out)}")
    for line in lines:
        print_line(console, line)


def _print_classes(console: Console, report: Report) -> list[str]:
    """Prints what is told of each class, and returns lines to follow."""
    from fastfgssl.evaluation.report import is_external, shown_result

    shown = shown_result(report.results)
    result = report.results[shown]
    print_table(
        console,
        [
            (name, str(row["images"]), str(row["groups"]), *(_cell(row, metric) for metric in _SHOWN_OF_CLASSES))
            for name, row in result["by_class"].items()
        ],
        title=f"each class by features {shown!r}",
        columns=["class", "images", "groups", *(_words(metric) for metric in _SHOWN_OF_CLASSES)],
    )
    print_table(
        console,
        [(name, *map(str, row)) for name, row in zip(report.classes, result["confusion"], strict=True)],
        title=f"confusion of features {shown!r}: true class by row, predicted by column",
        columns=["", *report.classes],
    )
    beside = [f"{_words(metric)} {_cell(result, metric)}" for metric in _BESIDE]
    lines = [f"features {shown!r}:", f"    {', '.join(beside[:2])},", f"    {', '.join(beside[2:])}"]
    if missing := [name for name, row in result["by_class"].items() if not row["images"]]:
        lines.append(f"no image of class {', '.join(missing)}: means over classes are of the others")
    if result["one_group"]:
        lines.append(f"one group alone, so that nothing is known of its spread: {', '.join(result['one_group'])}")
    to_train = f"the images to train{', of another archive' if is_external(vars(report)) else ''}"
    overlap = report.overlap
    if overlap is not None:
        lines += [
            f"shared with {to_train}: {overlap.groups} groups, {overlap.identical_files} identical files,",
            f"    {overlap.near_duplicates} near-duplicates (cosine of thumbnails {overlap.threshold:g} or more)",
        ]
        lines += [f"    {scoring} is like {training}: {cosine:.3f}" for scoring, training, cosine in overlap.examples]
    else:
        lines.append(f"not compared with {to_train}, which is not there")
    return lines


def _cell(row: dict, metric: str) -> str:
    """A score in per cent, or as it is where it is no share, with its interval if it has one."""
    value = row.get(metric)
    if value is None:
        return ""
    if metric == "C":
        return f"{value:g}"
    scale, digits = (1, 3) if metric in _NO_SHARES else (100, 1)
    low, high = row.get("intervals", {}).get(metric, (None, None))
    shown = _rounded(scale * value, digits)
    if low is None:
        return shown
    return f"{shown} ({_rounded(scale * low, digits)}{' to ' if low < 0 else '-'}{_rounded(scale * high, digits)})"


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.0


def _words(metric: str) -> str:
    for long, short in (("auroc", "AUROC"), ("macro_average_precision", "average_precision"), ("f1", "F1")):
        metric = metric.replace(long, short)
    return metric.replace("_", " ")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
