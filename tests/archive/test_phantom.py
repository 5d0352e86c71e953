"""Phantoms: the class is in the fine texture, and in nothing else that is easy to read from an image."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fastfgssl.archive import phantom_scene
from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.phantom_scene import TEXTURES, phantom_image
from fastfgssl.runtime.errors import UserError
from helpers.command import run_command
from helpers.paths import TOOLS

TOOL = TOOLS / "phantom.py"
COUNT = 210 * len(TEXTURES)
CHANCE = 1 / len(TEXTURES)
# Three binomial standard errors: a classifier that knows nothing passes this once in seven hundred seeds.
NEAR_CHANCE = CHANCE + 3 * (CHANCE * (1 - CHANCE) / COUNT) ** 0.5
FINE = 6  # cycles an image, where the textures, of 9 to 11, begin in a windowed and warped spectrum


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.array([phantom_scene._label(i, seed=1) for i in range(COUNT)])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """float32 [COUNT, 96, 96, 3]"""
    return np.stack([phantom_image(i, seed=1, width=96, height=96).image for i in range(COUNT)]).astype(np.float32)


def accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Of a logistic regression on images that it was not fitted to."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    with threadpool_limits(1):  # on busy cores the threads of BLAS wait for each other far longer than they work
        return cross_val_score(classifier, features.reshape(len(features), -1), labels, cv=4).mean()


def colour_statistics(images: np.ndarray) -> np.ndarray:
    pixels = images.reshape(len(images), -1, 3)
    mean, std = pixels.mean(1), pixels.std(1)
    skewness = (((pixels - mean[:, None]) / std[:, None]) ** 3).mean(1)
    return np.concatenate([mean, std, skewness, *np.percentile(pixels, [5, 25, 50, 75, 95], axis=1)], axis=1)


def thumbnails(images: np.ndarray, side: int = 16) -> np.ndarray:
    tile = images.shape[1] // side
    return images.reshape(len(images), side, tile, side, tile, 3).mean((2, 4))


def ring_spectrum(images: np.ndarray) -> np.ndarray:
    """Log amplitude [N, 32] at 0, 1, ... 31 cycles an image, averaged over all directions."""
    grey = images.mean(-1) - images.mean((1, 2, 3))[:, None, None]
    window = np.hanning(grey.shape[1])
    amplitude = np.abs(np.fft.fft2(grey * window * window[:, None]))
    cycles = np.fft.fftfreq(grey.shape[1], 1 / grey.shape[1])
    ring = np.hypot(cycles, cycles[:, None]).astype(int)
    return np.log(np.stack([amplitude[:, ring == r].mean(1) for r in range(32)], axis=1))


def test_class_is_not_in_colour_statistics(images, labels):
    assert accuracy(colour_statistics(images), labels) < NEAR_CHANCE


def test_class_is_not_in_thumbnails(images, labels):
    assert accuracy(thumbnails(images), labels) < NEAR_CHANCE


def test_class_is_in_the_fine_part_of_the_spectrum_alone(images, labels):
    spectrum = ring_spectrum(images)
    assert accuracy(spectrum[:, :FINE], labels) < NEAR_CHANCE
    assert accuracy(spectrum[:, FINE:], labels) > 3 * CHANCE


@pytest.mark.slow
def test_class_stays_visible_when_a_large_image_is_made_small(images, labels):
    """What is learned from images drawn at 96 x 96 holds for images drawn at 384 x 288, cropped and made small."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    classifier.fit(ring_spectrum(images)[:, FINE:], labels)
    others = [phantom_image(i, seed=2, width=384, height=288) for i in range(15 * len(TEXTURES))]
    small = np.stack([Image.fromarray(other.image[:, 48:336]).resize((96, 96)) for other in others])
    score = classifier.score(ring_spectrum(small.astype(np.float32))[:, FINE:], [other.label for other in others])
    assert score > 3 * CHANCE


@pytest.mark.slow
def test_class_is_not_in_the_lesions_shape_size_or_place(labels):
    masks = [
        phantom_scene._draw_scene(phantom_scene._generator(1, phantom_scene._SCENE, i), 48, 48).lesion > 0.5
        for i in range(COUNT)
    ]
    y, x = np.mgrid[:48, :48]
    features = [[m.sum(), x[m].mean(), y[m].mean(), x[m].std(), y[m].std(), np.diff(m).sum()] for m in masks]
    assert accuracy(np.array(features), labels) < NEAR_CHANCE


def test_one_scene_has_the_same_colours_under_every_texture():
    """A paired comparison, which sees differences far below the spread between scenes."""
    statistics = np.empty((24, len(TEXTURES), 3, 3))
    for i, of_scene in enumerate(statistics):
        scene = phantom_scene._draw_scene(np.random.default_rng(i), 128, 128)
        inside = scene.lesion > 0.5
        for name, of_texture in zip(TEXTURES, of_scene, strict=True):
            texture = phantom_scene._texture(name, scene, np.random.default_rng(i))
            pixels = phantom_scene._render(scene, texture)[inside]
            of_texture[:] = pixels.mean(0), pixels.std(0), np.median(pixels, axis=0)
    assert np.ptp(statistics.mean(0), axis=0).max() < 0.5  # of 255 grey levels


