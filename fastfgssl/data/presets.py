"""The view presets, where those who look for them under data find them: a run's configuration checks and holds them."""

from fastfgssl.config.preset_text import find_preset
from fastfgssl.config.presets import PLAIN, PRESETS
from fastfgssl.config.views import JITTER_PARTS, Affine, Crop, Jitter, Preset, ViewSpec

__all__ = ["JITTER_PARTS", "PLAIN", "PRESETS", "Affine", "Crop", "Jitter", "Preset", "ViewSpec", "find_preset"]
