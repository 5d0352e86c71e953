"""Suite `prepare`: from a folder to an archive, against a plain loop, and against workers that decode and no more.

All three start anew for each run, processes too. The limit is as many processes that decode the same files once.
What each further image takes, as in a large archive, is the difference between runs of all files and of a quarter.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

from fastfgssl.archive.building.parts import expect_part_makers
from fastfgssl.archive.building.worker import Death
from fastfgssl.archive.building.workers import run_tasks
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.benchmarks.decoding import Decode, dicom_pixels, jpeg_pixels
from fastfgssl.benchmarks.measure import CheckFailed, Record, Settings, Suite, interleaved
from fastfgssl.runtime.environment import available_cores

_CHUNK = 64  # files that a worker is given at once
_RUNS = 5
_TICK = 1e-3  # seconds that a difference is at least: where a rehearsal's is noise


class _Kind(NamedTuple):
    """Files that are prepared."""

    case: str
    images: int
    write: Callable[[Path, int], object]
    decode: Callable[[bytes], np.ndarray]
    to_png: bool
    """What the plain loop does; it leaves the others as they are."""


def run(settings: Settings) -> Iterator[Record]:
    """JPEG files of two sizes, and slices of a CT as they come from a scanner, and compressed."""
    suite = Suite("prepare", settings).on_host()
    expect_part_makers()  # before what writes files has workers
    for kind in _KINDS:
        with tempfile.TemporaryDirectory() as folder:
            yield from _measure(suite, kind, Path(folder))


def _measure(suite: Suite, kind: _Kind, folder: Path) -> Iterator[Record]:
    """Of a whole run, and of each further image."""
    rehearse = suite.settings.rehearse
    images = 8 if rehearse else kind.images
    whole, quarter = folder / "source", folder / "quarter" / "source"  # ids are of a source's name and the path in it
    whole.mkdir()
    kind.write(whole, images)
    quarter.mkdir(parents=True)
    for path in _files(whole)[: images // 4]:
        os.link(path, quarter / path.name)
    workers = available_cores()
    cases: dict[str, Callable[[], object]] = {}
    for size, source in (("whole", whole), ("quarter", quarter)):
        files = _files(source)
        cases |= {
            f"ours, {size}": partial(_prepare, source, len(files), folder, workers),
            f"baseline, {size}": partial(_plain, kind, files, folder / "plain.tar"),
            f"limit, {size}": partial(_decode, kind, files, workers),
        }
    seconds = interleaved(cases, runs=1 if rehearse else _RUNS, device=suite.device)
    suite.settings.traces.call(f"{suite.name}: {kind.case}", cases["ours, whole"], suite.device)
    ways = ("ours", "baseline", "limit")
    of_run = {way: seconds[f"{way}, whole"] for way in ways}
    further = {
        way: [max(_TICK, more - few) for more, few in zip(of_run[way], seconds[f"{way}, quarter"], strict=True)]
        for way in ways
    }
    record = partial(
        suite.record,
        baseline="Pillow or pydicom, and tarfile, in one process",
        limit="as many workers that decode and no more",
        unit="images/s",
    )
    yield record(f"{kind.case}, {workers} workers", of_run, items=images)
    yield record(f"{kind.case}, each further one, {workers} workers", further, items=images - images // 4)


def _files(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.suffix in (".jpg", ".dcm"))


def _prepare(source: Path, images: int, folder: Path, workers: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        out = Path(fresh, "archive")
        prepare(PrepareOptions(sources=[source], out=out, key=folder / "key", workers=workers))
        if (samples := Archive.open(out).num_samples) != images:
            raise CheckFailed(f"{samples} of {images} images are in the archive")


def _decode(kind: _Kind, files: Sequence[Path], workers: int) -> None:
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    done = sum(run_tasks(Decode(kind.decode), chunks, workers, after_death=_give_up))
    if done != len(files):
        raise CheckFailed(f"{done} of {len(files)} files were decoded")


def _give_up(death: Death) -> None:
    raise CheckFailed(f"a worker that decodes {death.reason}")


def _plain(kind: _Kind, files: Sequence[Path], out: Path) -> None:
    """As people write shards: each image is decoded to see that it can be, and added to a tar."""
    with tarfile.open(out, "w") as tar:
        for path in files:
            data = path.read_bytes()
            if kind.to_png:
                pixels = kind.decode(data).astype(np.float32)
                low, high = pixels.min(), pixels.max()
                buffer = io.BytesIO()
                Image.fromarray((255 * (pixels - low) / (high - low)).astype(np.uint8)).save(buffer, "PNG")
                data = buffer.getvalue()
            else:
                Image.open(io.BytesIO(data)).load()
            member = tarfile.TarInfo(path.stem + (".png" if kind.to_png else ".jpg"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _photographs(folder: Path, images: int, *, width: int, height: int) -> None:
    write_phantoms(folder, images, seed=0, width=width, height=height)


def _slices(folder: Path, images: int, *, compressed: bool) -> None:
    """CT slices of 512 x 512 pixels of 12 bits, each of noise and shapes of its own."""
    rng = np.random.default_rng(0)
    syntax = JPEG2000Lossless if compressed else ExplicitVRLittleEndian
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    for number in range(images):
        body = 1000 * (x**2 / 0.7 + y**2 < 0.8 - 0.1 * rng.random()) + 300 * (np.hypot(x - 0.2, y) < 0.2 * rng.random())
        pixels = (body + rng.normal(100, 12, (512, 512))).clip(0, 4095).astype(np.uint16)
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = syntax
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.{number}")
        slice_.Modality, slice_.PhotometricInterpretation, slice_.SamplesPerPixel = "CT", "MONOCHROME2", 1
        slice_.Rows, slice_.Columns, slice_.PixelRepresentation = 512, 512, 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        if compressed:
            stored = imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k", bitspersample=12)
            slice_.PixelData = pydicom.encaps.encapsulate([bytes(stored)])
        else:
            slice_.PixelData = pixels.tobytes()
        slice_["PixelData"].VR = "OB" if compressed else "OW"
        pydicom.dcmwrite(folder / f"{number:05d}.dcm", slice_, enforce_file_format=True)


_KINDS = (
    _Kind("JPEG of 600 x 450", 3000, partial(_photographs, width=600, height=450), jpeg_pixels, False),
    _Kind("JPEG of 224 x 224", 8000, partial(_photographs, width=224, height=224), jpeg_pixels, False),
    _Kind("CT slices", 600, partial(_slices, compressed=False), dicom_pixels, True),
    _Kind("CT slices in JPEG 2000", 300, partial(_slices, compressed=True), dicom_pixels, True),
)
