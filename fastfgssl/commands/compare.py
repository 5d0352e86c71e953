"""Trains objectives under one configuration, over seeds, and says how their features compare.

fastfgssl compare --config demo --objectives fgssl.joint,barlow,untrained data.path=ARCHIVE --out runs/comparison

Each is given as many images, and then as many seconds as the fastest took: a run of its own, shorter by as much as it
is slower, so that every learning rate has come down at the end. The same command goes on. OUT/runs has an ordinary run
of each objective and seed, OUT/comparison.json all scores with 95 % intervals and differences to the first objective,
OUT/comparison.png shows them. Beside objectives of `fastfgssl train` there are untrained, random weights of each seed,
and imagenet, the published weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastfgssl.commands.train import config_parser
from fastfgssl.runtime.console import log_to, make_console, print_line, print_table
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import user_path

_OBJECTIVES = "fgssl.progressive,fgssl.joint,barlow,simclr,vicreg,byol,simsiam,untrained"
_OF_THE_COMMAND = {"output": "--out", "objective": "--objectives"}


def main() -> int:
    from fastfgssl.config.files import load_config

    parser = config_parser(__doc__)
    parser.add_argument(
        "--objectives",
        default=_OBJECTIVES,
        metavar="NAME,...",
        help="differences are to the first; default %(default)s",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of each, from the key `seed` on; default %(default)s")
    parser.add_argument("--protocol", choices=("knn", "linear"), default="knn", help="default %(default)s")
    parser.add_argument(
        "--batch-statistics",
        choices=("stored", "recomputed"),
        default="stored",
        help="of batch norm when scored: as training left them (none in untrained), or of the training split",
    )
    parser.add_argument(
        "--label-fraction",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of each class's labelled training groups that the protocol learns from; each seed draws its own",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of training for the second table; default: what the fastest took"
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("runs/comparison"), metavar="DIR", help="default %(default)s"
    )
    args = parser.parse_args()
    for override in args.overrides:
        if (option := _OF_THE_COMMAND.get(override.partition("=")[0])) is not None:
            raise UserError(f"override {override}: here {option} says it")
    config = load_config(args.config, args.overrides)

    from fastfgssl.comparison.compare import compare
    from fastfgssl.comparison.plot import save_plot
    from fastfgssl.runtime.signals import StopRequest
    from fastfgssl.training.display import Terminal

    console = make_console()
    log_to(console)
    with StopRequest() as request:
        outcome = compare(
            config,
            [name.strip() for name in args.objectives.split(",") if name.strip()],
            out=args.out,
            seeds=args.seeds,
            protocol=args.protocol,
            batch_statistics=args.batch_statistics,
            label_fraction=args.label_fraction,
            seconds=args.seconds,
            hooks=lambda run: [Terminal(console, run)],
            stop_signal=lambda: request.signal_number,
        )
    if outcome.results is None:
        return 128 + (outcome.stopped_by or 0)
    _print(outcome.results)
    shown = [str(args.out / "comparison.json")]
    try:
        save_plot(outcome.results, args.out / "comparison.png")
        shown.append(str(args.out / "comparison.png"))
    except UserError as error:  # the scores are there, and are worth more
        print_line(console, str(error))
    print_line(console, f"all scores, and of each class: {', '.join(shown)}")
    return 0


def _print(results: dict[str, Any]) -> None:
    from fastfgssl.comparison.results import intervals_over, labels_used

    console = make_console()
    images, seconds = results["equal_images"], results["equal_seconds"]
    _print_budget(results, images, f"equal images: {images['images']:,} seen")
    if seconds is not None:
        _print_budget(results, seconds, f"equal seconds: {seconds['seconds']:,.0f} s of training")
    floors = ", ".join(f"{name} {100 * scores['balanced_accuracy']:.1f}" for name, scores in results["floors"].items())
    many = len(results["seeds"])
    for line in (
        f"{results['protocol']} on {results['val_samples']} images of {results['val_groups']} groups"
        f" ({results['split']}), {results['fit_samples']} to train{labels_used(results)};"
        f" {many} {'seeds' if many > 1 else 'seed'}; batch statistics {results['batch_statistics']}",
        f"balanced accuracy in per cent, in brackets 95 % over {intervals_over(results)}; without a network: {floors}",
        f"difference to {images['rows'][0]['label']}; features of the backbone, or of all heads side by side",
    ):
        print_line(console, line)


def _print_budget(results: dict[str, Any], budget: dict[str, Any], title: str) -> None:
    rows = []
    for row in budget["rows"]:
        scores, cost = row["scores"], budget["costs"].get(row["objective"])
        cells = ["", "", ""]
        if cost is not None and row["features"] == "backbone":
            memory = cost["peak_memory"]
            cells = [f"{cost['images_per_second']:,.0f}", f"{cost['seconds']:,.0f}"]
            cells.append("" if memory is None else f"{memory / 2**30:.1f}")
        difference = scores.get("differences", {}).get("balanced_accuracy")
        rows.append(
            (
                row["label"],
                _share(scores["balanced_accuracy"], *scores["intervals"]["balanced_accuracy"]),
                "" if difference is None else _share(*difference.values(), sign="+"),
                *cells,
            )
        )
    columns = ("objective", "balanced accuracy", "difference", "images/s", "seconds", "GiB")
    print_table(make_console(), rows, title=title, columns=columns)


def _share(value: float | None, low: float | None, high: float | None, *, sign: str = "") -> str:
    if value is None:
        return ""
    shown, *bounds = (None if part is None else round(100 * part, 1) + 0.0 for part in (value, low, high))  # no -0.0
    return f"{shown:{sign}.1f}" + ("" if None in bounds else f" ({bounds[0]:.1f} to {bounds[1]:.1f})")
