"""The views fan-out: anchor, puzzle view and every jigsaw puzzle of an image (README.md has the mathematics)."""

from fastfgssl.kernels.views.op import jigsaw

__all__ = ["jigsaw"]
