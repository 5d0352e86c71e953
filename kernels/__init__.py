"""Operators with their mathematics, reference and fast versions. Imported as `fastfgssl.kernels`."""

from fastfgssl.kernels.views import jigsaw

__all__ = ["jigsaw"]
