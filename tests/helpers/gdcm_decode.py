"""Decodes DICOM files by GDCM, as a program of its own: `gdcm_decode.py FOLDER FILE...` writes FOLDER/0.npy and on."""

from __future__ import annotations

import sys

import gdcm
import numpy as np


def decode(path: str) -> np.ndarray:
    """[frames, rows, columns] or [frames, rows, columns, 3]."""
    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    if not reader.Read():
        sys.exit(f"GDCM does not read {path}")
    image = reader.GetImage()
    pixels = image.GetPixelFormat()
    kind = np.dtype(f"{'i' if pixels.GetPixelRepresentation() else 'u'}{pixels.GetBitsAllocated() // 8}")
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kind)
    columns, rows, samples = image.GetDimension(0), image.GetDimension(1), pixels.GetSamplesPerPixel()
    if samples == 1:
        return values.reshape(-1, rows, columns)
    if image.GetPlanarConfiguration():
        return values.reshape(-1, samples, rows, columns).transpose(0, 2, 3, 1)
    return values.reshape(-1, rows, columns, samples)


if __name__ == "__main__":
    for number, path in enumerate(sys.argv[2:]):
        np.save(f"{sys.argv[1]}/{number}.npy", decode(path))
