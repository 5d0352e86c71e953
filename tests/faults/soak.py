"""The long form of the tests of faults: every call, every error; its table goes into docs/reliability.md.

python tests/faults/soak.py [--minutes M] [--only WORDS] [--results FILE] [--out docs/reliability.md]

Each case is kept in the file of results as soon as it is known, and the table is made of that file: a soak that is
stopped, or killed, goes on with the cases that are missing, and `--minutes 0` writes the table of what there is. Cases
of a kind are taken in an order whose every beginning is spread over all of its calls, and kinds take turns, so that a
short soak sees something of everything. What has failed is tried again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from helpers.endurance import ALLOWED, Endurance, endure
from helpers.faults import ERRORS, Driver, Fault
from helpers.faulty_runs import HARMS, Finetuning, Harm, Preparing, Training
from helpers.paths import ROOT

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
RESULTS = ROOT / "runs" / "soak.jsonl"
RANDOMLY = "training: SIGKILL at a random moment"
RANDOM_KILLS = 100
Job = Training | Preparing


@dataclass
class Kind:
    """A kind of fault: its cases, each under a number that stays the same from soak to soak."""

    name: str
    faults: dict[int, Fault]
    job: Job

    def try_one(self, number: int) -> dict[str, Any]:
        """What comes of a case, for the file of results."""
        fault, job = self.faults[number], self.job
        job.clear()
        begin = time.monotonic()
        ended = job.run(fault)
        struck = bool(ended.failed) or (fault.kill_after is not None and ended.code == -9)
        harm = None
        if struck:
            try:
                job.check_left(ended)
                job.check_whole(job.run())
            except Harm as error:
                harm = [error.kind, "; ".join([*ended.failed[:1], *str(error).strip().splitlines()[:3]])]
        return {
            "kind": self.name,
            "case": number,
            "struck": struck,
            "code": ended.code,
            "noticed": ended.noticed if ended.code not in (0, -9) else None,
            "harm": harm,
            "seconds": round(time.monotonic() - begin, 3),
        }


def kinds(training: Training, finetuning: Finetuning, preparing: Preparing, shards: Path) -> list[Kind]:
    seconds, draws = min(_seconds_of(training) for _ in range(3)), random.Random(0)
    # some come after the end of their run, and are drawn again
    kills = [Fault(training.output, kill_after=draws.uniform(0, seconds)) for _ in range(5 * RANDOM_KILLS)]
    found = [Kind(RANDOMLY, dict(enumerate(kills)), training)]
    calls = training.calls(training.output)
    written = [n for n, call in enumerate(calls, 1) if "/step_" in call]
    best = [n for n, call in enumerate(finetuning.calls(finetuning.output), 1) if "/best.pt" in call]
    count, reads = len(preparing.calls(preparing.folder)), len(training.calls(shards))
    parts: list[tuple[str, Path, Job, list[int], tuple[str, ...]]] = [
        ("training: {} of a checkpoint's writing", training.output, training, written, ("kill",)),
        ("training: {}", training.output, training, [*range(1, len(calls) + 1)], ("kill", *ERRORS)),
        ("prepare: {}", preparing.folder, preparing, [*range(1, count + 1)], ("kill", *ERRORS)),
        ("reading of shards: {}", shards, training, [*range(1, reads + 1)], ("EIO", "ESTALE")),
        ("fine-tuning: {} of best.pt's writing", finetuning.output, finetuning, best, ("kill", *ERRORS)),
    ]
    for name, below, job, places, actions in parts:
        for action in actions:
            for lasting in (False, True) if action not in ("kill", "short") else (False,):
                words = (
                    "SIGKILL at each call" if action == "kill" else f"{action}, {'from then on' * lasting or 'once'}"
                )
                if "{} of" in name and action != "kill":
                    words += ", at each call"
                faults = {n: Fault(below, n, action, lasting) for n in _spread(places)}
                found.append(Kind(name.format(words), faults, job))
    return found


def _seconds_of(job: Job) -> float:
    job.clear()
    begin = time.monotonic()
    assert job.run().code == 0
    return time.monotonic() - begin


def _spread(places: list[int]) -> list[int]:
    """`places` in an order whose every beginning is spread over all of them."""
    count = len(places)
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) > 1:
        step += 1
    return [places[place * step % count] for place in range(count)]


def turns(found: list[Kind]) -> Iterator[tuple[Kind, int]]:
    """The kills at random moments and in a checkpoint's writing; then a case of each kind, then the next of each."""
    for kind in found[:2]:
        yield from ((kind, number) for number in kind.faults)
    cases = [(kind, list(kind.faults)) for kind in found[2:]]
    for place in range(max((len(numbers) for _, numbers in cases), default=0)):
        yield from ((kind, numbers[place]) for kind, numbers in cases if place < len(numbers))


