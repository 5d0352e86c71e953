"""The resize and the blur on arrays, in pipelines of their own, and the images that are worst for them."""

from __future__ import annotations

import numpy as np
from nvidia.dali import Pipeline, fn


def run(images: list[np.ndarray], make) -> list[np.ndarray]:
    """Outputs of `make(images)` in a DALI pipeline."""
    pipe = Pipeline(len(images), num_threads=2, device_id=None)
    with pipe:
        outputs = make(fn.external_source(source=lambda: images, batch=True, layout="HWC"))
        pipe.set_outputs(*outputs if isinstance(outputs, (list, tuple)) else (outputs,))
    (result,) = pipe.run()[:1]
    return [np.array(result.at(i)) for i in range(len(images))]


def resize_all(images: list[np.ndarray], size: int, interpolation: str, region=None) -> list[np.ndarray]:
    corners = {"roi_start": np.float32(region[:2]), "roi_end": np.float32(region[2:])} if region else {}
    return run(images, lambda x: fn.fastfgssl_resize(x, size=size, interpolation=interpolation, **corners))


def blur_all(images: list[np.ndarray], sigma: float) -> list[np.ndarray]:
    """The views operator's blur; a deviation of 1 / white gives grey levels back."""
    std = 1 / np.iinfo(images[0].dtype).max
    views = run(images, lambda x: fn.fastfgssl_views(x, x, puzzle_sigma=sigma, anchor_sigma=sigma, std=std))
    return [view.astype(np.float64).round(3) for view in views]


def patterns(rng: np.random.Generator, height: int, width: int, channels: int, dtype) -> dict[str, np.ndarray]:
    """Random images, and those that are worst for rounding and for edges."""
    white = np.iinfo(dtype).max
    checks = np.indices((height, width)).sum(axis=0) % 2 * white
    images = {
        "random": rng.integers(0, white + 1, (height, width, channels)),
        "black or white": rng.integers(0, 2, (height, width, channels)) * white,
        "checks": np.repeat(checks[..., None], channels, axis=2),
        "white": np.full((height, width, channels), white),
    }
    return {name: image.astype(dtype) for name, image in images.items()}
