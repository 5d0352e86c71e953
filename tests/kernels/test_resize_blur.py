"""The CPU resize and blur: within one grey level of float64, of Pillow and of torchvision."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn
from PIL import Image
from torchvision.transforms.v2 import functional

from fastfgssl.archive.phantom_scene import phantom_image
from fastfgssl.kernels import build
from fastfgssl.kernels.blur.reference import blur_reference
from fastfgssl.kernels.resize.reference import resize_reference
from helpers.paths import TESTS
from helpers.resize_blur import blur_all, patterns, resize_all, run

PILLOW = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC}
TORCHVISION = {"linear": functional.InterpolationMode.BILINEAR, "cubic": functional.InterpolationMode.BICUBIC}


@pytest.fixture(scope="session", autouse=True)
def plugin():
    build.load_plugin()


def resize(image: np.ndarray, size: int, interpolation: str, region=None) -> np.ndarray:
    return resize_all([image], size, interpolation, region)[0]


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return blur_all([image], sigma)[0]


def require_within_one_level(got: np.ndarray, exact: np.ndarray, *, allowed: float = 1 - 1e-9) -> None:
    """The checker: `got` is whole numbers, `exact` is float64 and may leave the range of `got`."""
    exact = exact.clip(0, np.iinfo(got.dtype).max if got.dtype.kind == "u" else None)
    assert got.shape == exact.shape
    assert np.abs(got - exact).max() <= allowed


SIDES = st.integers(1, 90)


@settings(max_examples=100)
@given(
    height=SIDES,
    width=SIDES,
    size=st.sampled_from([1, 2, 5, 16, 33, 64]),
    interpolation=st.sampled_from(["linear", "cubic"]),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    data=st.data(),
)
def test_resize_is_within_one_level_of_float64(height, width, size, interpolation, channels, dtype, data):
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = (y0, x0, data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images = list(patterns(rng, height, width, channels, dtype).values())
    for image, resized in zip(images, resize_all(images, size, interpolation, region), strict=True):
        exact = resize_reference(image, size, interpolation=interpolation, region=region)
        require_within_one_level(resized, exact)


@pytest.mark.parametrize("side", [1, 17, 64, 200])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_one_channel_has_the_bits_of_each_of_three_equal_ones(side, interpolation):
    rng = np.random.default_rng(side)
    gray = list(patterns(rng, side, side + 13, 1, np.uint8).values())
    colour = [np.repeat(image, 3, axis=2) for image in gray]
    region = (0, side // 3, side, side + 13)
    made = [(resize_all(images, size, interpolation, region) for images in (gray, colour)) for size in (5, 33)]
    if interpolation == "linear":
        made += [(blur_all(images, sigma) for images in (gray, colour)) for sigma in (0.3, 1.7)]
    for ours, theirs in made:
        for one, three in zip(ours, theirs, strict=True):
            assert np.array_equal(np.repeat(one, 3, axis=2), three)


def resize_by_others(image: np.ndarray, size: int, interpolation: str) -> dict[str, np.ndarray]:
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    resized = functional.resize(tensor, [size, size], TORCHVISION[interpolation], antialias=True)
    pillow = Image.fromarray(image).resize((size, size), PILLOW[interpolation])
    return {"Pillow": np.array(pillow), "torchvision": resized.permute(1, 2, 0).numpy()}


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(450, 600, 224), (450, 600, 64), (256, 341, 224), (60, 80, 96)])
def test_resize_of_a_picture_is_that_of_pillow_and_torchvision(height, width, size, interpolation):
    picture = phantom_image(5, seed=2, width=width, height=height).image
    ours = resize(picture, size, interpolation)
    for theirs in resize_by_others(picture, size, interpolation).values():
        require_within_one_level(ours, theirs.astype(np.float64), allowed=1)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(450, 600, 224), (1000, 1500, 64)])
def test_resize_of_noise_is_no_farther_from_pillow_than_pillow_is_from_float64(height, width, size, interpolation):
    """They round and clamp between the two sums, which noise and steps from black to white make visible; we do not."""
    images = list(patterns(np.random.default_rng(size), height, width, 3, np.uint8).values())
    for image, ours in zip(images, resize_all(images, size, interpolation), strict=True):
        exact = resize_reference(image, size, interpolation=interpolation).clip(0, 255)
        for theirs in resize_by_others(image, size, interpolation).values():
            require_within_one_level(ours, theirs.astype(np.float64), allowed=1 + np.abs(theirs - exact).max())


def test_resize_of_images_of_many_sizes_in_one_batch():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(5, 7), (64, 64), (300, 200), (31, 500)] * 3]
    for got, image in zip(run(images, lambda x: fn.fastfgssl_resize(x, size=32)), images, strict=True):
        require_within_one_level(got, resize_reference(image, 32, interpolation="linear"))


@settings(max_examples=100)
@given(
    height=SIDES,
    width=SIDES,
    sigma=st.one_of(st.floats(0.01, 8), st.floats(8, 30)),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 2**32),
)
def test_blur_is_within_one_level_of_float64(height, width, sigma, channels, dtype, seed):
    images = list(patterns(np.random.default_rng(seed), height, width, channels, dtype).values())
    for image, blurred in zip(images, blur_all(images, sigma), strict=True):
        require_within_one_level(blurred, blur_reference(image, np.float32(sigma)))


@pytest.mark.parametrize("sigma", [10, 10.5, 105, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blur_leaves_white_white(sigma, dtype):
    white = np.full((28, 28, 3), np.iinfo(dtype).max, dtype)
    require_within_one_level(blur(white, sigma), white.astype(np.float64))


def nearest(image: np.ndarray, size: int) -> np.ndarray:
    return image[np.arange(size) * image.shape[0] // size][:, np.arange(size) * image.shape[1] // size]


def test_the_checker_rejects_wrong_kernels():
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    exact = resize_reference(image, 32, interpolation="linear")
    not_antialiased = np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX))
    half_a_pixel_off = resize(image, 32, "linear", (0, 0, 95, 95))
    for wrong in (nearest(image, 32), not_antialiased, half_a_pixel_off, resize(image, 32, "cubic")):
        with pytest.raises(AssertionError):
            require_within_one_level(wrong, exact)
    with pytest.raises(AssertionError):
        require_within_one_level(blur(image, 1.1), blur_reference(image, 1.0))
    edges_repeated = image.copy()
    edges_repeated[1] = image[0]
    with pytest.raises(AssertionError):
        require_within_one_level(blur(edges_repeated, 1.0), blur_reference(image, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: must be at least 1, got 0"),
        ({"size": 8, "interpolation": "box"}, "interpolation: must be linear or cubic, got box"),
        ({"size": 8, "roi_start": [0.0, 0.0]}, "roi_start, roi_end: both or neither"),
        (
            {"size": 8, "roi_start": [0.0, 4.0], "roi_end": [9.0, 4.0]},
            "sample 0: 0, 4 to 9, 4 is no region of an image of 9 x 12",
        ),
        ({"size": 8, "roi_start": [float("nan"), 0.0], "roi_end": [9.0, 4.0]}, "is no region of an image of 9 x 12"),
        ({"size": 8, "roi_start": [2.0**32, 0.0], "roi_end": [9.0, 4.0]}, "is no region of an image of 9 x 12"),
        ({"size": 8, "roi_start": [0.0, 0.0], "roi_end": [10.0, 4.0]}, "is no region of an image of 9 x 12"),
    ],
)
def test_resize_names_the_bad_argument(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        run([np.zeros((9, 12, 3), np.uint8)], lambda x: fn.fastfgssl_resize(x, **arguments))


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), 1e6])
def test_blur_names_the_bad_argument(sigma):
    with pytest.raises(RuntimeError, match="sigma: must be 0 to 1000"):
        blur(np.zeros((9, 12, 3), np.uint8), sigma)


OUTPUTS = """
import hashlib, sys
import numpy as np
from nvidia.dali import fn, types
from fastfgssl.kernels import build
if sys.argv[1] == "plain":
    which = build.shutil.which
    build.shutil.which = lambda name: None if name == "nvcc" else which(name)  # the CPU backend alone builds in seconds
    build._HOST_ONLY = ["-ffp-contract=off"]
from helpers.resize_blur import blur_all, patterns, resize_all, run
build.load_plugin()
rng, digest = np.random.default_rng(0), hashlib.sha256()
for side in (1, 7, 33, 64, 200):
    images = list(patterns(rng, side, side + 3, 3, np.uint8).values())
    gray = [image[..., :1].copy() for image in images]
    outputs = [resize_all(some, 33, interpolation) for some in (images, gray) for interpolation in ("linear", "cubic")]
    outputs += [blur_all(images, sigma) for sigma in (0.3, 1.7)]
    for dtype in (types.FLOAT, types.FLOAT16):
        for flags in (1, 6):
            outputs.append(run(images, lambda x: fn.fastfgssl_views(x, x, anchor_flags=flags, dtype=dtype)))
    for image in sum(outputs, []):
        digest.update(np.ascontiguousarray(image))
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_processors_without_avx_give_the_same_bits(monkeypatch):
    def digest(flags: str) -> str:
        command = [sys.executable, "-c", OUTPUTS, flags]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    assert digest("plain") == digest("native") != ""
