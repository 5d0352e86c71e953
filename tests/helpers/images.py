"""Images of every kind, the files that hold them, and the way each goes into an archive."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfgssl.archive.images.image import ImageSettings, TrainingDecoder, prepare_file
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.outcome import PreparedImage, Unusable

REAL_DATA = os.environ.get("FASTFGSSL_TEST_DATA")
real_data = pytest.mark.skipif(REAL_DATA is None, reason="FASTFGSSL_TEST_DATA names no folder of real images")


def gradient(width: int = 61, height: int = 47) -> Image.Image:
    """A colour picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 5 % 256, (x + y) % 256], axis=-1).astype(np.uint8))


def gradient_16_bit(width: int = 61, height: int = 47) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray((x * 1000 + y * 50).astype(np.uint16))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, format, exif=exif)


DECODER = TrainingDecoder()


def run_all(data: bytes, **settings: object) -> list[PreparedImage | Unusable]:
    """What becomes of a file; `settings` are those of `ImageSettings`."""
    return list(prepare_file(data, DECODER, ImageSettings(**settings)))


def run(data: bytes, **settings: object) -> PreparedImage:
    """The only image of a file. Raises what is wrong with it."""
    (image,) = run_all(data, **settings)
    if isinstance(image, Unusable):
        raise image
    return image


RGB = gradient()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def fixed_key(path: Path) -> Path:
    """A file with a key that is always the same, and with it ids and groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("00" * 32)
    return path


def inputs_of(options: PrepareOptions) -> list[dict[str, str]]:
    """The table of inputs: what became of each file."""
    with options.inputs_file.open(newline="") as file:
        return list(csv.DictReader(file))


def names_of(options: PrepareOptions) -> dict[str, str]:
    """Files by the ids of their images."""
    return {row["id"]: row["path"] for row in inputs_of(options)}


def files_of(archive: Path) -> dict[str, Path]:
    """The same of an archive whose key lies beside it."""
    with archive.with_name(f"{archive.name}.inputs.csv").open(newline="") as file:
        return {row["id"]: Path(row["path"]) for row in csv.DictReader(file)}
