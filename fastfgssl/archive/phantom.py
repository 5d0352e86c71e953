"""A folder of phantoms (phantom_scene.py), with a table of their classes."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fastfgssl.archive.building.worker import NO_ITEM, Death, Watch
from fastfgssl.archive.building.workers import run_tasks
from fastfgssl.archive.phantom_scene import MIN_SIDE, TEXTURES, check_at_least, phantom_image, splits
from fastfgssl.runtime.environment import available_cores, require_alone
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import user_path

_CHUNK = 8  # images that a worker is given at once


def write_phantoms(
    out: Path,
    count: int,
    *,
    seed: int = 0,
    width: int = 600,
    height: int = 450,
    quality: int = 90,
    workers: int | None = None,
    on_progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Writes the first `count` phantoms of `seed` as `out/images/000000.jpg`, ... and, last, `out/labels.csv`.

    Columns of the table: image (path below `out`), label (name of the texture), group (one an image) and split (a
    quarter of each class, give or take one image, is `val`, the rest `fit`). `quality` is JPEG's, 1 to 95; `workers`
    processes share the work (default: one a core) and leave no trace in the bytes; `on_progress` is told now and then
    how many images are done. `UserError` for bad arguments, a failed write, or an `out` that is not new, empty or
    unfinished.
    """
    require_alone("a folder of phantoms")
    out = user_path(out)
    workers = available_cores() if workers is None else workers
    check_at_least(images=(count, 1), seed=(seed, 0), quality=(quality, 1), workers=(workers, 1))
    check_at_least(width=(width, MIN_SIDE), height=(height, MIN_SIDE))
    if quality > 95:
        raise UserError(f"quality must be at most 95, not {quality}")
    unfinished = out / "labels.csv.partial"  # there from the start until it becomes the table
    if out.exists() and not (out.is_dir() and (unfinished.exists() or not any(out.iterdir()))):
        raise UserError(f"{out} exists and is not an empty folder: name a new one")
    labels: dict[int, int] = {}
    with file_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        shutil.rmtree(out / "images", ignore_errors=True)
        (out / "images").mkdir()
        chunks = (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
        write = _Writer(out, seed, width, height, quality)
        with closing(run_tasks(write, chunks, min(workers, count), after_death=_after_death)) as written:
            for of_chunk in written:
                labels |= of_chunk
                on_progress(len(labels))
        _write_table(unfinished, [labels[index] for index in range(count)], seed)
        unfinished.replace(out / "labels.csv")


def _write_table(file: Path, labels: list[int], seed: int) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["image", "label", "group", "split"])
        for i, (label, split) in enumerate(zip(labels, splits(labels, seed), strict=True)):
            table.writerow([_image_path(i), TEXTURES[label], f"{i:06d}", split])


def _after_death(death: Death) -> Any:
    if death.item != NO_ITEM:
        raise UserError(f"phantom {death.item} {death.reason}: if memory ran out, take fewer --workers")
    return death.task


@dataclass(frozen=True)
class _Writer:
    """Writes phantoms, and returns the label of each: what a worker does."""

    out: Path
    seed: int
    width: int
    height: int
    quality: int

    def __call__(self, indices: range, watch: Watch) -> dict[int, int]:
        labels = {}
        for index in indices:
            watch.begin(index)
            image, labels[index] = phantom_image(index, seed=self.seed, width=self.width, height=self.height)
            Image.fromarray(image).save(self.out / _image_path(index), quality=self.quality)
        return labels


def _image_path(index: int) -> str:
    return f"images/{index:06d}.jpg"
