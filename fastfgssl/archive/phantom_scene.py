"""Phantoms: seeded dermoscopy-like images whose classes differ in fine texture alone.

An image is a scene (skin, light, hair, a lesion) and one texture inside the lesion, each with random numbers of its
own, so no scene can know the class. Textures are waves of one length, about a tenth of the image's short side, of one
histogram: classes share their colours and their coarse spectrum, and differ in how the waves are arranged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fastfgssl.runtime.errors import UserError

MIN_SIDE = 32  # below it a wave is hardly three pixels long
CANVAS_SIDE = 96  # smaller images are drawn at a multiple of their size and averaged
WAVES_PER_SIDE = 10.0  # too many to survive in a 16 x 16 thumbnail, few enough to be seen at 64 x 64
HAIR_OVERSAMPLING = 3  # ImageDraw does not anti-alias

# How strongly the two pigments of skin absorb red, green and blue light.
MELANIN = (0.35, 0.70, 1.05)
HAEMOGLOBIN = (0.10, 0.75, 0.55)

_SCENE, _TEXTURE, _ORDER, _SPLIT = range(4)  # what a stream of random numbers is for


class Phantom(NamedTuple):
    """image: uint8 [height, width, 3], RGB. label: index into `TEXTURES`."""

    image: np.ndarray
    label: int


def phantom_image(index: int, *, seed: int, width: int, height: int) -> Phantom:
    """Image `index` of the endless sequence that `seed` names: a pure function of its arguments.

    Of the images kC to kC + C - 1, where C is `len(TEXTURES)`, every class has one. `index` and `seed` are integers
    >= 0, `width` and `height` pixels >= `MIN_SIDE`; otherwise `UserError`.
    """
    check_at_least(index=(index, 0), seed=(seed, 0), width=(width, MIN_SIDE), height=(height, MIN_SIDE))
    label = _label(index, seed)
    rng = _generator(seed, _SCENE, index)
    scale = math.ceil(CANVAS_SIDE / min(width, height))
    scene = _draw_scene(rng, height * scale, width * scale)
    texture = _texture(TEXTURES[label], scene, _generator(seed, _TEXTURE, index))
    image = _render(scene, texture)
    if scale > 1:
        image = image.reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
    image += rng.uniform(1, 4) * rng.standard_normal((height, width, 1), dtype=np.float32)  # the camera's noise
    return Phantom(np.clip(np.rint(image), 0, 255).astype(np.uint8), label)


def _label(index: int, seed: int) -> int:
    block, place = divmod(index, len(TEXTURES))
    return int(_generator(seed, _ORDER, block).permutation(len(TEXTURES))[place])


def splits(labels: list[int], seed: int) -> list[str]:
    """Every fourth image is for validation, counted class after class, within a class in random order."""
    order = np.lexsort((_generator(seed, _SPLIT, 0).random(len(labels)), np.array(labels)))
    splits = np.full(len(labels), "fit")
    splits[order[3::4]] = "val"
    return splits.tolist()


def _generator(seed: int, purpose: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, index)))


def check_at_least(**values: tuple[int, int]) -> None:
    """Raises `UserError` unless each of the values is an integer that is no smaller than what stands beside it."""
    for name, (value, lowest) in values.items():
        if not isinstance(value, Integral) or value < lowest:
            raise UserError(f"{name} must be an integer of at least {lowest}, not {value!r}")


class _Scene(NamedTuple):
    """All of an image but its texture. Maps are float32 [H, W], as large as the canvas."""

    lesion: np.ndarray  # how much of the lesion's pigment lies here, about 0 outside and 1 inside
    u: np.ndarray  # distance from the lesion's centre in waves, along a random direction, slightly warped
    v: np.ndarray  # the same, across that direction
    pigment: list[float]  # optical density of the lesion in red, green and blue
    contrast: float  # the share of that density by which the texture raises and lowers it
    melanin: np.ndarray  # of the skin
    haemoglobin: np.ndarray  # of the skin
    light: np.ndarray  # lamp, vignette and hair
    tint: list[float]  # of the light, in red, green and blue


def _draw_scene(rng: np.random.Generator, height: int, width: int) -> _Scene:
    noise = partial(_smooth_noise, rng, height, width)
    short = min(height, width)
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short)[None, :]

    tilt_x, tilt_y = rng.normal(0, 0.18, 2).tolist()
    light = rng.uniform(0.85, 1.05) + tilt_x * x + tilt_y * y - rng.uniform(0, 0.6) * (x * x + y * y)
    light *= 1 - 0.85 * _draw_hair(rng, height, width)
    melanin = rng.uniform(0.05, 0.5) * (1 + 0.12 * noise(6) + 0.1 * noise(60))
    haemoglobin = rng.uniform(0.1, 0.55) * (1 + 0.15 * noise(4))

    x, y = x - rng.uniform(-0.1, 0.1), y - rng.uniform(-0.1, 0.1)
    along, across = _rotate(x, y, rng.uniform(0, math.pi))
    inside = rng.uniform(0.3, 0.46) - np.hypot(along, across / rng.uniform(0.7, 1))  # an ellipse ...
    inside += 0.05 * noise(3) + 0.015 * noise(10)  # ... with a ragged outline
    lesion = 0.5 + 0.5 * np.tanh(inside / rng.uniform(0.02, 0.08))
    waves = WAVES_PER_SIDE * rng.uniform(0.9, 1.1)
    u, v = _rotate(waves * x, waves * y, rng.uniform(0, math.tau))
    dose, blood = rng.uniform(0.5, 1.3), rng.uniform(-0.05, 0.5)
    return _Scene(
        lesion=lesion * (1 + 0.18 * noise(5) + 0.1 * noise(30)),
        u=u + 0.2 * noise(waves / 2),
        v=v + 0.2 * noise(waves / 2),
        pigment=[(dose * m + blood * h) * rng.uniform(0.8, 1.2) for m, h in zip(MELANIN, HAEMOGLOBIN, strict=True)],
        contrast=rng.uniform(0.25, 0.55),
        melanin=melanin,
        haemoglobin=haemoglobin,
        light=light,
        tint=rng.uniform(0.85, 1, 3).tolist(),
    )


def _draw_hair(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Opacity, float32 [height, width] in 0..1, of up to eight bent hairs; half of the images have none."""
    size = np.array([width, height]) * HAIR_OVERSAMPLING
    canvas = Image.new("L", tuple(size.tolist()))
    draw = ImageDraw.Draw(canvas)
    parabola = np.linspace(-0.5, 0.5, 24)
    for _ in range(rng.integers(1, 9) if rng.random() < 0.5 else 0):
        bent = parabola + 1j * rng.normal(0, 0.6) * parabola**2
        turned = bent * np.exp(1j * rng.uniform(0, math.tau)) * rng.uniform(0.4, 1.4) * min(size)
        x, y = rng.random(2) * size
        thickness = max(1, round(rng.uniform(0.003, 0.008) * min(size)))
        points = list(zip((x + turned.real).tolist(), (y + turned.imag).tolist(), strict=True))
        draw.line(points, fill=int(rng.integers(110, 230)), width=thickness, joint="curve")
    return np.asarray(canvas.reduce(HAIR_OVERSAMPLING), np.float32) / 255


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: float) -> np.ndarray:
    """float32 [height, width] of mean 0 and deviation near 1, with `cells` independent values along the short side."""
    grid = [round(cells * side / min(height, width)) + 1 for side in (height, width)]
    coarse = Image.fromarray(rng.standard_normal(grid, dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the points (x, y) on axes turned by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _texture(name: str, scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W], distributed evenly over -1..1 inside the lesion whatever the texture."""
    relief = _RELIEFS[name](scene.u, scene.v, rng)
    step = max(1, min(relief.shape) // CANVAS_SIDE)  # a sample is enough for the quantiles
    sample = relief[::step, ::step][scene.lesion[::step, ::step] > 0.5]
    ranks = np.linspace(0, 1, 33)
    return np.interp(relief, np.quantile(sample, ranks), 2 * ranks - 1).astype(np.float32)


def _render(scene: _Scene, texture: np.ndarray) -> np.ndarray:
    """float32 [H, W, 3], 0..255 or a little beyond: light that the skin's and the lesion's pigments let through."""
    density = scene.lesion * (1 + scene.contrast * texture)
    image = np.empty((*density.shape, 3), np.float32)
    for c in range(3):
        skin = MELANIN[c] * scene.melanin + HAEMOGLOBIN[c] * scene.haemoglobin
        image[..., c] = 255 * scene.tint[c] * scene.light * np.exp(-skin - scene.pigment[c] * density)
    return image


def _wave(u: np.ndarray, v: np.ndarray, turn: float, phase: float) -> np.ndarray:
    """A wave of length 1 that runs in the direction `turn`; both it and `phase` in whole turns."""
    return np.cos(math.tau * (math.cos(math.tau * turn) * u + (math.sin(math.tau * turn) * v + phase)))


def _globules(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round spots, close-packed: three waves whose crests meet, as their phases sum to zero."""
    a, b = rng.random(2).tolist()
    return _wave(u, v, 0, a) + _wave(u, v, 1 / 3, b) + _wave(u, v, 2 / 3, -a - b)


def _network(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mesh of cords around pale holes, where globules have spots."""
    return -_globules(u, v, rng)


def _crosshatch(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lines in two directions at right angles."""
    return np.maximum(_wave(u, v, 0, rng.random()), _wave(u, v, 1 / 4, rng.random()))


def _dashes(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Staggered short strokes, all of one direction: two waves 50 degrees apart."""
    return _wave(u, v, 0.07, rng.random()) + _wave(u, v, -0.07, rng.random())


def _ridges(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Parallel ridges."""
    return _wave(u, v, 0, rng.random())


def _streaks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spokes about the lesion's centre, which fork wherever they would become too broad."""
    octave = np.maximum(np.log2(math.tau * np.hypot(u, v) + 1e-6), 2)  # 2 to its power is how many spokes fit
    lower = np.floor(octave)
    fork = np.clip(4 * (octave - lower) - 1.5, 0, 1)
    angle = np.exp2(lower) * np.arctan2(v, u)
    return (1 - fork) * np.cos(angle) + fork * np.cos(2 * angle)


def _gyri(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Winding ridges, as on a brain: a dozen waves from all sides."""
    turns = (np.arange(12) + rng.random(12)) / 24
    return sum((_wave(u, v, turn, rng.random()) for turn in turns.tolist()), start=np.zeros_like(u))


# From place, in waves, to the relief of the texture; the lesion is darker where it is higher.
_RELIEFS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "network": _network,
    "globules": _globules,
    "crosshatch": _crosshatch,
    "dashes": _dashes,
    "ridges": _ridges,
    "streaks": _streaks,
    "gyri": _gyri,
}
TEXTURES = tuple(_RELIEFS)
