"""What a worker does that decodes files and no more; with nothing beside it to import."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import simplejpeg
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless

from fastfgssl.archive.building.worker import Watch


def jpeg_pixels(data: bytes) -> np.ndarray:
    """[height, width, 3] of a JPEG."""
    return simplejpeg.decode_jpeg(data)


def dicom_pixels(data: bytes) -> np.ndarray:
    """[rows, columns], as they are stored, of a file of one frame."""
    file = pydicom.dcmread(io.BytesIO(data))
    if file.file_meta.TransferSyntaxUID == JPEG2000Lossless:
        return imagecodecs.jpeg2k_decode(next(generate_frames(file.PixelData, number_of_frames=1)))
    return np.frombuffer(file.PixelData, np.uint16).reshape(file.Rows, file.Columns)


class Decode:
    """Decodes files; how many it could."""

    def __init__(self, decode: Callable[[bytes], np.ndarray]) -> None:
        self._decode = decode

    def __call__(self, files: Sequence[Path], watch: Watch) -> int:
        return sum(self._decode(path.read_bytes()).size > 0 for path in files)
