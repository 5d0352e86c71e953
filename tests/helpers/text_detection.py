"""How often text over pictures is found and painted over, by its size and colour, and how often in the pictures alone.

python tests/helpers/text_detection.py FOLDER [EVERY]    # every EVERYth picture below it
"""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastfgssl.archive.images.burned_in import without_text
from fastfgssl.archive.images.text import find_text
from fastfgssl.archive.outcome import Filtered

WORDS = (
    "DOE^JOHN 12.03.1957",
    "Smith, Mary  ID 4471193",
    "St. Mary's Hospital",
    "F 63y 2021-04-17 10:33",
    "MUELLER PETRA *1948",
)
COLOURS = {"white": (255, 255, 255), "yellow": (255, 255, 0), "black": (0, 0, 0), "gray": (190, 190, 190)}
SIZES = (10, 12, 16, 24)


def main() -> None:
    rng = random.Random(0)
    files = [path for path in sorted(Path(sys.argv[1]).rglob("*")) if path.suffix in (".jpg", ".png")]
    files = files[:: int(sys.argv[2]) if len(sys.argv) > 2 else 1]
    found = {(size, colour): [0, 0] for size in SIZES for colour in COLOURS}
    without = 0
    for file in files:
        picture = Image.open(file).convert("RGB")
        without += bool(find_text(np.asarray(picture)))
        for size, colour in found:
            written, letters = overlaid(picture, size, COLOURS[colour], rng)
            is_found = bool(find_text(written))
            found[size, colour][0] += is_found
            found[size, colour][1] += is_found and legible(written, letters) is False
    print(f"{without} of {len(files)} pictures without words over them")
    for size in SIZES:
        what = (f"{colour} {found[size, colour][0]} ({found[size, colour][1]})" for colour in COLOURS)
        print(f"{size} pixels, found (and painted over or left out):", ", ".join(what))


def overlaid(
    picture: Image.Image, size: int, colour: tuple[int, int, int], rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3], two lines of words over a picture, once more through a JPEG; bool [H, W], where letters are."""
    picture, words, font = picture.copy(), "\n".join(rng.sample(WORDS, 2)), ImageFont.load_default(size)
    letters = Image.new("L", picture.size)
    _, _, right, bottom = ImageDraw.Draw(letters).multiline_textbbox((0, 0), words, font=font)
    place = tuple(
        rng.randint(0, max(1, int(side - text))) for side, text in zip(picture.size, (right, bottom), strict=True)
    )
    ImageDraw.Draw(letters).multiline_text(place, words, fill=255, font=font)
    picture.paste(Image.new("RGB", picture.size, colour), (0, 0), letters)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return np.asarray(Image.open(encoded)), np.asarray(letters) > 128


def legible(written: np.ndarray, letters: np.ndarray) -> bool:
    """Whether a picture goes into an archive, by `--burned-in mask`, with more than a fiftieth of its letters."""
    try:
        painted, _ = without_text(written, (0, 255), "mask")
    except Filtered:
        return False
    return bool((painted == written).all(axis=2)[letters].mean() > 0.02)


if __name__ == "__main__":
    main()
