"""What a classifier makes of a folder of images or of an archive: a table with the probability of each class."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastfgssl.archive.images.decoded import picture_of
from fastfgssl.archive.listing import ImageFile, find_images
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.manifest_file import MANIFEST
from fastfgssl.archive.outcome import Unusable
from fastfgssl.archive.prepare import PrepareOptions
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.config.section import require
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.pretrained import PretrainedClassifier, load
from fastfgssl.runtime.distributed import device_name, start_world
from fastfgssl.runtime.environment import cores_per_rank, require_alone
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import check_writable, user_path, write_whole

log = logging.getLogger(__name__)
_UNDECODED = "does not decode, or is not what was stored; `fastfgssl prepare --verify` says more"

_NAMES_AT_ONCE = 4096


class Predicted(NamedTuple):
    """What was written."""

    images: Counter[str]
    """Images by the class that is most probable."""
    problems: dict[str, str]
    """Images that could not be decoded, and why."""


class _Row(NamedTuple):
    image: str
    probabilities: np.ndarray | None  # [K]; None for an image that could not be decoded
    problem: str = ""


def predict(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    flips: bool | None = None,
    device: str = "auto",
    batch_size: int = 64,
    max_pixels: int = PrepareOptions.max_pixels,
) -> Predicted:
    """Writes a CSV with a row for each image: `image`, `predicted`, `p_CLASS` for each class, and `problem`.

    data: a folder of images (or one image), or a prepared archive, whose images are called by their ids. An image that
    cannot be decoded has a row without a prediction, whose `problem` says why. flips: predictions are means over an
    image and its mirror images; None does as `supervised.flips` says. device: auto, cuda or cpu. max_pixels: larger
    images of a folder are not decoded. Raises `UserError` for a checkpoint that tells no classes apart, for data
    without images, and if `out` cannot be written.
    """
    require(batch_size > 0, "batch size", batch_size, "greater than 0")
    require_alone("a table of predictions")
    data, out = user_path(data), user_path(out)
    classifier = load(checkpoint)
    if not isinstance(classifier, PretrainedClassifier):
        raise UserError(f"{checkpoint}: tells no classes apart: it was pretrained without labels; fine-tune it first")
    if flips is not None:
        classifier.config = replace(classifier.config, supervised=replace(classifier.config.supervised, flips=flips))
    check_writable(out)
    found = Predicted(Counter(dict.fromkeys(classifier.classes, 0)), {})
    with start_world(device) as world:
        log.info("predicting on %s", device_name(world))
        classifier = classifier.to(world.device).to(memory_format=torch.channels_last)
        if (data / MANIFEST).exists():
            rows = _of_archive(classifier, Archive.open(data), world.device, batch_size)
        else:
            rows = _of_folder(
                classifier,
                find_images([data], SourceOptions(follow_links=True)).entries,
                world.device,
                batch_size,
                max_pixels,
            )
        with file_errors("write", out):
            write_whole(out, lambda file: _write(file, rows, classifier.classes, found))
    return found


def _write(file: BinaryIO, rows: Iterator[_Row], classes: tuple[str, ...], found: Predicted) -> None:
    """Writes the table, and counts in `found` what is in it."""
    # of names that are no Unicode, what is not can be told all the same
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "predicted", *(f"p_{name}" for name in classes), "problem"])
    for row in rows:
        if row.probabilities is None:
            found.problems[row.image] = row.problem
            table.writerow([row.image, "", *[""] * len(classes), row.problem])
            continue
        name = classes[int(row.probabilities.argmax())]
        found.images[name] += 1
        table.writerow([row.image, name, *(f"{value:.6g}" for value in row.probabilities), ""])
    text.flush()
    text.detach()  # the file is closed by who opened it


def _of_archive(
    classifier: PretrainedClassifier, archive: Archive, device: torch.device, batch_size: int
) -> Iterator[_Row]:
    ids = np.arange(archive.num_samples)
    extractor = FeatureExtractor(classifier.network, classifier.config, archive, device, batch_size)
    decoded, probabilities = extractor.probabilities(ids)
    row_of = np.full(len(ids), -1)
    row_of[decoded] = np.arange(len(decoded))
    for part in np.array_split(ids, -(-len(ids) // _NAMES_AT_ONCE)):
        for name, row in zip(archive.columns(part, ("id",))["id"], row_of[part].tolist(), strict=True):
            yield _Row(name, None, _UNDECODED) if row < 0 else _Row(name, probabilities[row])


def _of_folder(
    classifier: PretrainedClassifier,
    entries: Sequence[ImageFile],
    device: torch.device,
    batch_size: int,
    max_pixels: int,
) -> Iterator[_Row]:
    transform = classifier.transform

    def decode(entry: ImageFile) -> Tensor | str:
        """The image as the network takes it, or why there is none."""
        try:
            return transform(picture_of(entry.read(), max_pixels=max_pixels))
        except Unusable as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    parts = [entries[start : start + batch_size] for start in range(0, len(entries), batch_size)]
    with ThreadPoolExecutor(cores_per_rank(1)) as threads:

        def begin(part: Sequence[ImageFile]) -> list[Future[Tensor | str]]:
            return [threads.submit(decode, entry) for entry in part]

        ahead = begin(parts[0])
        for number, part in enumerate(parts):
            decoded = [future.result() for future in ahead]
            ahead = begin(parts[number + 1]) if number + 1 < len(parts) else []  # while the network runs
            yield from _rows(classifier, part, decoded, device)


@torch.inference_mode()
def _rows(
    classifier: PretrainedClassifier, entries: Sequence[ImageFile], decoded: list[Tensor | str], device: torch.device
) -> list[_Row]:
    images = [image for image in decoded if isinstance(image, Tensor)]
    found: Iterator[np.ndarray] = iter(())
    if images:
        batch = torch.stack(images).to(device)
        found = iter(classifier.probabilities(batch).cpu().numpy())
    return [
        _Row(entry.name, next(found)) if isinstance(image, Tensor) else _Row(entry.name, None, image)
        for entry, image in zip(entries, decoded, strict=True)
    ]
