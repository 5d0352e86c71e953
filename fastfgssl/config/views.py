"""What a view preset is made of: the operations of its two views, how strong they are and how likely.

`check` says where in a preset a number is out of its range; built-in presets (presets.py) and a user's (preset_text.py)
are made of the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.config.section import require

REFERENCE_SIDE = 224
"""Side in pixels of the view for which a preset states its sizes."""
_MOST_SIGMA = 50.0
JITTER_PARTS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Random resized crop; always applied, to each view on its own."""

    area: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that is kept."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of what is kept, log-uniform."""

    def check(self, key: str) -> None:
        _require_range(f"{key}.area", self.area, most=1)
        _require_range(f"{key}.ratio", self.ratio)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Colour jitter: brightness, contrast and saturation are multiplied by 1 +- x, hue is shifted by +- x turns."""

    p: float
    """Probability."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @property
    def colour(self) -> bool:
        """Whether it changes more than intensity."""
        return bool(self.saturation or self.hue)

    @property
    def intensity(self) -> bool:
        """Whether it changes more than colour."""
        return bool(self.brightness or self.contrast)

    def check(self, key: str) -> None:
        for name in ("p", "brightness", "contrast", "saturation"):
            _require_share(f"{key}.{name}", getattr(self, name))
        require(0 <= self.hue <= 0.5, f"{key}.hue", self.hue, "in [0, 0.5], turns of the colour circle")


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Rotation by +- `degrees` and magnification by a factor in `scale` about the centre; edges are continued."""

    degrees: float
    scale: tuple[float, float]

    def check(self, key: str) -> None:
        require(0 <= self.degrees <= 180, f"{key}.degrees", self.degrees, "in [0, 180]")
        _require_range(f"{key}.scale", self.scale)


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """One view's operations; what is a number alone is the probability of one.

    They are applied in this order: crop, affine, jitter, blur, turns and flips, grayscale, solarise.
    """

    crop: Crop | None = None
    affine: Affine | None = None
    jitter: Jitter | None = None
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of a view of 224 pixels (`data.view_sizes`)."""
    flip: float = 0.0
    """Left and right are exchanged."""
    grayscale: float = 0.0
    solarise: float = 0.0
    vertical_flip: float = 0.0
    """Top and bottom are exchanged."""
    quarter_turns: float = 0.0
    """A turn by 0, 90, 180 or 270 degrees, all alike likely; with 1 and a flip of 0.5, so are a square's symmetries."""

    def check(self, key: str) -> None:
        for name in ("blur", "flip", "grayscale", "solarise", "vertical_flip", "quarter_turns"):
            _require_share(f"{key}.{name}", getattr(self, name))
        _require_range(f"{key}.sigma", self.sigma, most=_MOST_SIGMA)
        for name in ("crop", "affine", "jitter"):
            if part := getattr(self, name):
                part.check(f"{key}.{name}")


@dataclass(frozen=True, kw_only=True)
class Preset:
    puzzle: ViewSpec
    """The view that is shuffled into the puzzles, and the last step's input unshuffled; all there is with labels."""
    anchor: ViewSpec
    """The view that every puzzle is compared with."""
    interpolation: Literal["linear", "cubic"] = "linear"
    """Resampling to the image size, antialiased."""

    @property
    def colour(self) -> bool:
        """Whether a view's jitter changes more than intensity."""
        return any(view.jitter is not None and view.jitter.colour for view in (self.puzzle, self.anchor))

    def check(self, key: str) -> None:
        self.puzzle.check(f"{key}.puzzle")
        self.anchor.check(f"{key}.anchor")


def _require_share(key: str, value: float) -> None:
    require(0 <= value <= 1, key, value, "in [0, 1]")


def _require_range(key: str, value: tuple[float, ...], *, most: float | None = None) -> None:
    """That `value` is a lowest and a highest number, above 0."""
    at_most = "" if most is None else f" and at most {most:g}"
    is_range = len(value) == 2 and 0 < value[0] <= value[1] <= (value[1] if most is None else most)
    require(is_range, key, list(value), f"two numbers, the lower one first, greater than 0{at_most}")
