"""Whole slides as DICOM stores them: a file for each level of the pyramid, and others for what lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastfgssl.archive.dicom import facts as of_header
from fastfgssl.archive.dicom.facts import SLIDES, Flags, Identifiers
from fastfgssl.archive.dicom.header import read_file
from fastfgssl.archive.outcome import Facts, Unusable

PREFIX = 1 << 20
"""Bytes of a file that say what it is."""
LEVEL = "level of a DICOM slide"
_LAST = 0x00480010  # of the tags that are needed: what follows may be long


class SlideFile(NamedTuple):
    """What a file of a slide says of itself."""

    series: str
    """UID of the series, which is the slide."""
    pixels: int
    """Of the level."""
    identifiers: Identifiers
    facts: Facts
    flags: Flags


def slide_file(data: bytes) -> SlideFile | None:
    """A file of a slide, by its first `PREFIX` bytes or all of them; None for any other file."""
    if SLIDES.encode() not in data[:PREFIX]:
        return None
    try:
        file = read_file(data[:PREFIX], PREFIX, last=_LAST)
    except Unusable:
        return None
    header = file.header
    identifiers = of_header.identifiers(header)
    if header.text(0x00080016) != SLIDES or not identifiers.series:
        return None
    columns, rows = (int((header.words(tag, code="I") or [0])[0]) for tag in (0x00480006, 0x00480007))
    facts = Facts(of_header.modality(header), of_header.body_part(header), of_header.manufacturer(header))
    return SlideFile(identifiers.series, columns * rows, identifiers, facts, of_header.flags(file, header))


def slides_among(
    names: Sequence[bytes], prefix: Callable[[bytes], bytes]
) -> tuple[list[list[bytes]], dict[bytes, str]]:
    """Of a folder's files those of each slide, the largest level first, and why its others are skipped, by name.

    prefix: the first `PREFIX` bytes of a file, empty for one that cannot be read.
    """
    levels: dict[str, list[tuple[int, bytes]]] = {}
    skipped = {}
    for name in names:
        if (file := slide_file(prefix(name))) is None:
            continue
        if file.flags.beside_slide:
            skipped[name] = file.flags.beside_slide
        else:
            levels.setdefault(file.series, []).append((-file.pixels, name))
    slides = [[name for _, name in sorted(of_slide)] for of_slide in levels.values()]
    skipped |= {name: LEVEL for of_slide in slides for name in of_slide[1:]}
    return slides, skipped
