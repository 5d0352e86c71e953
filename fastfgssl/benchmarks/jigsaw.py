"""Suite `jigsaw`: the views fan-out, its resize and blur, and the jigsaw of tensors, against what they replace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from fastfgssl.benchmarks.measure import CheckFailed, Record, compare, require_close
from fastfgssl.environment import available_cores
from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.blur.reference import blur_reference
from fastfgssl.kernels.build import load_plugin
from fastfgssl.kernels.fan_out.reference import FLIP, GRAYSCALE, SOLARISE, fan_out_reference
from fastfgssl.kernels.jigsaw.reference import jigsaw_reference
from fastfgssl.kernels.resize.reference import resize_reference

BATCH, SIDE, GRIDS = 256, 224, (16, 8, 4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RUNS = 7
_PASSES = 4  # of the operator in one call


def run(device: torch.device) -> Iterator[Record]:
    """Five views by the operator, three puzzles of tensors, and on the CPU the resize and the blur before them."""
    yield from _fan_out(device)
    yield _puzzles(device)
    if device.type == "cpu":  # a GPU resizes and blurs by DALI's own operators
        yield _resize(device)
        yield from _blur(device)


def _fan_out(device: torch.device) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    puzzle, anchor = rng.integers(0, 256, (2, BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    arguments = {
        # as often as the `paper` preset asks for them
        "puzzle_flags": FLIP * (rng.random(BATCH) < 0.5) + GRAYSCALE * (rng.random(BATCH) < 0.2),
        "anchor_flags": GRAYSCALE * (rng.random(BATCH) < 0.2) + SOLARISE * (rng.random(BATCH) < 0.2),
        "permutations": [rng.permuted(np.tile(np.arange(g * g), (BATCH, 1)), axis=1) for g in GRIDS],
    }
    graph = _fan_out_graph(device, puzzle, anchor, **arguments)
    sources = [torch.from_numpy(images).to(device) for images in (puzzle, anchor)]
    plain_arguments = {name: torch.from_numpy(arguments[name]).to(device) for name in ("puzzle_flags", "anchor_flags")}
    orders = [torch.from_numpy(order).to(device) for order in arguments["permutations"]]

    expected = fan_out_reference(puzzle, anchor, **arguments, grids=GRIDS, mean=MEAN, std=STD, dtype=np.float16)
    expected = (expected.anchor, expected.puzzle_view, *expected.puzzles)
    for ours, plain, truth in zip(
        graph.run(), plain_fan_out(*sources, **plain_arguments, orders=orders), expected, strict=True
    ):
        if not np.array_equal(np.array(ours.as_cpu().as_tensor()), truth):
            raise CheckFailed("a view is not that of the reference")
        require_close("plain fan-out", plain.permute(0, 2, 3, 1).cpu(), torch.from_numpy(truth), tolerance=2e-3)

    turns = [torch.rand(BATCH, g * g).argsort(dim=1) for g in GRIDS]
    view = torch.from_numpy(expected[1]).to(device).permute(0, 3, 1, 2)
    for order, grid in zip(turns, GRIDS, strict=True):
        truth = jigsaw_reference(view, _swapped(order).to(device), grid)
        require_close("published loop", published_loop(view, order, grid), truth, tolerance=0)

    moved = puzzle.nbytes + anchor.nbytes + sum(view.nbytes for view in expected)
    baselines = {
        "vectorised PyTorch": lambda: plain_fan_out(*sources, **plain_arguments, orders=orders),
        "published loop, puzzles only": lambda: [
            published_loop(view, order, grid) for order, grid in zip(turns, GRIDS, strict=True)
        ],
    }
    for name, baseline in baselines.items():
        yield compare(
            "jigsaw",
            f"fan-out, {2 + len(GRIDS)} views of {SIDE} px, batch {BATCH}, float16",
            ours=lambda: [graph.run() for _ in range(_PASSES)],
            baseline=(name, lambda baseline=baseline: [baseline() for _ in range(_PASSES)]),
            limit=("copy of the same bytes", _copies(moved, device, times=_PASSES)),
            items=_PASSES * BATCH,
            unit="images/s",
            runs=RUNS,
            device=device,
        )


def _fan_out_graph(device: torch.device, puzzle, anchor, *, puzzle_flags, anchor_flags, permutations):
    """The operator alone: its inputs are on the device and are not copied."""
    load_plugin()
    on_gpu = device.type == "cuda"
    tiles = np.concatenate(permutations, axis=1).astype(np.int32)
    small = [values.astype(np.int32) for values in (puzzle_flags, anchor_flags)] + [tiles]
    images = [list(torch.from_numpy(batch).to(device)) if on_gpu else list(batch) for batch in (puzzle, anchor)]

    # a queue of one: the next batch would be made while the clock stands
    @pipeline_def(
        batch_size=BATCH,
        num_threads=available_cores(),
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def graph():
        place = "gpu" if on_gpu else "cpu"
        sources = [
            fn.external_source(source=_always(batch), batch=True, no_copy=True, layout="HWC", device=place)
            for batch in images
        ]
        flags = [fn.external_source(source=_always(values), batch=True) for values in small]
        return tuple(
            fn.fastfgssl_views(
                *sources,
                puzzle_flags=flags[0],
                anchor_flags=flags[1],
                permutations=flags[2],
                grids=list(GRIDS),
                mean=list(MEAN),
                std=list(STD),
                dtype=types.FLOAT16,
            )
        )

    pipeline = graph()
    pipeline.build()
    return pipeline


def _always(batch):
    return lambda: batch


def plain_fan_out(puzzle, anchor, *, puzzle_flags, anchor_flags, orders) -> list[torch.Tensor]:
    """The same views as a competent user makes them of a batch of tensors: uint8 [B, S, S, 3] in, float16 out."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=puzzle.device)
    mean, std = (torch.tensor(values, device=puzzle.device) for values in (MEAN, STD))
    views = []
    for images, flags in ((anchor, anchor_flags), (puzzle, puzzle_flags)):
        images = images.clone()
        flip, gray, solarise = ((flags & bit).nonzero().flatten() for bit in (FLIP, GRAYSCALE, SOLARISE))
        images[flip] = images[flip].flip(2)
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


