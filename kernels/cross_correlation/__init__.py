"""The cross-correlation loss (README.md has the mathematics)."""

from fastfgssl.kernels.cross_correlation.op import cross_correlation_loss
from fastfgssl.kernels.cross_correlation.options import Options, check_arguments, require_finite
from fastfgssl.kernels.cross_correlation.ranks import ALONE, Ranks, send_error
from fastfgssl.kernels.cross_correlation.reference import standardise

__all__ = [
    "ALONE",
    "Options",
    "Ranks",
    "check_arguments",
    "cross_correlation_loss",
    "require_finite",
    "send_error",
    "standardise",
]
