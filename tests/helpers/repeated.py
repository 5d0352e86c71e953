"""A source whose archive can be made in several ways, which must give the same bytes."""

from __future__ import annotations

from pathlib import Path

from helpers.images import encode, gradient, write_files


def write_repeated(folder: Path) -> Path:
    """600 pictures of several chunks, of which some repeat others and some are damaged."""
    files = {f"{i % 7}/{i:03d}.png": encode(gradient(40 + i % 400, 30), "PNG") for i in range(590)}
    files |= {f"9/{i}.png": encode(gradient(30, 30), "PNG")[:-20] for i in range(10)}
    return write_files(folder, files)


def contents(archive: Path) -> dict[str, bytes]:
    """Of each file in it."""
    return {str(path.relative_to(archive)): path.read_bytes() for path in archive.rglob("*") if path.is_file()}