class Results:
    """What is known of each case, by kind and number: lines of a file, of which the last on a case holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sizes: dict[str, int] = {}
        self.cases: dict[tuple[str, int], dict[str, Any]] = {}
        self.endurance: dict[str, Any] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else []:
            self._take(json.loads(line))

    def add(self, record: dict[str, Any]) -> None:
        self._take(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _take(self, record: dict[str, Any]) -> None:
        if "sizes" in record:
            self.sizes |= record["sizes"]
        elif "growth" in record:
            self.endurance = record
        else:
            self.cases[record["kind"], record["case"]] = record

    def lacks(self, kind: str, number: int) -> bool:
        record = self.cases.get((kind, number))
        if record is not None:
            return record["harm"] is not None
        return kind != RANDOMLY or self._random_kills < RANDOM_KILLS

    @property
    def _random_kills(self) -> int:
        return sum(record["struck"] for (kind, _), record in self.cases.items() if kind == RANDOMLY)

    def table(self) -> str:
        struck = [record for record in self.cases.values() if record["struck"]]
        minutes = sum(record["seconds"] for record in self.cases.values()) / 60
        harmed = sum(record["harm"] is not None for record in struck)
        commits = list(dict.fromkeys(record["commit"] for record in self.cases.values()))
        lines = [
            f"{len(struck)} faults in {minutes:.0f} minutes by `make soak` ({time.strftime('%Y-%m-%d')}, Linux"
            f" {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores under a load of"
            f" {os.getloadavg()[2]:.0f}; commits"
            f" {', '.join(commits)}): {harmed} of them did harm.",
            "",
            f"| fault | tried | of | went on at once | {' | '.join(HARMS)} | noticed after, s: median, most |",
            f"|---|---|---|---|{'---|' * len(HARMS)}---|",
            *(self._row(kind, size, [record for record in struck if record["kind"] == kind])
              for kind, size in self.sizes.items()),
        ]  # fmt: skip
        if self.endurance is not None:
            lines += ["", str(Endurance(**self.endurance["growth"]))]
        return "\n".join(lines)

    @staticmethod
    def _row(kind: str, size: int, records: list[dict[str, Any]]) -> str:
        harms = [record["harm"][0] for record in records if record["harm"]]
        noticed = sorted(record["noticed"] for record in records if record["noticed"] is not None)
        times = f"{noticed[len(noticed) // 2]:.2f}, {noticed[-1]:.2f}" if noticed else "-"
        untouched = sum(record["code"] == 0 for record in records)
        counts = [len(records), size, untouched, *(harms.count(harm) for harm in HARMS)]
        return f"| {kind} | {' | '.join(map(str, counts))} | {times} |"


def soak(results: Results, *, seconds: float, only: str, steps: int) -> None:
    """Tries what `results` lack, for that many seconds."""
    until = time.monotonic() + seconds
    commit = _commit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, archive = folder / "source", folder / "archive"
        write_phantoms(source, 24, seed=1, width=48, height=40, workers=1)
        labels, key = source / "labels.csv", folder / "key"
        prepare(PrepareOptions(sources=[source], out=archive, labels=labels, key=key, workers=1))
        if results.endurance is None and steps and only in "endurance":
            results.add({"growth": endure(archive, folder / "endurance", steps)._asdict(), "commit": commit})
            _tell(str(Endurance(**results.endurance["growth"])))
        if only == "endurance":
            return
        few = folder / "few"
        few.mkdir()
        for image in sorted((source / "images").iterdir())[:6]:
            image.rename(few / image.name)
        driver = Driver(folder)
        jobs = [job(driver, archive, folder / job.__name__) for job in (Training, Finetuning)]
        found = kinds(*jobs, Preparing(driver, few, folder / "preparing"), archive / "shards")
        results.add({"sizes": {kind.name: len(kind.faults) for kind in found} | {RANDOMLY: RANDOM_KILLS}})
        missing = [(kind, n) for kind, n in turns(found) if results.lacks(kind.name, n) and only in kind.name]
        _tell(f"{len(missing)} cases are missing")
        told = time.monotonic()
        for count, (kind, number) in enumerate(missing, 1):
            if time.monotonic() > until:
                break
            if not results.lacks(kind.name, number):
                continue
            record = kind.try_one(number)
            results.add(record | {"commit": commit})
            if record["harm"]:
                _tell(f"{kind.name}, case {number}: {': '.join(record['harm'])}")
            if time.monotonic() > told + 60:
                told = time.monotonic()
                _tell(f"{count} of {len(missing)} cases")
        driver.close()


def _tell(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _stopped(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of trying; 0 only writes the table")
    parser.add_argument("--only", default="", metavar="WORDS", help="kinds whose names have these words")
    parser.add_argument("--steps", type=int, default=20_000, help="of the run whose memory is watched; 0 for none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where cases are kept (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md", help="what has the table")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stopped)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each run that went on
    results = Results(arguments.results)
    try:
        if arguments.minutes > 0:
            soak(results, seconds=60 * arguments.minutes, only=arguments.only, steps=arguments.steps)
    except KeyboardInterrupt:
        _tell("stopped; the same command goes on")
    text = arguments.out.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    arguments.out.write_text(f"{before}{BEGIN}\n{results.table()}\n{END}{after}")
    print(results.table())
    grew = results.endurance is not None and Endurance(**results.endurance["growth"]).growth > ALLOWED
    return int(grew or any(record["harm"] for record in results.cases.values()))


if __name__ == "__main__":
    sys.exit(main())
