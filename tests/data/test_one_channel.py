"""Batches of one channel: those of three channels where images are gray, the luminance where they are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.decode import depth_of
from fastfgssl.data.gray import tell_of_colour
from fastfgssl.data.picture import save_views_picture
from fastfgssl.data.presets import PLAIN, PRESETS, Jitter, Preset, ViewSpec
from fastfgssl.data.reader import Reader
from fastfgssl.evaluation.transform import PlainTransform
from helpers.gray import gray_archive
from helpers.loader import BATCH, loader, tensors

MEAN, STD = (0.4,), (0.2,)


@pytest.fixture(scope="module")
def gray(phantom_folder, tmp_path_factory) -> Archive:
    archive = gray_archive(tmp_path_factory.mktemp("gray"), phantom_folder)
    assert depth_of(archive) == "own"  # 8 bits and 16 side by side
    return archive


def in_both(archive: Archive, preset: Preset, steps: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each view of some batches in one channel, and in three."""
    runs = [
        loader(archive, preset=preset, stop=steps, depth=depth_of(archive), channels=n, mean=MEAN * n, std=STD * n)
        for n in (1, 3)
    ]
    return [pair for one, three in zip(*runs, strict=True) for pair in zip(tensors(one), tensors(three), strict=True)]


@pytest.mark.parametrize("name", ["paper", "grayscale", "radiograph"])
def test_gray_images_have_the_bits_of_each_of_three_channels(gray, name):
    """Crops, turns, jitter of intensity, blur, flips, solarise, windows of 16 bits, puzzles."""
    for one, three in in_both(gray, PRESETS[name]):
        assert one.shape == (BATCH, 1, 32, 32)
        assert one.is_contiguous(memory_format=torch.channels_last)
        for channel in range(3):
            assert torch.equal(one[:, 0], three[:, channel])


def test_jitter_of_colour_leaves_gray_images_within_a_level(gray):
    """Hue and saturation are left out; in three channels they are a product of matrices, which rounds."""
    for one, three in in_both(gray, PRESETS["dermoscopy"]):
        assert (one - three).abs().max() * STD[0] * 255 < 1.001


def test_jitter_of_nothing_but_colour_is_left_out(gray):
    colour = ViewSpec(jitter=Jitter(p=1.0, saturation=0.5, hue=0.3), flip=0.5)
    plain = ViewSpec(flip=0.5)
    batches = [
        next(loader(gray, preset=Preset(puzzle=view, anchor=view), depth="own", channels=1, mean=MEAN, std=STD))
        for view in (colour, plain)
    ]
    for jittered, left in zip(*map(tensors, batches), strict=True):
        assert torch.equal(jittered, left)


def test_colour_images_are_shown_by_their_luminance_as_the_transform_has_it(archive_path):
    archive = Archive.open(archive_path)
    batch = next(loader(archive, preset=PLAIN, channels=1, mean=MEAN, std=STD))
    transform = PlainTransform(32, MEAN, STD)
    for anchor, data in zip(batch.anchor, Reader(archive).read(batch.ids), strict=True):
        with Image.open(io.BytesIO(data.tobytes())) as image:
            of_picture = transform(image)
            of_tensor = transform(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
            of_gray = transform(image.convert("L"))
        for made in (of_picture, of_tensor, of_gray):
            assert made.shape == (1, 32, 32)
            assert (made - anchor).abs().max() * STD[0] * 255 < 2.5  # decoder, luminance and resize round
            assert (made - anchor).abs().mean() * STD[0] * 255 < 0.75


def test_the_run_says_once_that_images_are_in_colour(gray, archive_path, caplog):
    caplog.set_level("INFO", logger="fastfgssl")
    tell_of_colour(gray, np.arange(12))
    assert caplog.messages == []
    tell_of_colour(Archive.open(archive_path), np.arange(12))
    assert caplog.messages == [
        "model.in_channels=1: 12 of the first 12 images are stored in colour; the network is shown their luminance"
        " (ITU-R 601)"
    ]


def test_the_picture_of_views_shows_gray(gray, tmp_path):
    batch = next(loader(gray, preset=PLAIN, depth="own", channels=1, mean=MEAN, std=STD))
    save_views_picture(batch, tmp_path / "views.png", grids=(8, 4, 2), mean=MEAN, std=STD)
    with Image.open(tmp_path / "views.png") as picture:
        shown = np.asarray(picture.convert("RGB"))[16 : 16 + 96 : 3, 4 : 4 + 96 : 3]
    expected = (batch.anchor[0, 0] * STD[0] + MEAN[0]) * 255
    assert np.abs(shown - expected.round().numpy()[..., None]).max() <= 1
