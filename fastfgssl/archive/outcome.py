"""What becomes of one file's bytes on their way into an archive."""

from __future__ import annotations

from typing import NamedTuple

NEEDS_MEMORY = "needs more memory than --max-memory allows"


class PreparedImage(NamedTuple):
    """An image as it goes into a shard."""

    data: bytes
    """The encoded image, which holds nothing but pixels: those of the file if there are no `changes`."""
    format: str
    """jpeg or png."""
    width: int
    height: int
    """Pixels, as decoded."""
    bit_depth: int
    """8 or 16."""
    changes: tuple[str, ...]
    """Why it was encoded anew."""
    notes: tuple[str, ...]
    """What the user should know besides."""
    levels: tuple[int, int] = (0, 255)
    """Which levels are black and white: of 12-bit pixels in a 16-bit file (0, 4095)."""
    part: str = ""
    """Which image of its file it is, such as `frame 12` or `page 3`; empty for the only one."""
    facts: Facts | None = None
    """What a header says of how it was made."""
    pixels: bytes = b""
    """16 bytes, a hash: the same for images that training sees as the same picture."""
    thumbnail: bytes = b""
    """Of its structure, see `near_duplicates.thumbnail`, where it is asked for."""
    patient: str = ""
    """Stands for the patient, study or series that a header names, or a file of several images; empty for none."""


class Facts(NamedTuple):
    """The columns that a header may fill: none can name a person."""

    modality: str | None = None
    """CT, MR, US, ... (DICOM CS)."""
    body_part: str | None = None
    """BodyPartExamined, a defined term."""
    manufacturer: str | None = None
    spacing_row: float | None = None
    spacing_column: float | None = None
    """Millimetres from one pixel to the next, downwards and to the right."""
    stored_bits: int | None = None
    mpp: float | None = None
    """Microns per pixel of a slide's tile."""
    slide_level: int | None = None
    slide_x: int | None = None
    slide_y: int | None = None
    """From which level of the slide it was read, and where its upper left corner lies, in pixels of level 0."""


class Unusable(Exception):
    """An image that cannot go into the archive. Its text is `kind: detail` or `kind`."""

    part = ""
    """Which image of its file it is, see `PreparedImage.part`."""
    outcome = "quarantined"
    picture: object = None
    """What it shows, an image or an array, where it was decoded and left out for what is in it."""
    levels = (0, 255)
    """Which levels of `picture` are black and white."""

    def showing(self, picture: object, levels: tuple[int, int]) -> Unusable:
        """This one, with its picture."""
        self.picture, self.levels = picture, levels
        return self

    def at(self, part: str) -> Unusable:
        """This one, as that of `part`."""
        self.part = part
        return self


class Filtered(Unusable):
    """An image that is sound, and not wanted: a setting leaves it out."""

    outcome = "filtered"


class UnknownFormat(Unusable):
    """Bytes that begin as no image does."""


class NoImage(Exception):
    """A file that rightly holds no image, such as a DICOMDIR. Its text is the kind of file."""
