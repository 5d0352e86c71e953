"""The whole way on generated images: archive, pretraining, scores before and after. No GPU, no download.

python tools/demo.py --out demo
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastfgssl.runtime.console import Parser
from fastfgssl.runtime.errors import UserError

CONFIG = "demo"
PROTOCOLS = {"matching": "top1", "knn": "balanced_accuracy"}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for all of it")
    parser.add_argument("--images", type=int, default=1600, help="default %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the configuration demo")
    args = parser.parse_args()
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
    """Runs one of the commands as a person would type it."""
    command = [sys.executable, "-m", "fastfgssl", name, *map(str, arguments)]
    print(f"$ fastfgssl {shlex.join(command[3:])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        raise UserError(f"fastfgssl {name} ended with exit code {code}; its message is above")


def _score(protocol: str, checkpoint: Path, archive: Path, report: Path) -> tuple[float, float]:
    """The protocol's main score of the features of all heads together, and what chance would give."""
    _command(
        "evaluate",
        "--checkpoint",
        checkpoint,
        "--data",
        archive,
        "--protocol",
        protocol,
        "--json",
        report,
        "--quiet",
    )
    content = json.loads(report.read_text())
    result = content["results"]["all"]
    return result[PROTOCOLS[protocol]], result.get("chance", 1 / len(content["classes"]))


def _print(scores: dict[tuple[str, str], tuple[float, float]], out: Path, run: Path, seconds: float) -> None:
    console = Console()
    table = Table(title="what the network learned from images without labels")
    for column in ("score", "chance", "before", "after"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for protocol, name in (("matching", "view matching, top-1"), ("knn", "kNN, balanced accuracy")):
        (before, chance), (after, _) = (scores[protocol, when] for when in ("before", "after"))
        table.add_row(name, *(f"{value:.3f}" for value in (chance, before, after)))
    console.print(table)
    console.print(
        f"{seconds:.0f} s. Where to look: {run}/views.png (what the network saw), {run}/metrics.jsonl (losses),"
        f" {run}/checkpoints, {out}/*.json (all scores); curves: tensorboard --logdir {run}",
        soft_wrap=True,
        highlight=False,
    )
