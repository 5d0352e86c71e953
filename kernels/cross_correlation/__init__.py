"""The cross-correlation loss (README.md has the mathematics)."""

from fastfgssl.kernels.cross_correlation.op import (
    check_arguments,
    cross_correlation,
    require_finite,
    require_rows,
)

__all__ = ["check_arguments", "cross_correlation", "require_finite", "require_rows"]
