"""What a run on one channel says of images that are stored in colour: it is trained on their luminance."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.reader import Reader

log = logging.getLogger(__name__)

_LOOKED_AT = 64
"""Images whose headers are read: a few milliseconds."""
_GRAY_MODES = ("1", "L", "LA", "I", "F")


def tell_of_colour(archive: Archive, ids: np.ndarray) -> None:
    """Logs how many of the first samples among `ids` (int64 [B]) are stored in colour, if any are.

    Raises `UserError` as `Reader.read`.
    """
    ids = ids[:_LOOKED_AT]
    reader = Reader(archive)
    colour = count_colour(reader.read(ids))
    reader.close()
    if colour:
        log.info(
            "model.in_channels=1: %d of the first %d images are stored in colour; the network is shown their luminance"
            " (ITU-R 601)",
            colour,
            len(ids),
        )


def count_colour(encoded: Sequence[np.ndarray]) -> int:
    """How many of some encoded images (uint8 each) are stored in colour, by their headers; not what cannot be read."""
    count = 0
    for image in encoded:
        try:
            with warnings.catch_warnings(), Image.open(io.BytesIO(image.tobytes())) as opened:
                warnings.simplefilter("ignore")  # of sizes that prepare has allowed
                count += not opened.mode.startswith(_GRAY_MODES)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # the loader sees to it
    return count
