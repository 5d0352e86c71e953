"""Operators with their mathematics, reference and fast versions. Imported as `fastfgssl.kernels`."""
