"""Proves the GPU side on a machine with a CUDA GPU: its tests and every suite, within a budget of seconds.

GPU_SECONDS=420 GPU_STAGES="core dali compile" GPU_OUT=runs/gpu python tests/gpu/run.py

Parts run in the order of their worth, each in a process of its own with a limit of its own: what fails or hangs costs
itself alone. `core` needs torch and no DALI, `dali` both; `compile` takes minutes. Logs, records and the summary are
written as they come, in few files; of a part that says more than 2 MiB, the log has the beginning and the end.
REHEARSE=1 runs every part on a CPU with tiny sizes, so that nothing fails for a silly reason on the day.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[2]
REHEARSE = os.environ.get("REHEARSE") == "1"
DEVICE = "cpu" if REHEARSE else "cuda"
SLOWER = 5 if REHEARSE else 1  # limits are those of a GPU
PYTEST = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--durations=8", "--tb=short", "-m", "gpu")


@dataclass(frozen=True)
class Part:
    name: str
    seconds: int
    """What it may take."""
    command: tuple[str, ...]


def tests(*paths: str) -> tuple[str, ...]:
    paths = tuple(str(ROOT / path) for path in paths)
    workers = ("-n", "2" if REHEARSE else "4") if importlib.util.find_spec("xdist") else ()
    return (*PYTEST, *workers, *paths)


def suite(name: str, *arguments: str) -> tuple[str, ...]:
    out = str(OUT / f".{name}.json")
    rehearsed = ("--rehearse",) if REHEARSE else ()
    return (sys.executable, "-m", "fastfgssl", "bench", name, "--device", DEVICE, "--json", out, *rehearsed, *arguments)


def operators(*loaders: str) -> tuple[str, ...]:
    """Builds them, which is no part of what the next parts take."""
    names = ", ".join(loaders)
    calls = "; ".join(f"{loader}()" for loader in loaders)
    return (sys.executable, "-c", f"from fastfgssl.kernels.build import {names}; {calls}")


def command(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "fastfgssl", name, *arguments)


CORE_TESTS = ("tests/gpu/test_core.py", "tests/kernels/test_jigsaw.py", "tests/kernels/test_fan_out_tensors.py")
WORK = Path(tempfile.mkdtemp(prefix="gpu-"))
PACKAGES, NO_DALI = WORK / "packages", WORK / "no-dali"
PHOTOGRAPHS, ARCHIVE = str(WORK / "photographs"), str(WORK / "archive")
OUT = Path(os.environ.get("GPU_OUT") or ROOT / "runs" / "gpu").absolute()
STAGES = {
    "core": [
        Part("device", 20, ("nvidia-smi",)),
        Part("core-tests", 110, tests(*CORE_TESTS)),
        Part("loss", 35, suite("loss")),
        Part("operators", 45, operators("load_tensors")),
        Part("jigsaw", 40, suite("jigsaw")),
        Part("step", 130, suite("step")),
        Part(
            "sanitizer",
            30,
            ("compute-sanitizer", "--error-exitcode", "99", *PYTEST, "-k", "33", str(ROOT / CORE_TESTS[-1])),
        ),
    ],
    "dali": [
        Part("operators", 60, operators("load_tensors", "load_plugin")),
        Part(
            "images",
            45,
            command("phantom", PHOTOGRAPHS, "--images", "256", "--width", "600", "--height", "450"),
        ),
        Part("archive", 60, command("prepare", PHOTOGRAPHS, "--out", ARCHIVE)),
        Part("train", 100, suite("train", "--real", ARCHIVE)),
        Part(
            "dali-tests",
            70,
            tests(
                "tests/gpu/test_dali.py",
                "tests/gpu/test_evaluation.py",
                "tests/data/test_loader.py",
                "tests/data/test_decode_failures.py",
                "tests/kernels/test_fan_out.py",
            ),
        ),
        Part("input", 160, suite("input", "--index-samples", "1000000" if not REHEARSE else "1000")),
    ],
    "compile": [Part("compile", 300, suite("compile"))],
}
PARTS = [part.name for parts in STAGES.values() for part in parts]


def link_package() -> None:
    """The checkout as it is installed, with kernels/ and configs/ in it: nothing has to be installed here."""
    package = PACKAGES / "fastfgssl"
    package.mkdir(parents=True)
    for path in (*(ROOT / "fastfgssl").iterdir(), ROOT / "kernels", ROOT / "configs"):
        with contextlib.suppress(FileExistsError):
            (package / path.name).symlink_to(path)
    NO_DALI.mkdir()
    (NO_DALI / "sitecustomize.py").write_text('import sys\n\nsys.modules["nvidia.dali"] = None\n')


_TELLING = re.compile(r"(FAILED|ERROR|error|E   |== |(loss|jigsaw|step|train|input): )|\d+ (passed|failed)")


MOST = 2**20
"""Bytes that a log has of the beginning of what a part says, and of the end: no stage's log becomes 16 MiB."""


