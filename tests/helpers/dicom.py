"""DICOM files: those of pydicom's wheel, ones made here with every value known, and a second decoder."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from fastfgssl.archive.dicom.codecs import codec, decode_compressed, decode_native
from fastfgssl.archive.dicom.frames import encapsulated_frames, native_frames
from fastfgssl.archive.dicom.header import read_file
from fastfgssl.archive.dicom.layout import read_layout
from fastfgssl.archive.dicom.pictures import DicomPicture, DicomSettings, read_dicom

WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"
MR_STORAGE = "1.2.840.10008.5.1.4.1.1.4"


def wheel_file(name: str) -> Path:
    """Raises if the wheel does not have it: nothing is fetched."""
    path = get_testdata_file(name, download=False)
    assert path is not None, f"pydicom's wheel has no {name}"
    return Path(path)


def dataset(pixels: np.ndarray | bytes, **attributes: Any) -> Dataset:
    """An MR of `pixels` [rows, columns], [rows, columns, 3] or [frames, rows, columns], of bits as its type has.

    Of bytes, which may be compressed, `attributes` say what they are.
    """
    result = Dataset()
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = attributes.pop("syntax", ExplicitVRLittleEndian)
    result.file_meta.MediaStorageSOPClassUID = MR_STORAGE
    result.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    result.SOPClassUID = MR_STORAGE
    result.Modality = "MR"
    result.PixelRepresentation = 0
    keyword = "PixelData"
    if isinstance(pixels, np.ndarray):
        colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
        result.Rows, result.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        if pixels.ndim == 3 + colour:
            result.NumberOfFrames = len(pixels)
        result.SamplesPerPixel = 3 if colour else 1
        result.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            result.PlanarConfiguration = 0
        bits = 8 * pixels.itemsize
        result.BitsAllocated, result.BitsStored, result.HighBit = bits, bits, bits - 1
        result.PixelRepresentation = int(pixels.dtype.kind == "i")
        if pixels.dtype.kind == "f":
            keyword = "FloatPixelData" if bits == 32 else "DoubleFloatPixelData"
        pixels = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for name, value in attributes.items():
        setattr(result, name, value)
    setattr(result, keyword, pixels)
    if keyword == "PixelData":
        result[keyword].VR = "OB" if result.file_meta.TransferSyntaxUID.is_encapsulated else "OW"
    return result


def encoded(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: np.ndarray | bytes, **attributes: Any) -> bytes:
    return encoded(dataset(pixels, **attributes))


def read(data: bytes, **settings: Any) -> DicomPicture:
    """Its only picture."""
    (picture,) = read_dicom(data, DicomSettings(**settings))
    if isinstance(picture, Exception):
        raise picture
    return picture


def shown(data: bytes, **settings: Any) -> np.ndarray:
    return np.asarray(read(data, **settings).picture)


def windowed(picture: DicomPicture) -> np.ndarray:
    """A picture with levels as training shows it: 0 to 255."""
    low, high = picture.levels
    return ((np.asarray(picture.picture).astype(np.float64) - low) / (high - low)).clip(0, 1) * 255


def stored_values(data: bytes, number: int = 0) -> np.ndarray:
    """What the codec gives for a frame, before anything is made of it."""
    file = read_file(data, 1 << 30)
    layout = read_layout(file, 1 << 30)
    name = codec(file.syntax)
    if name:
        return decode_compressed(bytes(encapsulated_frames(file, layout).read(number)), layout, name)
    frame = native_frames(file, layout).read(number)
    return decode_native(frame, layout, number, little_endian=file.little_endian)


def gdcm_values(paths: list[Path]) -> list[np.ndarray]:
    """All frames of each by GDCM: [frames, rows, columns] or [frames, rows, columns, 3], stored values.

    In a process of its own: where GDCM is loaded before imagecodecs, Pillow's next PNG ends the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [folder, *map(str, paths)]
        subprocess.run([sys.executable, Path(__file__).with_name("gdcm_decode.py"), *arguments], check=True)
        return [np.load(Path(folder) / f"{number}.npy") for number in range(len(paths))]
