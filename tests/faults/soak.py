"""The long form of the tests of faults: every call, every error; its table goes into docs/reliability.md.

python tests/faults/soak.py [--minutes M] [--out docs/reliability.md]; what the time does not suffice for is not in the
table. Cases of a kind are taken in a fixed order that spreads over all calls, so that a short run sees all of them too.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from helpers.faults import ERRORS, Driver, Ended, Fault
from helpers.faulty_runs import Preparing, Training

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


@dataclass
class Kind:
    """A kind of fault, and what came of its cases."""

    name: str
    faults: list[Fault]
    job: Training | Preparing
    tried: int = 0
    untouched: int = 0
    """Ended well in spite of the fault."""
    broken: list[str] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    """Seconds from the start to the end of runs that an error ended."""

    def try_one(self, fault: Fault) -> None:
        self.job.clear()
        begin = time.monotonic()
        ended = self.job.run(fault)
        seconds = time.monotonic() - begin
        if not ended.failed and fault.kill_after is None:
            return
        self.tried += 1
        self.untouched += ended.code == 0
        if ended.code not in (0, -9):
            self.noticed.append(seconds)
        try:
            self.job.check_left(ended)
            self.job.check_whole(self.job.run())
        except Exception as error:  # whatever a check or a reader raises: the table counts it
            self.broken.append(f"{self.name}: {fault.n} {ended.failed[:1]}: {str(error).splitlines()[:1]}")
            print(self.broken[-1], file=sys.stderr, flush=True)

    def row(self) -> str:
        slowest = f"{max(self.noticed):.1f}" if self.noticed else "-"
        counts = (self.tried, len(self.faults), self.untouched, len(self.broken))
        return f"| {self.name} | {' | '.join(map(str, counts))} | {slowest} |"


def kinds(training: Training, preparing: Preparing, shards: Path) -> list[Kind]:
    draws = random.Random(0)
    training.clear()
    begin = time.monotonic()
    whole = training.run()
    seconds = time.monotonic() - begin
    assert whole.code == 0
    found = [
        Kind(
            "training: SIGKILL at a random moment",
            [Fault(training.output, kill_after=draws.uniform(0, seconds)) for _ in range(100)],
            training,
        )
    ]
    jobs: list[tuple[str, Path, Training | Preparing, Callable[[Fault], Ended]]] = [
        ("training", training.output, training, training.run),
        ("prepare", preparing.folder, preparing, preparing.run),
        ("reading of shards", shards, training, training.run),
    ]
    for name, below, job, run in jobs:
        job.clear()
        count = run(Fault(below)).calls
        places = _spread(count)
        if job is not training or below == training.output:
            found.append(Kind(f"{name}: SIGKILL at each call", [Fault(below, n, "kill") for n in places], job))
        for error in ERRORS:
            for lasting in (False, True):
                if (error, lasting) != ("short", True) and (below != shards or error in ("EIO", "ESTALE")):
                    faults = [Fault(below, n, error, lasting) for n in places]
                    found.append(Kind(f"{name}: {error}, {'from then on' if lasting else 'once'}", faults, job))
    return found


def _spread(count: int) -> list[int]:
    """1 to `count` in an order whose every beginning is spread over all of them."""
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) > 1:
        step += 1
    return [1 + place * step % count for place in range(count)]


def turns(found: list[Kind]) -> Iterator[tuple[Kind, Fault]]:
    """A case of each kind, then the next of each."""
    for place in range(max(len(kind.faults) for kind in found)):
        yield from ((kind, kind.faults[place]) for kind in found if place < len(kind.faults))


def table(found: list[Kind], seconds: float) -> str:
    tried, broken = sum(kind.tried for kind in found), sum(len(kind.broken) for kind in found)
    lines = [
        f"{tried} faults in {seconds / 60:.0f} minutes ({time.strftime('%Y-%m-%d')}, Linux {platform.release()},"
        f" Python {platform.python_version()}, one core of a busy machine): {broken} of them cost a run, a sample or a"
        " weight.",
        "",
        "| fault | tried | of | went on at once | lost or different | slowest end, s |",
        "|---|---|---|---|---|---|",
        *(kind.row() for kind in found if kind.tried),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.md"))
    arguments = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "source", 24, seed=1, width=48, height=40, workers=1)
        prepare(PrepareOptions(sources=[folder / "source"], out=folder / "archive", key=folder / "key", workers=1))
        few = folder / "few"
        few.mkdir()
        for image in sorted(folder.glob("source/images/*"))[:6]:
            image.rename(few / image.name)
        driver = Driver(folder)
        training = Training(driver, folder / "archive", folder / "training")
        found = kinds(training, Preparing(driver, few, folder / "preparing"), folder / "archive" / "shards")
        for kind, fault in turns(found):
            if time.monotonic() - begin > 60 * arguments.minutes:
                break
            kind.try_one(fault)
        driver.close()
        made = table(found, time.monotonic() - begin)
    text = arguments.out.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    arguments.out.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    print(made)
    return int(any(kind.broken for kind in found))


if __name__ == "__main__":
    sys.exit(main())
