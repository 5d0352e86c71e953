"""Suite `jigsaw`: the views fan-out, its resize and blur, and the jigsaw of tensors, against what they replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypedDict

import numpy as np
import torch

from fastfgssl.benchmarks.measure import Record, Settings, Suite, copies, replayed, require_close
from fastfgssl.config.schema import IMAGENET_MEAN as MEAN
from fastfgssl.config.schema import IMAGENET_STD as STD
from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.fan_out.op import Views, fan_out
from fastfgssl.kernels.fan_out.reference import (
    FLIP,
    GRAYSCALE,
    SOLARISE,
    TRANSPOSE,
    VERTICAL_FLIP,
    fan_out_reference,
)
from fastfgssl.kernels.jigsaw.reference import jigsaw_reference

GRIDS = (16, 8, 4)
RUNS = 7


@dataclass(frozen=True)
class Sizes:
    batch: int
    side: int
    passes: int
    """Runs of an operator in one call."""


_FULL = Sizes(batch=256, side=224, passes=4)
SIZES = {"cpu": _FULL, "cuda": _FULL, "rehearsal": Sizes(batch=4, side=32, passes=1)}


class _Arguments(TypedDict):
    """Those of a fan-out on the host, beside its images."""

    puzzle_flags: np.ndarray
    anchor_flags: np.ndarray
    permutations: list[np.ndarray]
    grids: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def run(settings: Settings) -> Iterator[Record]:
    """Five views of tensors and by DALI's operator, three puzzles, and on the CPU resize and blur.

    Where DALI is not installed, what runs in its graphs is left out.
    """
    suite = Suite("jigsaw", settings)
    yield from _fan_out(suite)
    yield _puzzles(suite)
    if suite.device.type == "cpu" and _has_dali():  # a GPU resizes and blurs by DALI's own operators
        from fastfgssl.benchmarks import dali_operators

        side, passes = SIZES[suite.scale].side, SIZES[suite.scale].passes
        yield dali_operators.resize(suite, side, passes)
        yield from dali_operators.blur(suite, side, passes)


def _has_dali() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


@dataclass(frozen=True)
class _Case:
    """A batch of images, and how its views are made of it; both ways have been compared with the truth."""

    puzzle: np.ndarray
    anchor: np.ndarray
    arguments: _Arguments
    expected: list[torch.Tensor]
    """Anchor, puzzle view and puzzles, float16 [B, S, S, 3]."""
    of_tensors: Callable[..., Views]
    plain: Callable[[], list[torch.Tensor]]


def _make_case(suite: Suite, *, symmetries: bool) -> _Case:
    """symmetries: views in all of a square, alike often; else mirrored as often as the `paper` preset asks for it."""
    device, batch, side = suite.device, SIZES[suite.scale].batch, SIZES[suite.scale].side
    rng = np.random.default_rng(0)
    puzzle, anchor = rng.integers(0, 256, (2, batch, side, side, 3), dtype=np.uint8)

    def flags_of(probabilities: dict[int, float]) -> np.ndarray:
        flags = np.zeros(batch, np.int32)
        for bit, probability in probabilities.items():
            flags += bit * (rng.random(batch) < probability)
        return flags

    if symmetries:
        puzzle_flags, anchor_flags = (flags_of({FLIP: 0.5, VERTICAL_FLIP: 0.5, TRANSPOSE: 0.5}) for _ in range(2))
    else:
        puzzle_flags, anchor_flags = flags_of({FLIP: 0.5, GRAYSCALE: 0.2}), flags_of({GRAYSCALE: 0.2, SOLARISE: 0.2})
    arguments: _Arguments = {
        "puzzle_flags": puzzle_flags,
        "anchor_flags": anchor_flags,
        "permutations": [rng.permuted(np.tile(np.arange(g * g), (batch, 1)), axis=1) for g in GRIDS],
        "grids": GRIDS,
        "mean": MEAN,
        "std": STD,
    }
    sources = [torch.from_numpy(images).to(device) for images in (puzzle, anchor)]
    flags = [torch.from_numpy(values).to(device) for values in (puzzle_flags, anchor_flags)]
    orders = [torch.from_numpy(order).to(device) for order in arguments["permutations"]]
    of_tensors = partial(
        fan_out,
        *sources,
        puzzle_flags=flags[0],
        anchor_flags=flags[1],
        permutations=orders,
        grids=GRIDS,
        mean=MEAN,
        std=STD,
    )
    plain = partial(plain_fan_out, *sources, puzzle_flags=flags[0], anchor_flags=flags[1], orders=orders)
    truth = fan_out_reference(puzzle, anchor, **arguments, dtype=np.float16)
    expected = [torch.from_numpy(view) for view in (truth.anchor, truth.puzzle_view, *truth.puzzles)]
    _require_views("fan-out of tensors", _flat(of_tensors()), expected, tolerance=0)
    _require_views("plain fan-out", plain(), expected, tolerance=2e-3)
    return _Case(puzzle, anchor, arguments, expected, of_tensors, plain)


def _flat(views: Views) -> list[torch.Tensor]:
    return [views.anchor, views.puzzle_view, *views.puzzles]


def _fan_out(suite: Suite) -> Iterator[Record]:
    device, sizes = suite.device, SIZES[suite.scale]
    batch, side = sizes.batch, sizes.side
    case = _make_case(suite, symmetries=False)
    kept = case.of_tensors()
    versions: dict[str, Callable[[], Any]] = {"of tensors": case.of_tensors}
    if device.type == "cpu":  # torch keeps a GPU's memory
        versions["of tensors into kept views"] = partial(case.of_tensors, out=kept)
    if _has_dali():
        from fastfgssl.benchmarks.dali_operators import fan_out_graph

        versions["as DALI's operator"] = graph = fan_out_graph(device, case.puzzle, case.anchor, **case.arguments)
        made = [torch.from_numpy(np.array(views.as_cpu().as_tensor())).permute(0, 3, 1, 2) for views in graph()]
        _require_views("DALI's fan-out", made, case.expected, tolerance=0)

    moved = case.puzzle.nbytes + case.anchor.nbytes + sum(view.nbytes for view in case.expected)
    name = f"{2 + len(GRIDS)} views of {side} px, batch {batch}, float16"
    compare = partial(
        suite.compare,
        limit=("copy of the same bytes", copies(moved, device, times=sizes.passes)),
        items=sizes.passes * batch,
        unit="images/s",
        runs=RUNS,
    )
    for version, ours in versions.items():
        calls = lambda ours=ours: [ours() for _ in range(sizes.passes)]  # noqa: E731 - binds the turn of the loop
        yield compare(
            f"fan-out {version}, {name}",
            ours=calls if "DALI" in version else replayed(calls, device),
            baseline=("vectorised PyTorch", lambda: [case.plain() for _ in range(sizes.passes)]),
        )
    turned = _make_case(suite, symmetries=True)
    yield compare(
        f"fan-out of tensors into kept views, turned and mirrored, {name}",
        ours=replayed(lambda: [turned.of_tensors(out=kept) for _ in range(sizes.passes)], device),
        baseline=("vectorised PyTorch", lambda: [turned.plain() for _ in range(sizes.passes)]),
    )
    if device.type == "cpu":  # on a GPU its 250,000 launches take seconds
        view = case.expected[1].permute(0, 3, 1, 2)
        turns = [torch.rand(batch, g * g).argsort(dim=1) for g in GRIDS]

        def loop() -> list[torch.Tensor]:
            return [published_loop(view, order, grid) for order, grid in zip(turns, GRIDS, strict=True)]

        for puzzles, order, grid in zip(loop(), turns, GRIDS, strict=True):
            require_close("published loop", puzzles, jigsaw_reference(view, _swapped(order), grid), tolerance=0)
        yield compare(
            f"fan-out of tensors, {name}",
            ours=lambda: [case.of_tensors() for _ in range(sizes.passes)],
            baseline=("published loop, puzzles only", lambda: [loop() for _ in range(sizes.passes)]),
        )


def _require_views(name: str, got: list[torch.Tensor], expected: list[torch.Tensor], *, tolerance: float) -> None:
    for view, truth in zip(got, expected, strict=True):
        require_close(name, view.permute(0, 2, 3, 1).cpu(), truth, tolerance=tolerance)


def plain_fan_out(
    puzzle: torch.Tensor,
    anchor: torch.Tensor,
    *,
    puzzle_flags: torch.Tensor,
    anchor_flags: torch.Tensor,
    orders: list[torch.Tensor],
) -> list[torch.Tensor]:
    """The same views as a competent user makes them of a batch of tensors: uint8 [B, S, S, 3] in, float16 out."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=puzzle.device)
    mean, std = (torch.tensor(values, device=puzzle.device) for values in (MEAN, STD))
    views = []
    for images, flags in ((anchor, anchor_flags), (puzzle, puzzle_flags)):
        images = images.clone()
        transpose, flip, vertical, gray, solarise = (
            (flags & bit).nonzero().flatten() for bit in (TRANSPOSE, FLIP, VERTICAL_FLIP, GRAYSCALE, SOLARISE)
        )
        images[transpose] = images[transpose].transpose(1, 2)
        images[flip] = images[flip].flip(2)
        images[vertical] = images[vertical].flip(1)
        images[gray] = (images[gray].float() @ weights)[..., None].round().to(torch.uint8).expand_as(images[gray])
        images[solarise] = torch.where(images[solarise] > 127, 255 - images[solarise], images[solarise])
        views.append(((images.float() / 255 - mean) / std).half().permute(0, 3, 1, 2))
    return views + [_indexed_jigsaw(views[1], order, grid) for order, grid in zip(orders, GRIDS, strict=True)]


