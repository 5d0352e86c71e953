"""The cross-correlation loss of a batch and its gradients at once: standardise, multiply, go back, over any ranks.

The loss is a scalar, so its gradients are known as soon as its value is, but for a factor: they are made with it, and
backward only multiplies. Nothing of size N x N or D x D outlives the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, Protocol

import torch

from fastfgssl.kernels.cross_correlation import torch_steps
from fastfgssl.kernels.cross_correlation.products import through_grams, through_slabs

FORMS = ("barlow", "official")
ALGORITHMS = ("auto", "direct", "gram")
PRECISIONS = ("auto", "float32", "bfloat16")


class Ranks(Protocol):
    """Where the rows of the batch are: as many on each of `size` ranks."""

    rank: int
    size: int

    def gather(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins to gather all ranks' rows; the call that it returns waits for them."""

    def add_up(self, values: torch.Tensor) -> None:
        """Replaces `values` by their sum over ranks."""


class _Alone:
    rank, size = 0, 1

    def gather(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: rows

    def add_up(self, values: torch.Tensor) -> None:
        pass


ALONE = _Alone()


class CrossCorrelation(NamedTuple):
    """What is known of C = Z1' Z2 / N; scalars are those of the whole batch, and the same on every rank."""

    loss: torch.Tensor
    terms: torch.Tensor
    """[3]: sum_i (1 - C_ii)^2; sum_(i != j) C_ij^2; and how many columns are dead, with a variance below the eps of the
    standardisation, in either view."""
    gradients: tuple[torch.Tensor, torch.Tensor] | None
    """[n, D] of this rank's rows of both views, times the number of ranks; None if not asked for."""


def cross_correlation(
    z1: torch.Tensor,
    z2: torch.Tensor,
    *,
    lambd: float,
    form: str,
    algorithm: str = "auto",
    precision: torch.dtype = torch.float32,
    with_gradients: bool,
    ranks: Ranks = ALONE,
    steps: ModuleType | None = None,
) -> CrossCorrelation:
    """The loss of embeddings z1, z2 [n, D], this rank's rows, and its gradients in float32 (float64 for float64).

    precision: what matrix products round their operands to, float32 or bfloat16; float64 embeddings stay float64.
    steps: the module of steps over columns; by default Triton's for GPUs. Takes its arguments on trust
    (`check_arguments`).
    """
    on_weight, off_weight = (1.0, lambd) if form == "barlow" else (lambd**2, lambd**2)
    n, D = z1.shape
    N = n * ranks.size
    if algorithm == "auto":
        algorithm = cheaper_algorithm(N, D, ranks.size, z1.device.type)
    if torch.float64 in (z1.dtype, z2.dtype):
        precision = torch.float64
    steps = steps or _steps_of(z1.device, precision)
    rows = slice(ranks.rank * n, (ranks.rank + 1) * n)
    scale = 2 * off_weight / N**2

    weights = {"on_weight": on_weight, "off_weight": off_weight, "diagonal_in_product": algorithm == "gram"}

    # both views are on their way before either is waited for
    gathering = ranks.gather(z1.contiguous()), ranks.gather(z2.contiguous())
    # Triton launches on the current device
    with torch.autocast(z1.device.type, enabled=False), torch.cuda.device_of(z1):
        standardised = steps.standardise(*(received() for received in gathering), precision, **weights)
        how = {"rows": rows, "precision": precision, "with_gradients": with_gradients, "steps": steps}
        if algorithm == "gram":
            products = through_grams(standardised.views, standardised.totals[2:4], **how)
        else:
            products = through_slabs(standardised.views, **how, num_ranks=ranks.size)
        if with_gradients:
            squared_norm, toward, shifted = products
            shared = steps.contract(squared_norm, toward, standardised, scale=scale, shifted=shifted, rows=rows)
        else:
            shared = products.squared_norm.sum(dim=0, keepdim=True)
        ranks.add_up(shared)
        loss, terms = steps.loss_and_terms(shared[:1], standardised, **weights)
        gradients = None
        if with_gradients:
            gradients = steps.finish(toward, standardised, shared[1:], factor=float(ranks.size), rows=rows)
    return CrossCorrelation(loss, terms, gradients)


def cheaper_algorithm(N: int, D: int, num_ranks: int, device_type: str) -> str:
    """gram or direct: of products of N D numbers, gram has 4 N a rank and direct (ranks + 2) D.

    On a CPU alone, half of each Gram matrix is copied from the other half, and gram costs less than its operations say:
    the bound was measured (`tools/bench.py loss`).
    """
    work_of_gram = 3.4 if device_type == "cpu" and num_ranks == 1 else 4.0
    return "gram" if work_of_gram * N < (num_ranks + 2) * D else "direct"


def _steps_of(device: torch.device, precision: torch.dtype) -> ModuleType:
    if device.type != "cuda" or precision == torch.float64:
        return torch_steps
    from fastfgssl.kernels.cross_correlation import triton_steps

    return triton_steps


def check_arguments(z1: torch.Tensor, z2: torch.Tensor, *, lambd: float, form: str, algorithm: str, precision: str):
    """Raises ValueError naming the first argument that does not fit; needs no communication."""
    for name, z in (("z1", z1), ("z2", z2)):
        if not isinstance(z, torch.Tensor):
            raise ValueError(f"{name}: must be a tensor, got {type(z).__name__}")
        if not z.is_floating_point():
            raise ValueError(f"{name}: must be of a float dtype, got {z.dtype}")
    if z1.ndim != 2 or z1.shape != z2.shape or 0 in z1.shape:
        raise ValueError(f"z1, z2: must both be [N, D], got {list(z1.shape)} and {list(z2.shape)}")
    if z1.device != z2.device:
        raise ValueError(f"z1, z2: must be on one device, got {z1.device} and {z2.device}")
    if not isinstance(lambd, (int, float)) or not 0 < lambd < math.inf:
        raise ValueError(f"lambd = {lambd!r}: must be a number greater than 0")
    for name, value, known in (
        ("form", form, FORMS),
        ("algorithm", algorithm, ALGORITHMS),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(known)}")


def require_rows(num_rows: int) -> None:
    """Raises ValueError for a batch that has no correlation."""
    if num_rows < 2:
        raise ValueError(f"z1: a batch of {num_rows} row has no cross-correlation; give at least 2")


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
