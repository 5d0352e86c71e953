"""What a file's bytes hold, as images for an archive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fastfgssl.archive.dicom.facts import Identifiers
from fastfgssl.archive.dicom.pictures import DicomPicture, DicomSettings, Flags, looks_like_dicom, read_dicom
from fastfgssl.archive.dicom.slides import slide_file
from fastfgssl.archive.images.burned_in import BURNED_IN, without_text
from fastfgssl.archive.images.image import ImageSettings, encode_picture, prepare_file, read_picture
from fastfgssl.archive.images.slides import SlideSettings, Tile, slide_tiles
from fastfgssl.archive.images.training_decoder import TrainingDecoder
from fastfgssl.archive.outcome import NEEDS_MEMORY, Facts, Filtered, NoImage, PreparedImage, Unusable


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """What `prepare` is asked to make of files."""

    image: ImageSettings = field(default_factory=ImageSettings)
    dicom: DicomSettings = field(default_factory=DicomSettings)
    slide: SlideSettings = field(default_factory=SlideSettings)


def images_of(
    data: bytes | list[bytes], decoder: TrainingDecoder, settings: FileSettings
) -> Iterator[PreparedImage | Unusable]:
    """What becomes of a file's bytes: whatever a decoder does with them, its images, or why they are not usable.

    data: of several files, if they are the levels of a DICOM slide.
    Raises NoImage for what rightly holds none.
    """
    try:
        if isinstance(data, list):
            yield from _of_dicom_slide(data, settings)
        elif looks_like_dicom(data):
            if settings.slide.mpp is not None:
                _refuse_level(data, settings.dicom)
            for found in read_dicom(data, settings.dicom):
                yield found if isinstance(found, Unusable) else _of_dicom(found, settings)
        elif tiles := slide_tiles(data, settings.slide):
            group = _group_of_file("slide", data)
            for tile in tiles:
                yield tile if isinstance(tile, Unusable) else _of_tile(tile, Facts(), group, settings)
        else:
            group = ""
            for page in prepare_file(data, decoder, settings.image):
                if page.part and not isinstance(page, Unusable):
                    group = group or _group_of_file("pages", data)
                    page = page._replace(patient=group)
                yield page
    except NoImage:
        raise
    except Unusable as unusable:
        yield _out_of_memory() if isinstance(unusable.__cause__, MemoryError) else unusable
    except MemoryError:
        yield _out_of_memory()
    except Exception as error:  # a decoder's defect is no reason to lose the other images
        yield Unusable(f"a decoder failed: {type(error).__name__}: {error}")


def picture_of(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first picture of a file's bytes as training sees it, in mode L or RGB; of a DICOM file the middle frame.

    Raises Unusable with the reason, also for what rightly holds no image.
    """
    if not looks_like_dicom(data):
        return read_picture(data, max_pixels=max_pixels)
    try:
        found = next(read_dicom(data, DicomSettings(max_pixels=max_pixels)))
    except NoImage as kind:
        raise Unusable(f"no image: {kind}") from None
    if isinstance(found, Unusable):
        raise found
    return found.picture


def _of_dicom(found: DicomPicture, settings: FileSettings) -> PreparedImage | Unusable:
    try:
        pixels, painted = without_text(
            np.asarray(found.picture), found.levels, settings.image.burned_in, _said_of_text(found.flags)
        )
        image = encode_picture(
            pixels,
            settings.image,
            levels=found.levels,
            part=found.part,
            facts=found.facts,
            changes=("DICOM was encoded anew", *painted),
            notes=found.notes,
        )
    except Unusable as unusable:
        return unusable.at(found.part)
    return image._replace(patient=_group_of(found.identifiers))


def _group_of(identifiers: Identifiers) -> str:
    """What stands for the patient; where the header names none, for the study, else for the series; empty for nothing.

    It is itself no name: a part may lie about after a kill.
    """
    study, series = identifiers.study, identifiers.series
    name = identifiers.patient or (study and f"study {study}") or (series and f"series {series}")
    return hashlib.sha256(name.encode()).hexdigest()[:32] if name else ""


def _group_of_file(kind: str, data: bytes) -> str:
    """What stands for a file of several images, which may well show one patient."""
    return hashlib.sha256(kind.encode() + b" " + hashlib.sha256(data).digest()).hexdigest()[:32]


def _refuse_level(data: bytes, settings: DicomSettings) -> None:
    """Raises Unusable for a file of a slide that came without the others."""
    if found := slide_file(data):
        settings.filters.check(found.facts.modality, found.flags)
        raise Unusable(
            "part of a slide: those of several files are read from folders, not from containers, lists, URLs"
        )


def _of_dicom_slide(files: list[bytes], settings: FileSettings) -> Iterator[PreparedImage | Unusable]:
    found = slide_file(files[0])
    assert found is not None, "a file was taken for one of a slide"
    settings.dicom.filters.check(found.facts.modality, found.flags)
    if settings.image.burned_in != "keep" and (said := _said_of_text(found.flags)):
        raise Filtered(f"{BURNED_IN}: {said}; --burned-in keep takes such images")
    tiles = slide_tiles(files, settings.slide)
    if tiles is None:
        raise Unusable("damaged slide: OpenSlide does not know it as one")
    group = _group_of(found.identifiers)
    for tile in tiles:
        yield tile if isinstance(tile, Unusable) else _of_tile(tile, found.facts, group, settings)


def _of_tile(tile: Tile, facts: Facts, group: str, settings: FileSettings) -> PreparedImage | Unusable:
    spacing = tile.mpp / 1000
    facts = facts._replace(
        spacing_row=spacing,
        spacing_column=spacing,
        mpp=tile.mpp,
        slide_level=tile.level,
        slide_x=tile.x,
        slide_y=tile.y,
    )
    changes = ("slide became tiles",)
    try:
        image = encode_picture(tile.pixels, settings.image, part=tile.part, facts=facts, changes=changes)
    except Unusable as unusable:
        return unusable.at(tile.part)
    return image._replace(patient=group)


def _said_of_text(flags: Flags) -> str:
    """Why a header makes text likely; empty if it does not."""
    if flags.burned_in:
        return "BurnedInAnnotation is YES"
    if flags.burned_in is None and flags.secondary_capture:
        return "a capture of a screen or a film"
    if flags.burned_in is None and flags.ultrasound_without_regions:
        return "an ultrasound without regions"
    return ""


def _out_of_memory() -> Unusable:
    return Unusable(NEEDS_MEMORY)
