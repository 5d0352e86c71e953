"""The whole way on generated images: archive, pretraining, scores before and after. No GPU, no download.

fastfgssl demo --out demo
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

from fastfgssl.commands import run_command
from fastfgssl.runtime.console import Parser, make_console, print_line, print_table
from fastfgssl.runtime.environment import require_alone
from fastfgssl.runtime.files import user_path

CONFIG = "demo"
PROTOCOLS = {"matching": "top1", "knn": "balanced_accuracy"}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=user_path, default=Path("demo"), metavar="DIR", help="folder for all of it")
    parser.add_argument("--images", type=int, default=1600, help="default %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the configuration demo")
    args = parser.parse_args()
    require_alone("the demonstration")
    start = time.monotonic()
    images, archive, run = args.out / "images", args.out / "archive", args.out / "run"
    if not archive.exists():
        if not (images / "labels.csv").exists():  # the last that the tool writes
            _command("phantom", images, "--images", args.images, "--width", 96, "--height", 96)
        _command("prepare", images, "--out", archive, "--labels", images / "labels.csv")
    _command("train", "--config", CONFIG, f"data.path={archive}", f"output={run}", *args.overrides)
    checkpoints = sorted((run / "checkpoints").glob("step_*.pt"))
    scores = {
        (protocol, when): _score(protocol, checkpoint, archive, args.out / f"{protocol}_{when}.json")
        for protocol in PROTOCOLS
        for when, checkpoint in (("before", checkpoints[0]), ("after", checkpoints[-1]))
    }
    _print(scores, args.out, run, time.monotonic() - start)


def _command(name: str, *arguments: object) -> None:
    """Runs one of the commands as a person would type it; in this process, which has imported what they need."""
    words = [str(argument) for argument in arguments]
    print_line(make_console(), f"$ fastfgssl {shlex.join((name, *words))}")
    if code := run_command(name, *words):
        sys.exit(code)  # a signal has stopped it


def _score(protocol: str, checkpoint: Path, archive: Path, report: Path) -> tuple[float, float]:
    """The protocol's main score of the features of all heads together, and what chance would give."""
    words = {"--checkpoint": checkpoint, "--data": archive, "--protocol": protocol, "--json": report}
    _command("evaluate", *(word for pair in words.items() for word in pair), "--quiet")
    content = json.loads(report.read_text())
    result = content["results"]["all"]
    return result[PROTOCOLS[protocol]], result.get("chance", 1 / len(content["classes"]))


def _print(scores: dict[tuple[str, str], tuple[float, float]], out: Path, run: Path, seconds: float) -> None:
    rows = []
    for protocol, name in (("matching", "view matching, top-1"), ("knn", "kNN, balanced accuracy")):
        (before, chance), (after, _) = (scores[protocol, when] for when in ("before", "after"))
        rows.append((name, *(f"{value:.3f}" for value in (chance, before, after))))
    console = make_console()
    title = "what the network learned from images without labels"
    print_table(console, rows, title=title, columns=("score", "chance", "before", "after"))
    print_line(
        console,
        f"{seconds:.0f} s. Where to look: {run}/views.png (what the network saw), {run}/metrics.jsonl (losses),"
        f" {run}/checkpoints, {out}/*.json (all scores); curves: tensorboard --logdir {run}",
    )
