"""How often text over pictures is found, by its size and colour, and how often in the pictures themselves.

python tests/helpers/text_detection.py FOLDER [EVERY]    # every EVERYth picture below it
"""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastfgssl.archive.images.text import find_text

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
    found = {(size, colour): 0 for size in SIZES for colour in COLOURS}
    without = 0
    for file in files:
        picture = Image.open(file).convert("RGB")
        without += bool(find_text(np.asarray(picture)))
        for size, colour in found:
            found[size, colour] += _is_found(picture, size, COLOURS[colour], rng)
    print(f"{without} of {len(files)} pictures without words over them")
    for size in SIZES:
        print(f"{size} pixels:", ", ".join(f"{colour} {found[size, colour]}" for colour in COLOURS))


def _is_found(picture: Image.Image, size: int, colour: tuple[int, int, int], rng: random.Random) -> bool:
    """Whether a line of text is found where words are written, once more through a JPEG."""
    picture, words, font = picture.copy(), rng.choice(WORDS), ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(words)
    x, y = (rng.randint(0, max(1, int(side - text))) for side, text in zip(picture.size, (right, bottom), strict=True))
    ImageDraw.Draw(picture).text((x, y), words, fill=colour, font=font)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    lines = find_text(np.asarray(Image.open(encoded)))
    return any(
        line.left < x + right and line.right > x + left and line.top < y + bottom and line.bottom > y + top
        for line in lines
    )


if __name__ == "__main__":
    main()
