"""View presets: what is done to an image before its puzzle view and its anchor are made, and how likely.

To add one, add an entry to `PRESETS`; view_params.py draws its numbers and graph.py applies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.runtime.errors import require_one_of


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Random resized crop; always applied, to each view on its own."""

    area: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that is kept."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of what is kept, log-uniform."""


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Colour jitter: brightness, contrast and saturation are multiplied by 1 +- x, hue is shifted by +- x turns."""

    p: float
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @property
    def colour(self) -> bool:
        """Whether it changes more than intensity."""
        return bool(self.saturation or self.hue)


JITTER_PARTS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Rotation by +- `degrees` and magnification by a factor in `scale` about the centre; edges are continued."""

    degrees: float
    scale: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """One view's operations in the order in which they are applied; numbers are probabilities."""

    crop: Crop | None = None
    affine: Affine | None = None
    jitter: Jitter | None = None
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the view."""
    flip: float = 0.0
    grayscale: float = 0.0
    solarise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Preset:
    puzzle: ViewSpec
    """The view that is shuffled into the puzzles, and the last step's input unshuffled."""
    anchor: ViewSpec
    """The view that every puzzle is compared with."""
    interpolation: Literal["linear", "cubic"] = "linear"
    """Resampling to the image size, antialiased."""


PRESETS = {
    # the method's own list: the whole image, no crop (the authors' published code)
    "paper": Preset(
        puzzle=ViewSpec(blur=1.0, flip=0.5, grayscale=0.2),
        anchor=ViewSpec(blur=0.1, grayscale=0.2, solarise=0.2),
    ),
    # Barlow Twins (arXiv 2103.03230), section 2.2
    "barlow": Preset(
        puzzle=ViewSpec(
            crop=Crop(),
            jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            blur=1.0,
            flip=0.5,
            grayscale=0.2,
        ),
        anchor=ViewSpec(
            crop=Crop(),
            jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            blur=0.1,
            flip=0.5,
            grayscale=0.2,
            solarise=0.2,
        ),
        interpolation="cubic",
    ),
    # radiographs, CT, MR: intensity carries the meaning, so it is neither inverted nor recoloured
    "grayscale": Preset(
        puzzle=ViewSpec(
            affine=Affine(degrees=10.0, scale=(0.9, 1.1)),
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2),
            blur=1.0,
            flip=0.5,
        ),
        anchor=ViewSpec(
            affine=Affine(degrees=10.0, scale=(0.9, 1.1)),
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2),
            blur=0.1,
        ),
    ),
}

PLAIN = Preset(puzzle=ViewSpec(), anchor=ViewSpec())
"""The whole image, resized and normalised, nothing else: what evaluation sees."""


def find_preset(name: str) -> Preset:
    """The preset of that name; `UserError` naming the nearest one if there is none."""
    require_one_of("data.views", name, PRESETS)
    return PRESETS[name]
