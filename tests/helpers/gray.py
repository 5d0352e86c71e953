"""An archive of gray images of every kind that is stored: 8 bits, 16 bits with levels, JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from helpers.images import encode, fixed_key, write_files


def gray_archive(folder: Path, phantoms: Path, count: int = 36, *, deep: bool = True) -> Archive:
    """`count` labelled phantoms in gray: a third in JPEG, and in PNG a third and, with `deep`, a third of 16 bits."""
    files, lines = {}, ["image,label"]
    for number, path in enumerate(sorted(phantoms.rglob("*.jpg"))[:count]):
        with Image.open(path) as opened:
            gray = opened.convert("L")
        if number % 3 == 0:
            name, data = f"{number:03d}.jpg", encode(gray, "JPEG", quality=90)
        elif number % 3 == 1 or not deep:
            name, data = f"{number:03d}.png", encode(gray, "PNG")
        else:
            levels = np.asarray(gray).astype(np.uint16) * 16 + np.arange(gray.width, dtype=np.uint16) % 16
            name, data = f"{number:03d}.png", encode(Image.fromarray(levels), "PNG")
        files[name] = data
        lines.append(f"{name},{'dark' if np.asarray(gray).mean() < 140 else 'bright'}")
    source = write_files(folder / "source", files)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    out = folder / "gray"
    prepare(
        PrepareOptions(
            sources=[source],
            out=out,
            labels=folder / "labels.csv",
            shard_size=0.03,
            key=fixed_key(folder / "key"),
            workers=1,
        )
    )
    return Archive.open(out)
