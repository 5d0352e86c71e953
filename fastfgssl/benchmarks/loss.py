"""Suite `loss`: forward and backward of the cross-correlation loss, against its plain direct form under autograd.

On a GPU also its steps over columns by themselves, with other ways to cut rows and columns into programs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch

from fastfgssl.benchmarks.measure import (
    Record,
    Settings,
    Suite,
    describe_device,
    host_seconds,
    interleaved,
    memory_of_call,
    replayed,
    require_close,
)
from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise
from fastfgssl.loss import cross_correlation_loss
from fastfgssl.runtime.versions import versions

SHAPES = {
    "cpu": ((200, 512), (256, 2048), (256, 8192)),
    "cuda": ((200, 512), (256, 8192), (2048, 8192), (4096, 2048)),
    "rehearsal": ((20, 50),),
}
CHOICES = {  # around the N / D where gram and direct cost the same
    "cpu": ((200, 512), (512, 1024), (768, 1024), (960, 1024), (1024, 1024), (1536, 1024)),
    "cuda": ((200, 512), (1024, 2048), (1536, 2048), (2048, 2048), (4096, 2048), (2048, 8192)),
    "rehearsal": ((20, 24),),
}
# settings of the Triton steps that are compared with the standing ones
_VARIANTS: dict[str, dict[str, int]] = {
    "as_it_stands": {},
    "autotuned": {"AUTOTUNE": True},
    "1_program_an_sm": {"PROGRAMS_PER_SM": 1},
    "2_programs_an_sm": {"PROGRAMS_PER_SM": 2},
    "8_programs_an_sm": {"PROGRAMS_PER_SM": 8},
    "rows_not_cut": {"PROGRAMS_PER_SM": 0},
}
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def run(settings: Settings) -> Iterator[Record]:
    """Speed against plain PyTorch, on a GPU with TF32 products and its peak memory; and what `auto` should choose."""
    suite, device = Suite("loss", settings), settings.device
    on_gpu = device.type == "cuda"
    for N, D in SHAPES[settings.scale]:
        for precision in ("float32", "bfloat16") if on_gpu else ("float32",):
            yield _against_plain(N, D, precision, suite)
        if on_gpu:
            yield _memory(N, D, device)
    for N, D in CHOICES[settings.scale]:
        yield _choice(N, D, suite)
    if on_gpu:
        for N, D in SHAPES[settings.scale]:
            yield _columns(N, D, suite)


def _embeddings(N: int, D: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    common, *noise = (torch.randn(N, D, device=device, generator=generator) for _ in range(3))
    z1, z2 = ((common + 0.5 * own).requires_grad_() for own in noise)
    return z1, z2


def _both(loss: Callable[..., torch.Tensor], z1: torch.Tensor, z2: torch.Tensor, **options: str) -> list[torch.Tensor]:
    """Forward and backward."""
    value = loss(z1, z2, **options)
    return [value, *torch.autograd.grad(value, (z1, z2))]


def _plain(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    return cross_correlation_loss_reference(standardise(z1), standardise(z2), lambd=0.0051, form="barlow")


def _require_right(z1: torch.Tensor, z2: torch.Tensor, **options: str) -> None:
    """Checks ours against the plain loss; before TF32 is allowed, which would make that the less exact."""
    tolerance = _TOLERANCE[options.get("precision", "float32")]
    case = " x ".join(map(str, z1.shape))
    for name, got, want in zip(
        ("loss", "gradient 1", "gradient 2"),
        _both(cross_correlation_loss, z1, z2, **options),
        _both(_plain, z1, z2),
        strict=True,
    ):
        require_close(f"loss {case}, {options}, {name}", got, want, tolerance=tolerance)


def _against_plain(N: int, D: int, precision: str, suite: Suite) -> Record:
    device = suite.device
    z1, z2 = _embeddings(N, D, device)
    _require_right(z1, z2, precision=precision)
    dtype, on_gpu = getattr(torch, precision), device.type == "cuda"

    @torch.no_grad()
    def products() -> None:
        """Four products of 2 N^2 D operations (gram) or three of 2 N D^2 (direct), whichever are fewer."""
        a, b = z1.to(dtype), z2.to(dtype)
        if 4 * N < 3 * D:
            _ = (a @ a.T) @ b, (b @ b.T) @ a
        else:
            corr = a.T @ b
            _ = b @ corr.T, a @ corr

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        cases = {
            "ours": lambda: _both(cross_correlation_loss, z1, z2, precision=precision),
            "plain": lambda: _both(_plain, z1, z2),
        }
        # a training's host is steps ahead of the device: what counts there is what the device takes
        launching = {
            f"seconds_of_the_host_{name}": host_seconds(case, device) for name, case in cases.items() if on_gpu
        }
        return suite.compare(
            f"forward + backward, N {N}, D {D}" + (f", {precision}, as a CUDA graph" if on_gpu else ""),
            ours=replayed(cases["ours"], device),
            baseline=("plain PyTorch, direct form", replayed(cases["plain"], device)),
            limit=("matrix products alone, none halved", replayed(products, device)),
            items=1,
            unit="calls/s",
            runs=20 if on_gpu or N * D < 10**6 else 5,
            details=launching,
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _choice(N: int, D: int, suite: Suite) -> Record:
    """`auto` beside both: neither the ratio nor the fraction may be below 0.9."""
    z1, z2 = _embeddings(N, D, suite.device)
    for algorithm in ("gram", "direct"):
        _require_right(z1, z2, algorithm=algorithm)
    calls = {
        algorithm: replayed(partial(_both, cross_correlation_loss, z1, z2, algorithm=algorithm), suite.device)
        for algorithm in ("auto", "gram", "direct")
    }
    return suite.compare(
        f"the choice of auto, N {N}, D {D}",
        ours=calls["auto"],
        baseline=("gram", calls["gram"]),
        limit=("direct", calls["direct"]),
        items=1,
        unit="calls/s",
        runs=20,
    )


def _memory(N: int, D: int, device: torch.device) -> Record:
    """The most memory that a call takes beside its embeddings, against 3 (N^2 + N D) numbers."""
    z1, z2 = _embeddings(N, D, device)

    def numbers(loss: Callable[..., torch.Tensor]) -> float:
        _both(loss, z1, z2)  # what libraries keep for themselves is not the loss's
        return memory_of_call(lambda: _both(loss, z1, z2), device) / 4

    ours, plain, limit = numbers(cross_correlation_loss), numbers(_plain), 3 * (N * N + N * D)
    return Record(
        suite="loss",
        case=f"peak extra memory, N {N}, D {D}",
        value=ours,
        unit="float32 numbers",
        baseline="plain PyTorch, direct form",
        baseline_value=plain,
        ratio=plain / ours,
        limit="3 (N^2 + N D), not to be passed",
        limit_value=limit,
        fraction_of_limit=ours / limit,
        runs=1,
        spread=0.0,
        device=describe_device(device),
        versions=versions(),
    )


def _columns(N: int, D: int, suite: Suite) -> Record:
    """What a call does to columns, without its matrix products: as it stands beside tiles that Triton has measured."""
    from fastfgssl.kernels.cross_correlation import columns_triton

    device = suite.device
    z1, z2 = (z.detach() for z in _embeddings(N, D, device))
    noise = tuple(torch.randn_like(z) for z in (z1, z2))  # a gradient along the embeddings would cancel
    toward, squared_norm = (torch.zeros_like(z1), torch.zeros_like(z2)), torch.zeros(1, device=device)
    out = torch.empty_like(z1), torch.empty_like(z2)

    def steps(settings: dict[str, int]) -> None:
        """Gradients of products that are in `toward`, in their place."""
        standing = {name: getattr(columns_triton, name) for name in settings}
        for name, value in settings.items():
            setattr(columns_triton, name, value)
        try:
            standardised = columns_triton.standardise(
                z1, z2, torch.bfloat16, on_weight=1.0, off_weight=0.0051, diagonal_in_product=True
            )
            rows = slice(0, N)
            shared = columns_triton.contract(squared_norm, toward, standardised, scale=0.1, shifted=True, rows=rows)
            columns_triton.finish(toward, standardised, shared[1:], factor=1.0, rows=rows)
        finally:
            for name, value in standing.items():
                setattr(columns_triton, name, value)

    def copies() -> None:
        for source, target in zip((z1, z2), out, strict=True):
            target.copy_(source)

    right = None
    for name, settings in _VARIANTS.items():
        for product, values in zip(toward, noise, strict=True):
            product.copy_(values)
        steps(settings)
        right = right or [gradient.clone() for gradient in toward]
        for gradient, want in zip(toward, right, strict=True):
            require_close(f"loss, steps over columns, {N} x {D}, {name}", gradient, want, tolerance=1e-5)

    cases = {name: replayed(partial(steps, settings), device) for name, settings in _VARIANTS.items()}
    seconds = interleaved(cases | {"limit": replayed(copies, device)}, runs=20, device=device)
    return suite.record(
        f"steps over columns, N {N}, D {D}",
        seconds | {"ours": seconds["as_it_stands"], "baseline": seconds["autotuned"]},
        baseline="tiles that Triton has measured",
        limit="embeddings read and gradients written, once",
        unit="calls/s",
        details={f"seconds_{name}": statistics.median(seconds[name]) for name in seconds},
    )
