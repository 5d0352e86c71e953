"""Suite `jigsaw`: cutting a batch into puzzles, against the loop of tile copies that published code uses."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastfgssl.benchmarks.measure import Record, compare, require_close
from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.views.reference import jigsaw_reference

BATCH, SIDE, GRIDS = 64, 224, (16, 8, 4)


def tile_loop(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """The puzzle as published code makes it: one copy a tile and image."""
    side = images.shape[-1] // grid
    puzzle = torch.empty_like(images)
    for b, order in enumerate(permutation.tolist()):
        for target, source in enumerate(order):
            ty, tx, sy, sx = (side * place for place in (*divmod(target, grid), *divmod(source, grid)))
            puzzle[b, :, ty : ty + side, tx : tx + side] = images[b, :, sy : sy + side, sx : sx + side]
    return puzzle


def run(device: torch.device) -> Iterator[Record]:
    """Records of the three puzzles of a batch in float32; the limit is a copy of the same bytes."""
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=device, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    keys = [torch.rand(BATCH, grid * grid, device=device, generator=generator) for grid in GRIDS]
    permutations = [key.argsort(dim=1) for key in keys]

    def ours():
        return [jigsaw(images, permutation, grid) for permutation, grid in zip(permutations, GRIDS, strict=True)]

    def loop():
        return [tile_loop(images, permutation, grid) for permutation, grid in zip(permutations, GRIDS, strict=True)]

    for made in (ours, loop):
        for puzzle, permutation, grid in zip(made(), permutations, GRIDS, strict=True):
            require_close(f"puzzles {grid}", puzzle, jigsaw_reference(images, permutation, grid), tolerance=0)
    yield compare(
        "jigsaw",
        f"three puzzles of a batch of {BATCH}, {SIDE} px, float32",
        ours=ours,
        baseline=("loop of tile copies", loop),
        limit=("copies of the same bytes", lambda: [images.clone() for _ in GRIDS]),
        items=BATCH,
        unit="images/s",
        runs=7,
        device=device,
    )