class Output(threading.Thread):
    """Copies the beginning of what a part says to the log as it comes; `finish` adds the end."""

    def __init__(self, pipe: BinaryIO, log: BinaryIO) -> None:
        super().__init__(daemon=True)
        self.pipe, self.log = pipe, log
        self.room, self.end, self.left_out = MOST, bytearray(), 0
        self.start()

    def run(self) -> None:
        while chunk := os.read(self.pipe.fileno(), 65536):
            beginning, rest = chunk[: self.room], chunk[self.room :]
            self.room -= len(beginning)
            self.log.write(beginning)
            self.log.flush()
            self.end += rest
            if (excess := len(self.end) - MOST) > 0:
                self.left_out += excess
                del self.end[:excess]

    def finish(self) -> None:
        self.join(timeout=3)  # a process that got out of the part's group may hold the pipe for ever
        self.room = 0
        if self.left_out:
            self.log.write(f"\n[{self.left_out:,} bytes are left out here]\n".encode())
        self.log.write(self.end)
        self.log.flush()


def run(part: Part, seconds: float, log: BinaryIO, folders: Sequence[Path]) -> str:
    """Runs it for at most `seconds`, with what is in `folders` to import; says how it ended."""
    if shutil.which(part.command[0]) is None:
        return f"not run: no {part.command[0]} on the PATH"
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
        "PYTHONPATH": os.pathsep.join([*map(str, folders), *sys.path[1:]]),
    }
    process = subprocess.Popen(
        part.command,
        cwd=PACKAGES,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        bufsize=0,
    )
    output = Output(process.stdout, log)
    try:
        code = process.wait(timeout=seconds)
        return "done" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # stacks of all its processes' threads go into the log
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        return f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.finish()


def main() -> int:
    end = time.monotonic() + float(os.environ.get("GPU_SECONDS") or 420) * SLOWER
    wanted = (os.environ.get("GPU_STAGES") or "core dali compile").split()
    only = (os.environ.get("GPU_RUN") or "").split()
    for name, known in [*((stage, list(STAGES)) for stage in wanted), *((part, PARTS) for part in only)]:
        if name not in known:
            sys.exit(f"{name}: must be one of {', '.join(known)}")
    OUT.mkdir(parents=True, exist_ok=True)
    link_package()
    summary, records = [], []
    for stage in wanted:
        # where a rehearsal has DALI, `core` is held to do without
        folders = [PACKAGES, NO_DALI] if REHEARSE and stage == "core" else [PACKAGES]
        with (OUT / f"{stage}.log").open("wb") as log:
            for part in STAGES[stage]:
                if only and part.name not in only:
                    continue
                start = time.monotonic()
                seconds = min(part.seconds * SLOWER, end - start)
                log.write(f"== {part.name}\n".encode())
                log.flush()
                ended = run(part, seconds, log, folders) if seconds > 5 else "not run: no time left"
                summary.append(f"{part.name}: {ended} ({time.monotonic() - start:.0f} s)")
                log.write(f"== {summary[-1]}\n".encode())
                (OUT / "summary.txt").write_text("\n".join(summary) + "\n")
                written = OUT / f".{part.name}.json"
                if written.exists():
                    records += json.loads(written.read_text())
                    written.unlink()
                    (OUT / "records.json").write_text(json.dumps(records, indent=1) + "\n")
        lines = (OUT / f"{stage}.log").read_text(errors="replace").splitlines()
        print("\n".join(line for line in lines if _TELLING.match(line))[-8000:])
    shutil.rmtree(WORK, ignore_errors=True)
    print("\n".join(summary))
    passed = (": done", *(["on the PATH"] if REHEARSE else []))
    return 0 if all(any(ending in line for ending in passed) for line in summary) else 1


if __name__ == "__main__":
    sys.exit(main())
