"""Rate and memory of `prepare` over many small JPEGs, all different, in a zip that it writes first.

python tests/helpers/prepare_scale.py [IMAGES] [FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import simplejpeg

SIDE, WORKERS = 64, 2
MIB = 1 << 20
KINDS = ("VmHWM", "RssAnon", "RssFile")


def write_images(path: Path, number: int) -> None:
    """A zip of `number` JPEGs of 64 x 64 pixels, a few discs over a slope each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        for n in range(number):
            slope, (row, column), radius = rng.uniform(-1, 1, (3, 2)), rng.uniform(10, 54, 2), rng.uniform(4, 20)
            disc = 60 * ((rows - row) ** 2 + (columns - column) ** 2 < radius**2)
            channels = [128 + a * (rows - 32) + b * (columns - 32) - disc for a, b in slope]
            pixels = np.stack(channels, axis=-1) + rng.normal(0, 4, (SIDE, SIDE, 1))
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)), 90)
            out.writestr(f"patient{n // 20:05d}/{n:07d}.jpg", data)


def resident(process: int) -> dict[str, float]:
    """MiB of a process by kind: VmHWM is its peak so far, RssAnon its own, RssFile pages of files."""
    try:
        lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    except OSError:
        return {}
    return {line[0][:-1]: int(line[1]) / 1024 for line in lines if line[0][:-1] in KINDS}


def descendants(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*children, *(further for child in children for further in descendants(child))]


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as made:
        folder = Path(made)
        write_images(folder / "images.zip", number)
        command = [sys.executable, "-m", "fastfgssl", "prepare", str(folder / "images.zip"), "--out"]
        command += [str(folder / "archive"), "--workers", str(WORKERS)]
        begun = time.monotonic()
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        of_parent, of_others = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                for process in (running.pid, *descendants(running.pid)):
                    peaks = of_parent if process == running.pid else of_others
                    peaks.update({kind: max(peaks[kind], size) for kind, size in resident(process).items()})

        watcher = threading.Thread(target=watch)
        watcher.start()
        said, _ = running.communicate()
        seconds = time.monotonic() - begun
        done.set()
        watcher.join()
        size = sum(path.stat().st_size for path in (folder / "archive").rglob("*") if path.is_file())
    print(said.strip())
    print(
        f"{number:,} JPEGs of {SIDE} x {SIDE} pixels, {size / MIB:.0f} MiB of archive: exit code {running.returncode},"
    )
    print(f"{number / seconds:,.0f} a second of wall clock; peaks of memory in MiB:")
    for who, peaks in (("parent", of_parent), ("largest of the others", of_others)):
        print(f"{who}: " + ", ".join(f"{kind} {peak:.0f}" for kind, peak in peaks.items()))


if __name__ == "__main__":
    main()
