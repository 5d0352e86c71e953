"""The part of suite `jigsaw` that runs in DALI's graphs: the fan-out operator, and on the CPU its resize and blur."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from fastfgssl.benchmarks.measure import CheckFailed, Record, Suite, copies
from fastfgssl.kernels.blur.reference import blur_reference
from fastfgssl.kernels.build import load_plugin
from fastfgssl.kernels.resize.reference import resize_reference
from fastfgssl.runtime.environment import available_cores

RUNS = 7


def fan_out_graph(
    device: torch.device,
    puzzle: np.ndarray,
    anchor: np.ndarray,
    *,
    puzzle_flags: np.ndarray,
    anchor_flags: np.ndarray,
    permutations: Sequence[np.ndarray],
    grids: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[], Any]:
    """A call of the operator alone: its inputs are on the device and are not copied."""
    load_plugin()
    on_gpu = device.type == "cuda"
    tiles = np.concatenate(permutations, axis=1).astype(np.int32)
    small = [values.astype(np.int32) for values in (puzzle_flags, anchor_flags)] + [tiles]
    # on a GPU as one tensor: handed over one by one, 512 of them would take longer than the operator
    images = [torch.from_numpy(batch).to(device) if on_gpu else list(batch) for batch in (puzzle, anchor)]

    # a queue of one: the next batch would be made while the clock stands
    @pipeline_def(
        batch_size=len(puzzle),
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
                grids=list(grids),
                mean=list(mean),
                std=list(std),
                dtype=types.FLOAT16,
            )
        )

    pipeline = graph()
    pipeline.build()
    return pipeline.run


def _always(batch):
    return lambda: batch


def _image_graph(
    images: list[np.ndarray], make: Callable[[DataNode], DataNode | tuple[DataNode, ...]], passes: int
) -> Callable[[], list]:
    """Calls of a CPU graph that is `make(images)`, `passes` together."""

    @pipeline_def(
        batch_size=len(images),
        num_threads=available_cores(),
        device_id=None,
        prefetch_queue_depth=1,  # as in `fan_out_graph`
        exec_dynamic=True,
    )
    def graph():
        return make(fn.external_source(source=_always(images), batch=True, no_copy=True, layout="HWC"))

    pipeline = graph()
    pipeline.build()
    return lambda: [pipeline.run() for _ in range(passes)]


def resize(suite: Suite, side: int, passes: int) -> Record:
    """Ours against DALI's stock operator."""
    load_plugin()
    count, height, width = 64, 450, 600
    images = list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))
    ours = _image_graph(images, lambda x: fn.fastfgssl_resize(x, size=side), passes)
    stock = _image_graph(images, lambda x: fn.resize(x, resize_x=side, resize_y=side, antialias=True), passes)
    exact = resize_reference(images[0], side, interpolation="linear")
    if not np.abs(np.array(ours()[0][0].at(0)) - exact).max() < 1:
        raise CheckFailed("the resize is more than a grey level from float64")
    return suite.compare(
        f"resize {width} x {height} to {side} px, linear, antialiased",
        ours=ours,
        baseline=("DALI's stock resize", stock),
        limit=("copy of the decoded images", copies(2 * count * images[0].nbytes, suite.device, times=passes)),
        items=passes * count,
        unit="images/s",
        runs=RUNS,
    )


def blur(suite: Suite, side: int, passes: int) -> Iterator[Record]:
    """Blur and two views: the operator blurs as it makes them, the baseline blurs before it."""
    images = list(np.random.default_rng(0).integers(0, 256, (64, side, side, 3), dtype=np.uint8))
    views = {"std": 1 / 255, "dtype": types.FLOAT16}
    unblurred = _image_graph(images, lambda x: tuple(fn.fastfgssl_views(x, x, **views)), passes)
    for sigma in (0.5, 2.0):
        blurs = {"puzzle_sigma": sigma, "anchor_sigma": sigma}

        def our_views(x, blurs=blurs):
            return tuple(fn.fastfgssl_views(x, x, **blurs, **views))

        def stock_views(x, sigma=sigma):
            blurred = fn.gaussian_blur(x, sigma=sigma), fn.gaussian_blur(x, sigma=sigma)
            return tuple(fn.fastfgssl_views(*blurred, **views))

        ours = _image_graph(images, our_views, passes)
        blurred = np.array(ours()[0][0].at(0), dtype=np.float64).round()
        if not np.abs(blurred - blur_reference(images[0], sigma)).max() < 1:
            raise CheckFailed("the blur is more than a grey level from float64")
        yield suite.compare(
            f"2 views of {side} px with a blur of sigma {sigma:g}, float16",
            ours=ours,
            baseline=("DALI's stock blur first", _image_graph(images, stock_views, passes)),
            limit=("the views without a blur", unblurred),
            items=passes * len(images),
            unit="images/s",
            runs=RUNS,
        )
