"""The heaviest batch of an archive is decoded before the first: what a late giant takes is taken, or missed, at once.

A decoder's memory grows with what it meets, and stays. So the batch of the first epoch with the most pixels, with the
largest image of all in it, goes through the decoder before training begins: memory that does not suffice ends a run
then, in a line, and not after days.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.decode import Encoded, GraphSpec, build_decoder
from fastfgssl.data.order import Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.runtime.memory import available_memory, is_out_of_memory, memory_errors

log = logging.getLogger(__name__)

_WORTH = 256 << 20  # bytes of decoded images, below which nothing is rehearsed
_STEPS = 4096  # of the first epoch that are looked at
_GIB = 2**30


class Heaviest(NamedTuple):
    ids: np.ndarray
    """int64 [B], the samples of the batch."""
    nbytes: int
    """Of its images, decoded."""
    largest: tuple[int, int]
    """Width and height of the archive's largest image, which is among them."""


def bytes_a_pixel(spec: GraphSpec) -> int:
    """That the decoder's output takes; an image of more than 8 bits is a float32 too before a window makes it 8."""
    return spec.channels * {"8": 1, "16": 2, "own": 7}[spec.depth]


def find_heaviest(archive: Archive, spec: GraphSpec, slots: Callable[[int], Slots], stop: int) -> Heaviest:
    """Of the batches of steps 0 to `stop` - 1, as far as they are in the first epoch, with the largest image added."""
    largest = largest_image(archive)
    heaviest, sum_of_heaviest = np.array([largest]), 0
    for step in range(min(stop, _STEPS)):
        asked = slots(step)
        if step and asked.epochs.min() > 0:
            break
        pixels = _pixels(archive, asked.ids)
        if pixels.sum() > sum_of_heaviest:
            heaviest, sum_of_heaviest = asked.ids, int(pixels.sum())
    if largest not in heaviest:
        heaviest = heaviest.copy()
        heaviest[_pixels(archive, heaviest).argmin()] = largest
    sizes = archive.columns(np.array([largest]), ("width", "height"))
    nbytes = int(_pixels(archive, heaviest).sum()) * bytes_a_pixel(spec)
    return Heaviest(heaviest, nbytes, (int(sizes["width"][0]), int(sizes["height"][0])))


def largest_image(archive: Archive) -> int:
    """The number of the sample with the most pixels."""
    largest, most = 0, 0
    for first, count in zip(np.cumsum(archive.shard_sizes) - archive.shard_sizes, archive.shard_sizes, strict=True):
        pixels = _pixels(archive, np.arange(first, first + count))
        if count and pixels.max() > most:
            largest, most = int(first + pixels.argmax()), int(pixels.max())
    return largest


def rehearse(
    archive: Archive, spec: GraphSpec, slots: Callable[[int], Slots], quarantine: Quarantine, *, stop: int
) -> None:
    """Decodes the heaviest batch, unless it is small, and says what it takes. Raises `OutOfMemory` if that fails."""
    most = int(_pixels(archive, np.array([largest_image(archive)]))[0])
    if most * spec.batch_size * bytes_a_pixel(spec) < _WORTH:
        return
    found = find_heaviest(archive, spec, slots, stop)
    if found.nbytes < _WORTH:
        return
    what = f"decoding the heaviest batch ({describe(found)})"
    log.info("%s, before the first step", what)
    if spec.device_id is None and 2 * found.nbytes > (free := available_memory()):
        log.warning(
            "%s may not fit in the %.1f GiB of memory that are available: lower train.batch_size or data.prefetch, or"
            " prepare the archive with --short-side",
            what,
            free / _GIB,
        )
    reader = Reader(archive)
    try:
        ids, images = quarantine.read(found.ids, reader)
        windows = reader.windows(ids) if spec.depth == "own" else None
        with memory_errors(what):
            decoder = build_decoder(lambda: Encoded(images, windows), spec)
            decoder.build()
            try:
                # twice at a time: of what is given back not all is taken again
                _ = [decoder.run() for _ in range(2)]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise  # what the decoder refuses otherwise, the loader deals with when it meets it
    finally:
        reader.close()


def describe(found: Heaviest) -> str:
    """In a few words."""
    width, height = found.largest
    return f"{len(found.ids)} images, {found.nbytes / _GIB:.2f} GiB of pixels, the largest of {width} x {height}"


def _pixels(archive: Archive, ids: np.ndarray) -> np.ndarray:
    """int64 [B]"""
    sizes = archive.columns(ids, ("width", "height"))
    return sizes["width"].astype(np.int64) * sizes["height"].astype(np.int64)
