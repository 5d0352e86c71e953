"""Whole slides as scanners write them: pyramids of JPEG tiles, with tissue here and there."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from helpers.dicom import encoded

APERIO = "Aperio Image Library v11.2.1\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=70|AppMag = 20"


def tissue(height: int, width: int, spots: list[tuple[int, int, int]]) -> np.ndarray:
    """uint8 [height, width, 3]: glass, with a stained disc of (row, column, radius) for each of `spots`."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:height, :width]
    pixels = rng.integers(238, 246, (height, width, 1)).astype(np.uint8).repeat(3, axis=2)
    stain = np.array([180, 90, 150]) + rng.integers(-30, 30, (height, width, 1))
    for row, column, radius in spots:
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        pixels[inside] = stain[inside].astype(np.uint8)
    return pixels


def slide(pixels: np.ndarray, *, mpp: float | None, levels: int = 3, aperio: bool = True, dpi: bool = False) -> bytes:
    """A pyramid whose levels are a quarter each. mpp: what it says of its microns per pixel, in Aperio's way or as
    a resolution; None says nothing."""
    buffer = io.BytesIO()
    height, width = pixels.shape[:2]
    description = None
    if aperio:
        description = APERIO.format(width=width, height=height) + (f"|MPP = {mpp}" if mpp and not dpi else "")
    resolution = (1e4 / mpp, 1e4 / mpp) if mpp and dpi else None
    with tifffile.TiffWriter(buffer) as out:
        for level in range(levels):
            shown = pixels[:: 4**level, :: 4**level]
            out.write(
                shown,
                tile=(64, 64),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                subfiletype=int(level > 0),
                description=description if level == 0 or aperio else None,
                metadata=None,
                resolution=resolution if level == 0 else None,
                resolutionunit="CENTIMETER" if resolution and level == 0 else None,
            )
    return buffer.getvalue()


def damaged(data: bytes, tile: int) -> bytes:
    """The same with one tile of the first level that is no JPEG."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        start, length = page.dataoffsets[tile], page.databytecounts[tile]
    return data[:start] + bytes(length) + data[start + length :]


def dicom_slide(pixels: np.ndarray, *, mpp: float, levels: int = 2, **attributes: Any) -> dict[str, bytes]:
    """The files of a slide as DICOM has it, by name: a level each, a quarter of the one before, and a label.

    JPEG tiles of 64 pixels, TILED_FULL, with an ICC profile. attributes: of every file.
    """
    series, frame = generate_uid(), generate_uid()
    files = {}
    for level in range(levels):
        shown = pixels[:: 4**level, :: 4**level]
        flavour = ["DERIVED" if level else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]
        files[f"level {level}.dcm"] = encoded(_slide_file(shown, mpp * 4**level, flavour, series, frame, attributes))
    label = np.zeros((64, 128, 3), np.uint8)
    label[8:56, 8:120] = (200, 40, 40)
    files["label.dcm"] = encoded(
        _slide_file(label, mpp, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], series, frame, attributes)
    )
    return files


def _slide_file(
    pixels: np.ndarray, mpp: float, flavour: list[str], series: str, frame: str, attributes: dict[str, Any]
) -> Dataset:
    height, width = pixels.shape[:2]
    tiles = []
    for row in range(0, height, 64):
        for column in range(0, width, 64):
            tile = np.full((64, 64, 3), 255, np.uint8)
            part = pixels[row : row + 64, column : column + 64]
            tile[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "JPEG", quality=95)
            tiles.append(buffer.getvalue())
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.ImageType, file.Modality, file.Manufacturer = flavour, "SM", "Hamamatsu"
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = generate_uid(), series, frame
    file.PatientID, file.PatientName = "MRN-77", "Roe^Jane"
    file.SpecimenLabelInImage = "YES" if "LABEL" in flavour else "NO"
    file.BurnedInAnnotation = file.SpecimenLabelInImage
    file.Rows = file.Columns = 64
    file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns = height, width
    file.TotalPixelMatrixFocalPlanes = file.NumberOfOpticalPaths = 1
    file.ImagedVolumeWidth, file.ImagedVolumeHeight, file.ImagedVolumeDepth = width * mpp / 1e3, height * mpp / 1e3, 1.0
    file.NumberOfFrames = len(tiles)
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "YBR_FULL_422", 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.DimensionOrganizationType = "TILED_FULL"
    file.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    measures, groups, path = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1e3, mpp / 1e3], 0.001
    groups.PixelMeasuresSequence = [measures]
    file.SharedFunctionalGroupsSequence = [groups]
    path.OpticalPathIdentifier = "1"
    path.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file.OpticalPathSequence = [path]
    for name, value in attributes.items():
        setattr(file, name, value)
    file.PixelData = encapsulate(tiles)
    file["PixelData"].VR = "OB"
    return file