def _puzzles(device: torch.device) -> Record:
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=device, generator=generator).half()
    images = images.contiguous(memory_format=torch.channels_last)
    orders = [torch.rand(BATCH, g * g, device=device, generator=generator).argsort(dim=1) for g in GRIDS]

    def all_puzzles(version):
        return [version(images, order, grid) for order, grid in zip(orders, GRIDS, strict=True)]

    truth = all_puzzles(jigsaw_reference)
    for version in (jigsaw, _indexed_jigsaw):
        for grid, puzzle, true in zip(GRIDS, all_puzzles(version), truth, strict=True):
            require_close(f"puzzles {grid}", puzzle, true, tolerance=0)
    moved = 2 * len(GRIDS) * images.numel() * images.element_size()
    return compare(
        "jigsaw",
        f"{len(GRIDS)} puzzles of tensors, {SIDE} px, batch {BATCH}, float16",
        ours=lambda: all_puzzles(jigsaw),
        baseline=("indexing of tiles", lambda: all_puzzles(_indexed_jigsaw)),
        limit=("copy of the same bytes", _copies(moved, device)),
        items=BATCH,
        unit="images/s",
        runs=RUNS,
        device=device,
    )


def _image_graph(images: list[np.ndarray], make):
    """A CPU graph that is `make(images)`."""

    @pipeline_def(
        batch_size=len(images),
        num_threads=available_cores(),
        device_id=None,
        prefetch_queue_depth=1,  # as in `_fan_out_graph`
        exec_dynamic=True,
    )
    def graph():
        return make(fn.external_source(source=_always(images), batch=True, no_copy=True, layout="HWC"))

    pipeline = graph()
    pipeline.build()
    return lambda: [pipeline.run() for _ in range(_PASSES)]


def _resize(device: torch.device) -> Record:
    load_plugin()
    count, height, width = 64, 450, 600
    images = list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))
    ours = _image_graph(images, lambda x: fn.fastfgssl_resize(x, size=SIDE))
    stock = _image_graph(images, lambda x: fn.resize(x, resize_x=SIDE, resize_y=SIDE, antialias=True))
    exact = resize_reference(images[0], SIDE, interpolation="linear")
    if not np.abs(np.array(ours()[0][0].at(0)) - exact).max() < 1:
        raise CheckFailed("the resize is more than a grey level from float64")
    return compare(
        "jigsaw",
        f"resize {width} x {height} to {SIDE} px, linear, antialiased",
        ours=ours,
        baseline=("DALI's stock resize", stock),
        limit=("copy of the decoded images", _copies(2 * count * images[0].nbytes, device, times=_PASSES)),
        items=_PASSES * count,
        unit="images/s",
        runs=RUNS,
        device=device,
    )


def _blur(device: torch.device) -> Iterator[Record]:
    """Blur and two views: the operator blurs as it makes them, the baseline blurs before it."""
    images = list(np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3), dtype=np.uint8))
    views = {"std": 1 / 255, "dtype": types.FLOAT16}
    unblurred = _image_graph(images, lambda x: tuple(fn.fastfgssl_views(x, x, **views)))
    for sigma in (0.5, 2.0):
        blurs = {"puzzle_sigma": sigma, "anchor_sigma": sigma}
        ours = _image_graph(images, lambda x, blurs=blurs: tuple(fn.fastfgssl_views(x, x, **blurs, **views)))

        def stock_views(x, sigma=sigma):
            blurred = fn.gaussian_blur(x, sigma=sigma), fn.gaussian_blur(x, sigma=sigma)
            return tuple(fn.fastfgssl_views(*blurred, **views))

        blurred = np.array(ours()[0][0].at(0), dtype=np.float64).round()
        if not np.abs(blurred - blur_reference(images[0], sigma)).max() < 1:
            raise CheckFailed("the blur is more than a grey level from float64")
        yield compare(
            "jigsaw",
            f"2 views of {SIDE} px with a blur of sigma {sigma:g}, float16",
            ours=ours,
            baseline=("DALI's stock blur first", _image_graph(images, stock_views)),
            limit=("the views without a blur", unblurred),
            items=_PASSES * len(images),
            unit="images/s",
            runs=RUNS,
            device=device,
        )


def _copies(moved: int, device: torch.device, times: int = 1):
    """Copies that read and write `moved` bytes together, `times` over."""
    source, target = (torch.ones(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: [target.copy_(source) for _ in range(times)]
