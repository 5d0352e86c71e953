"""Bytes that strangers could write, guided by what they reach in our parsers: `make fuzz` (needs atheris).

python tests/faults/fuzz.py [--minutes M] [--only WORDS] [--seeds FOLDER] [--found FOLDER]

Each target of `helpers.hostile` runs in a process of its own, for its share of the CPU time. What breaks a promise is
kept in FOLDER, a file for each place that it comes from, and the search goes on; where a decoder of other people's ends
the process, or an input takes too long or too much memory, its input is kept as `ended-N.bin`, and it begins again.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import os
import random
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS, MEBIBYTES = 10, 1024  # of an input; the second also of a single allocation
_LARGEST = 1 << 16  # bytes of an input
_RESTARTS = 20
_STUCK = 60  # seconds without any work: memory that is corrupted can leave the process waiting for itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of CPU time, all targets together (60)")
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--seeds", type=Path, help="a folder of files that are seeds too")
    parser.add_argument("--found", type=Path, default=ROOT / "runs" / "fuzz", help="what is kept (runs/fuzz)")
    parser.add_argument("--target", help=argparse.SUPPRESS)  # of the processes that it starts
    arguments = parser.parse_args()
    if arguments.target:
        _fuzz(arguments.target, arguments.found, arguments.minutes * 60, arguments.seeds)
        return
    from helpers.hostile import TARGETS

    names = arguments.only or list(TARGETS)
    print("| target | CPU s | executions | places of our code reached | broken promises | ended the process |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names:
        _run(name, arguments.found / name, arguments.minutes * 60 / len(names), arguments.seeds)


def _run(name: str, found: Path, seconds: float, seeds: Path | None) -> None:
    """One target, in as many processes as it takes."""
    found.mkdir(parents=True, exist_ok=True)
    spent, executions, reached, ended = 0.0, 0, 0, 0
    while spent < 0.98 * seconds and ended <= _RESTARTS:
        before = _of_children()
        command = [sys.executable, __file__, "--target", name, "--found", str(found)]
        command += ["--minutes", str((seconds - spent) / 60), *(["--seeds", str(seeds)] if seeds else [])]
        said = _until_its_end(command)
        spent += _of_children() - before
        counts = [int(count) for count in re.findall(r"^#(\d+)\s", said, re.MULTILINE)]
        executions += max(counts, default=0)
        reached = max([reached, *(int(count) for count in re.findall(r" cov: (\d+)", said))])
        if "Done " not in said:
            (found / f"ended-{ended}.log").write_text(said[-20_000:])
            (found / f"ended-{ended}.bin").write_bytes(_Current(found).data())
            ended += 1
            if not counts:
                break
    kept = len(list(found.glob("broken-*.txt")))
    print(f"| {name} | {spent:.0f} | {executions:,} | {reached:,} | {kept} | {ended} |", flush=True)


def _until_its_end(command: list[str]) -> str:
    """What a process says on its standard error."""
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace"
    ) as running:
        before = -1
        while True:
            try:
                return running.communicate(timeout=_STUCK)[1]
            except subprocess.TimeoutExpired:
                fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
                if (used := int(fields[11]) + int(fields[12])) == before:
                    running.kill()
                before = used


class _Current:
    """The input that a process is at: in a file that is there when the process is not."""

    def __init__(self, found: Path) -> None:
        with (found / "current").open("a+b") as file:
            file.truncate(_LARGEST + 4)
            self._memory = mmap.mmap(file.fileno(), _LARGEST + 4)

    def note(self, data: bytes) -> None:
        self._memory[: 4 + len(data)] = len(data).to_bytes(4, "little") + data

    def data(self) -> bytes:
        return self._memory[4 : 4 + int.from_bytes(self._memory[:4], "little")]


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _fuzz(name: str, found: Path, seconds: float, seeds: Path | None) -> None:
    import atheris

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["fastfgssl.archive"], enable_loader_override=False):
        from helpers import hostile, mutations, promises

    target = hostile.TARGETS[name]
    corpus = found / "corpus"
    corpus.mkdir(exist_ok=True)
    files = [path for path in (sorted(seeds.rglob("*")) if seeds else ()) if path.suffix.lower() in target.suffixes]
    given = [path.read_bytes() for path in files if path.stat().st_size <= _LARGEST]
    if name in ("tar", "dicom"):  # which begin with a byte of their own
        given = [b"\0" + data for data in given]
    for number, data in enumerate([*target.seeds(), *given]):
        (corpus / f"seed-{number}").write_bytes(data)
    places: set[str] = set()
    end = time.process_time() + seconds

    def check(data: bytes) -> None:
        begun = time.process_time()
        try:
            target.check(data)
            if time.process_time() - begun > SECONDS:
                raise promises.Broken(f"it takes {time.process_time() - begun:.1f} s")
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            last = next((frame for frame in reversed(frames) if "fastfgssl" in frame.filename), frames[-1])
            place = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}-{frames[-1].lineno}"
            if place not in places:
                places.add(place)
                (found / f"broken-{place}").write_bytes(data)
                (found / f"broken-{place}.txt").write_text(traceback.format_exc())

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        dice = random.Random(seed)
        data = mutations.mutated(data, dice) if dice.random() < 0.3 else atheris.Mutate(data, len(data))
        return (mutations.with_checksums(name, data) if dice.random() < 0.7 else data)[:largest]

    options = [
        f"-max_total_time={int(seconds * 20) + 60}",
        f"-timeout={6 * SECONDS}",
        f"-rss_limit_mb={4 * MEBIBYTES}",
        f"-malloc_limit_mb={MEBIBYTES}",
        f"-max_len={_LARGEST}",
        f"-artifact_prefix={found}/ended-",
        "-print_final_stats=1",
        "-detect_leaks=0",
        "-use_value_profile=0",
        str(corpus),
    ]
    executions = 0
    current = _Current(found)

    def until(data: bytes) -> None:
        nonlocal executions
        executions += 1
        current.note(data)
        check(data)
        if time.process_time() > end:  # libFuzzer knows no CPU time
            sys.stderr.write(f"\n#{executions} Done in {time.process_time():.0f} s\n")
            sys.stderr.flush()
            os._exit(0)

    atheris.Setup([sys.argv[0], *options], until, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
