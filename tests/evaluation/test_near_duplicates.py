"""Pictures that are on both sides of a split are found, whatever a copy went through on its way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.near_duplicates import THRESHOLD, find_overlap, thumbnails
from fastfgssl.evaluation.near_duplicates import Thumbnails as Kept
from fastfgssl.evaluation.pretrained import build_untrained
from fastfgssl.evaluation.protocols import run_protocol
from helpers.images import files_of, fixed_key


@pytest.fixture(scope="module")
def archive(phantom_folder, tmp_path_factory) -> Archive:
    """Twenty images to train on and eight that score, of which five are copies."""
    folder = tmp_path_factory.mktemp("copies")
    sources = [phantom_folder / "images" / f"{number:06d}.jpg" for number in range(28)]
    (folder / "images").mkdir()
    rows = ["image,label,split,group"]
    for number, source in enumerate(sources):
        with Image.open(source) as image:
            picture = image.convert("RGB")
        copies = {
            20: lambda: picture_of(sources[0]),
            21: lambda: picture_of(sources[1]).transpose(Image.Transpose.ROTATE_90),
            22: lambda: picture_of(sources[2]).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            23: lambda: picture_of(sources[3]).resize((70, 70)).point(lambda value: 0.8 * value + 20),
        }
        name = f"{number:02d}.jpg"
        if number == 24:
            (folder / "images" / name).write_bytes((folder / "images" / "04.jpg").read_bytes())
        else:
            quality = 60 if number < 20 else 40
            copies.get(number, lambda picture=picture: picture)().save(folder / "images" / name, quality=quality)
        rows.append(f"{name},{'ab'[number % 2]},{'fit' if number < 20 else 'val'},{number}")
    (folder / "labels.csv").write_text("\n".join(rows))
    options = {"labels": folder / "labels.csv", "duplicates": "keep", "key": fixed_key(folder / "key"), "workers": 1}
    prepare(PrepareOptions(sources=[folder / "images"], out=folder / "archive", **options))
    return Archive.open(folder / "archive")


def picture_of(source: Path) -> Image.Image:
    with Image.open(source) as image:
        return image.convert("RGB")


def test_a_report_tells_what_both_sides_share(archive, make_config):
    config = make_config()
    extractor = FeatureExtractor(build_untrained(config, 0), config, archive, torch.device("cpu"), 16)
    overlap = run_protocol(extractor, archive, "knn").overlap
    assert overlap is not None
    assert (overlap.groups, overlap.identical_files, overlap.near_duplicates) == (0, 1, 5)
    files = files_of(archive.path)
    found = {(files[scoring].name, files[training].name) for scoring, training, _ in overlap.examples}
    assert found == {(f"{number + 20}.jpg", f"0{number}.jpg") for number in range(5)}
    assert all(THRESHOLD <= cosine <= 1.001 for _, _, cosine in overlap.examples)


def test_different_pictures_are_far_apart(archive):
    ids = np.arange(20)
    images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sides = Kept(archive), Kept(archive)
    for side, part in zip(sides, (slice(0, 12), slice(12, 20)), strict=True):
        side.add(ids[part], images[part])
    overlap = find_overlap(*sides)
    assert (overlap.near_duplicates, overlap.examples) == (0, [])
    assert overlap.highest is not None
    assert overlap.highest < 0.5


def test_a_picture_without_structure_is_like_none():
    assert thumbnails(torch.full((2, 3, 40, 40), 0.7)).abs().max() == 0