def _indexed_jigsaw(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """A puzzle by one advanced indexing of tiles."""
    B, C, H, W = images.shape
    tiles = images.reshape(B, C, grid, H // grid, grid, W // grid).permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
    shuffled = tiles[torch.arange(B, device=images.device)[:, None], permutation].unflatten(1, (grid, grid))
    return shuffled.permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)


def published_loop(images: torch.Tensor, orders: torch.Tensor, grid: int) -> torch.Tensor:
    """A puzzle as the published code makes it: for each image, the first tile is swapped with each tile in turn.

    orders: int64 [B, grid * grid], the turns.
    """
    side = images.shape[-1] // grid
    puzzles = images.clone()
    for puzzle, order in zip(puzzles, orders.tolist(), strict=True):
        for tile in order:
            y, x = (side * place for place in divmod(tile, grid))
            first = puzzle[:, :side, :side].clone()
            puzzle[:, :side, :side] = puzzle[:, y : y + side, x : x + side].clone()
            puzzle[:, y : y + side, x : x + side] = first
    return puzzles


def _swapped(orders: torch.Tensor) -> torch.Tensor:
    """The permutations that those swaps amount to."""
    permutations = torch.arange(orders.shape[1]).repeat(len(orders), 1)
    for permutation, order in zip(permutations, orders.tolist(), strict=True):
        for tile in order:
            permutation[[0, tile]] = permutation[[tile, 0]]
    return permutations


def _puzzles(suite: Suite) -> Record:
    device, batch, side = suite.device, SIZES[suite.scale].batch, SIZES[suite.scale].side
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(batch, 3, side, side, device=device, generator=generator).half()
    images = images.contiguous(memory_format=torch.channels_last)
    orders = [torch.rand(batch, g * g, device=device, generator=generator).argsort(dim=1) for g in GRIDS]

    def all_puzzles(version: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> list[torch.Tensor]:
        return [version(images, order, grid) for order, grid in zip(orders, GRIDS, strict=True)]

    truth = all_puzzles(jigsaw_reference)
    for version in (jigsaw, _indexed_jigsaw):
        for grid, puzzle, true in zip(GRIDS, all_puzzles(version), truth, strict=True):
            require_close(f"puzzles {grid}", puzzle, true, tolerance=0)
    moved = 2 * len(GRIDS) * images.numel() * images.element_size()
    return suite.compare(
        f"{len(GRIDS)} puzzles of tensors, {side} px, batch {batch}, float16",
        ours=replayed(lambda: all_puzzles(jigsaw), device),
        baseline=("indexing of tiles", replayed(lambda: all_puzzles(_indexed_jigsaw), device)),
        limit=("copy of the same bytes", copies(moved, device)),
        items=batch,
        unit="images/s",
        runs=RUNS,
    )
