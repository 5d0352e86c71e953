"""The jigsaw of images that are tensors already (README.md has the mathematics)."""

from fastfgssl.kernels.jigsaw.op import jigsaw

__all__ = ["jigsaw"]
