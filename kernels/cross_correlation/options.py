"""How a cross-correlation loss is taken and computed, and what its arguments have to be."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import torch

_KNOWN = {
    "form": ("barlow", "official"),
    "algorithm": ("auto", "direct", "gram"),
    "precision": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What does not depend on the embeddings."""

    lambd: float = 0.0051
    """The weight of what is off the diagonal, greater than 0."""
    form: str = "barlow"
    """barlow: sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 (Barlow Twins, arXiv 2103.03230, equation 1); official:
    lambd^2 ||C - I||_F^2 (the published FG-SSL code)."""
    algorithm: str = "auto"
    """direct forms the D x D matrix in slabs, gram two N x N ones with the same result; auto takes the cheaper."""
    precision: str = "auto"
    """What matrix products round their operands to: float32 or bfloat16. auto is bfloat16 on a GPU for embeddings of 16
    bits or inside autocast."""

    def check(self) -> None:
        """Raises ValueError naming the first of them that is not known, or no number greater than 0."""
        if not isinstance(self.lambd, numbers.Real) or not 0 < self.lambd < math.inf:
            raise ValueError(f"lambd = {self.lambd!r}: must be a number greater than 0")
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} = {value!r}: must be one of {', '.join(known)}")

    @property
    def weights(self) -> tuple[float, float]:
        """Of sum_i (1 - C_ii)^2 and of sum_{i != j} C_ij^2."""
        return (1.0, self.lambd) if self.form == "barlow" else (self.lambd**2, self.lambd**2)


def check_arguments(z1: torch.Tensor, z2: torch.Tensor, options: Options, num_ranks: int = 1) -> None:
    """Raises ValueError naming the first argument that does not fit, TypeError for no options; waits for nothing."""
    if not isinstance(options, Options):
        raise TypeError(f"options: must be an Options, such as Options(lambd=0.0051), got {options!r}")
    for name, z in (("z1", z1), ("z2", z2)):
        if not isinstance(z, torch.Tensor):
            raise ValueError(f"{name}: must be a tensor, got {type(z).__name__}")
        if not z.is_floating_point():
            raise ValueError(f"{name}: must be of a float dtype, got {z.dtype}")
    if z1.ndim != 2 or z1.shape != z2.shape or 0 in z1.shape:
        raise ValueError(f"z1, z2: must both be [N, D], got {list(z1.shape)} and {list(z2.shape)}")
    if z1.device != z2.device:
        raise ValueError(f"z1, z2: must be on one device, got {z1.device} and {z2.device}")
    options.check()
    if len(z1) * num_ranks < 2:
        raise ValueError("z1: a batch of 1 row has no cross-correlation; give at least 2")


def require_finite(z1: torch.Tensor, z2: torch.Tensor) -> None:
    """Raises ValueError naming the first number that is not finite; waits for the GPU."""
    for name, z in (("z1", z1), ("z2", z2)):
        wrong = ~z.isfinite()
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{name}: {int(wrong.sum())} of {z.numel()} numbers are not finite, first {z[row, column].item()}"
                f" in row {row}, column {column}"
            )