def test_an_image_is_a_function_of_its_arguments():
    def draw(index=3, seed=7, width=80, height=64):
        return phantom_image(index, seed=seed, width=width, height=height)

    first = draw()
    draw(index=4)
    again = draw()
    assert first.image.shape == (64, 80, 3)
    assert first.image.dtype == np.uint8
    assert np.array_equal(first.image, again.image)
    assert first.label == again.label
    assert not np.array_equal(first.image, draw(index=4).image)
    assert not np.array_equal(first.image, draw(seed=8).image)
    assert draw(width=133, height=101).image.shape == (101, 133, 3)


def test_classes_are_balanced_and_in_an_order_of_the_seed(labels):
    blocks = labels.reshape(-1, len(TEXTURES))
    assert (np.sort(blocks, axis=1) == np.arange(len(TEXTURES))).all()
    assert len(np.unique(blocks, axis=0)) > len(blocks) / 2
    assert labels[:COUNT].tolist() != [phantom_scene._label(i, seed=2) for i in range(COUNT)]


def test_the_folder_is_the_same_for_any_number_of_workers(tmp_path):
    done = []
    count = 8 * len(TEXTURES)
    write_phantoms(tmp_path / "one", count, seed=5, width=64, height=48, workers=1, on_progress=done.append)
    (tmp_path / "three").mkdir()  # an empty folder will do
    write_phantoms(tmp_path / "three", count, seed=5, width=64, height=48, workers=3)
    assert done == sorted(set(done))
    assert done[-1] == count

    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == count + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()

    with (tmp_path / "one" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "group", "split"]
    assert [row["image"] for row in rows] == [f"images/{i:06d}.jpg" for i in range(count)]
    assert [row["label"] for row in rows] == [TEXTURES[phantom_scene._label(i, seed=5)] for i in range(count)]
    assert len({row["group"] for row in rows}) == count
    assert Counter((row["label"], row["split"]) for row in rows) == Counter(
        {(name, split): n for name in TEXTURES for split, n in (("fit", 6), ("val", 2))}
    )
    for row in rows:
        with Image.open(tmp_path / "one" / row["image"]) as image:
            assert image.size == (64, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "index must be an integer of at least 0, not -1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"width": 31}, "width must be an integer of at least 32, not 31"),
        ({"height": 0}, "height must be"),
    ],
)
def test_bad_arguments_of_an_image(arguments, message):
    with pytest.raises(UserError, match=message):
        phantom_image(**{"index": 0, "seed": 0, "width": 64, "height": 64} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "images must be an integer of at least 1, not 0"),
        ({"seed": -3}, "seed must be"),
        ({"width": 8}, "width must be"),
        ({"quality": 96}, "quality must be at most 95, not 96"),
        ({"workers": 0}, "workers must be"),
    ],
)
def test_bad_arguments_of_a_folder_leave_nothing_behind(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_phantoms(**{"out": tmp_path / "new", "count": 1} | arguments)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="is not an empty folder"):
            write_phantoms(out, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_a_killed_run_left_is_replaced(tmp_path):
    write_phantoms(tmp_path / "whole", 3, width=32, height=32, workers=1)
    left = tmp_path / "left"
    (left / "images").mkdir(parents=True)
    (left / "labels.csv.partial").touch()
    (left / "images" / "000007.jpg").write_bytes(b"of a larger run")
    write_phantoms(left, 3, width=32, height=32, workers=1)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (tmp_path / "whole", left)]
    assert files[0] == files[1]


def test_a_killed_run_leaves_no_table(tmp_path):
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "new", 3, width=32, height=32, workers=1, on_progress=stop)
    assert not (tmp_path / "new" / "labels.csv").exists()
    write_phantoms(tmp_path / "new", 3, width=32, height=32, workers=1)
    assert (tmp_path / "new" / "labels.csv").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x", Path("/proc/q/r")):
        with pytest.raises(UserError, match=f"^cannot write {out}: "):
            write_phantoms(out, 3, workers=1)


def test_the_tool_says_what_comes_next_and_what_was_wrong(tmp_path):
    out = tmp_path / "a folder"
    good = run_command(TOOL, out, "--images", 7, "--width", 64, "--height", 64, "--workers", 2)
    assert good.returncode == 0, good.stderr
    assert f"fastfgssl prepare '{out}' --out '{out}-archive' --labels '{out}/labels.csv'" in good.stdout
    assert len(list((out / "images").iterdir())) == 7

    bad = run_command(TOOL, out, "--images", 7)
    assert bad.returncode == 2
    assert bad.stderr == f"error: {out} exists and is not an empty folder: name a new one\n"
