"""Operators with their mathematics, reference and fast versions. Imported as `fastfgssl.kernels`."""

from fastfgssl.kernels.jigsaw import jigsaw

__all__ = ["jigsaw"]
