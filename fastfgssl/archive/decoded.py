"""One file's bytes as images for an archive, each with the hash of what training will see of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.image import TrainingDecoder, prepare_image
from fastfgssl.archive.outcome import NoImage, PreparedImage, Unusable


class ImageOptions(NamedTuple):
    """What `prepare` is asked to make of images."""

    short_side: int | None = None
    """Larger images are made smaller, to this many pixels on their short side."""
    max_pixels: int = 100_000_000
    """Larger ones are not decoded."""


class Hashed(NamedTuple):
    """An image, and the hash of its pixels."""

    image: PreparedImage
    pixels: bytes
    """16 bytes: the same for images that training sees as the same picture."""


class HashingDecoder(TrainingDecoder):
    """The training decoder, which remembers the picture that it made last: that of what goes into the archive."""

    def __init__(self) -> None:
        super().__init__()
        self._data: bytes | None = None
        self._picture: np.ndarray | None = None

    def decode(self, data: bytes, dtype: type | np.dtype = np.uint8) -> np.ndarray | None:
        self._picture = super().decode(data, dtype)
        self._data = data
        return self._picture

    def hash(self, image: PreparedImage) -> bytes:
        """Of the pixels of an image, which is decoded again if it was not the last that was."""
        if self._data is not image.data:
            self.decode(image.data, np.uint16 if image.bit_depth == 16 else np.uint8)
        picture = np.frombuffer(image.data, np.uint8) if self._picture is None else self._picture
        shape = f"{image.height} {image.width} {image.bit_depth} {image.levels}".encode()
        digest = hashlib.sha256(shape)
        digest.update(np.ascontiguousarray(picture).data)
        return digest.digest()[:16]


def hashed_images(data: bytes, decoder: HashingDecoder, options: ImageOptions) -> Iterator[Hashed | Unusable]:
    """What becomes of a file's bytes: whatever a decoder does with them, its images, or why they are not usable.

    Raises NoImage for what rightly holds none.
    """
    try:
        for image in _images(data, decoder, options):
            yield image if isinstance(image, Unusable) else Hashed(image, decoder.hash(image))
    except NoImage:
        raise
    except Unusable as unusable:
        yield _out_of_memory() if isinstance(unusable.__cause__, MemoryError) else unusable
    except MemoryError:
        yield _out_of_memory()
    except Exception as error:  # a decoder's defect is no reason to lose the other images
        yield Unusable(f"a decoder failed: {type(error).__name__}: {error}")


def _images(data: bytes, decoder: TrainingDecoder, options: ImageOptions) -> Iterator[PreparedImage | Unusable]:
    yield prepare_image(data, decoder, short_side=options.short_side, max_pixels=options.max_pixels)


def _out_of_memory() -> Unusable:
    return Unusable("needs more memory than --max-memory allows")
