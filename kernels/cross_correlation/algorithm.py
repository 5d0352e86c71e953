"""The cross-correlation loss of a batch and its gradients at once: standardise, multiply, go back, over any ranks.

The loss is a scalar, so its gradients are known as soon as its value is, but for a factor: they are made with it, and
backward only multiplies. Nothing of size N x N or D x D outlives the call.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch

from fastfgssl.kernels.cross_correlation import columns as torch_columns
from fastfgssl.kernels.cross_correlation.options import Options
from fastfgssl.kernels.cross_correlation.products import through_grams, through_slabs
from fastfgssl.kernels.cross_correlation.ranks import ALONE, Ranks


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
    options: Options,
    *,
    with_gradients: bool,
    ranks: Ranks = ALONE,
    columns: ModuleType | None = None,
) -> CrossCorrelation:
    """The loss of embeddings z1, z2 [n, D], this rank's rows, and its gradients in float32 (float64 for float64).

    options: their precision is float32 or bfloat16; float64 embeddings stay float64. columns: the module of steps over
    columns; by default Triton's for GPUs. Takes its arguments on trust (`check_arguments`).
    """
    on_weight, off_weight = options.weights
    n, D = z1.shape
    N = n * ranks.size
    algorithm = options.algorithm
    if algorithm == "auto":
        algorithm = cheaper_algorithm(N, D, ranks.size, z1.device.type)
    precision = torch.float64 if torch.float64 in (z1.dtype, z2.dtype) else getattr(torch, options.precision)
    columns = columns or _columns_of(z1.device, precision)
    rows = slice(ranks.rank * n, (ranks.rank + 1) * n)
    scale = 2 * off_weight / N**2

    weights = {"on_weight": on_weight, "off_weight": off_weight, "diagonal_in_product": algorithm == "gram"}

    # both views are on their way before either is waited for
    gathering = ranks.begin_gather(z1.contiguous()), ranks.begin_gather(z2.contiguous())
    # Triton launches on the current device
    with torch.autocast(z1.device.type, enabled=False), torch.cuda.device_of(z1):
        standardised = columns.standardise(*(received() for received in gathering), precision, **weights)
        how: dict[str, Any] = {
            "rows": rows,
            "precision": precision,
            "with_gradients": with_gradients,
            "columns": columns,
        }
        if algorithm == "gram":
            products = through_grams(standardised.views, standardised.totals[2:4], **how)
        else:
            products = through_slabs(standardised.views, **how, num_ranks=ranks.size)
        if with_gradients:
            squared_norm, toward, shifted = products
            shared = columns.contract(squared_norm, toward, standardised, scale=scale, shifted=shifted, rows=rows)
        else:
            shared = products.squared_norm.sum(dim=0, keepdim=True)
        ranks.all_reduce(shared)
        loss, terms = columns.loss_and_terms(shared[:1], standardised, **weights)
        gradients = None
        if with_gradients:
            gradients = columns.finish(toward, standardised, shared[1:], factor=float(ranks.size), rows=rows)
    return CrossCorrelation(loss, terms, gradients)


def cheaper_algorithm(N: int, D: int, num_ranks: int, device_type: str) -> str:
    """gram or direct: of products of N D numbers, gram has 4 N a rank and direct (ranks + 2) D.

    On a CPU alone, half of each Gram matrix is copied from the other half, and gram costs less than its operations say:
    the bound was measured (`tools/bench.py loss`).
    """
    work_of_gram = 3.4 if device_type == "cpu" and num_ranks == 1 else 4.0
    return "gram" if work_of_gram * N < (num_ranks + 2) * D else "direct"


def _columns_of(device: torch.device, precision: torch.dtype) -> ModuleType:
    if device.type != "cuda" or precision == torch.float64:
        return torch_columns
    from fastfgssl.kernels.cross_correlation import columns_triton

    return columns_triton
