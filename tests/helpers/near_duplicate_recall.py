"""How many copies of pictures are found to be nearly the same, by what was done to them, and how many others are.

python tests/helpers/near_duplicate_recall.py FOLDER [EVERY]    # copies of every EVERYth picture, among all of them
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastfgssl.archive.building.near_duplicates import near_duplicates, thumbnail


def through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded)


def cropped(picture: Image.Image, share: float) -> Image.Image:
    width, height = picture.size
    left, top = int(width * share / 2), int(height * share / 2)
    return picture.crop((left, top, width - left, height - top))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda picture: ImageOps.scale(picture, 0.5),
    "a quarter of the size": lambda picture: ImageOps.scale(picture, 0.25),
    "JPEG of quality 50": lambda picture: through_jpeg(picture, 50),
    "JPEG of quality 20": lambda picture: through_jpeg(picture, 20),
    "mirrored": ImageOps.mirror,
    "turned": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "brighter": lambda picture: picture.point(lambda level: min(255, int(level * 1.2 + 10))),
    "gray": lambda picture: picture.convert("L"),
    "cropped by 2 %": lambda picture: cropped(picture, 0.02),
    "cropped by 5 %": lambda picture: cropped(picture, 0.05),
}


def main() -> None:
    files = [path for path in sorted(Path(sys.argv[1]).rglob("*")) if path.suffix in (".jpg", ".png")]
    every = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    pictures = [Image.open(file).convert("RGB") for file in files]
    rows = np.stack([thumbnail(picture) for picture in pictures])
    print(f"{len(list(near_duplicates(rows)))} pairs among {len(rows)} pictures")
    for name, change in CHANGES.items():
        copies = np.stack([thumbnail(change(picture)) for picture in pictures[::every]])
        pairs = {
            (one, two) for one, two, _ in near_duplicates(np.concatenate([rows, copies])) if two >= len(rows) > one
        }
        right = {(every * place, len(rows) + place) for place in range(len(copies))}
        print(f"{name}: {len(pairs & right)} of {len(copies)}, and {len(pairs - right)} wrong pairs")


if __name__ == "__main__":
    main()
