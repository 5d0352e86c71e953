"""Suite `input`: the whole DALI graph from JPEG to views, against Pillow DataLoaders and against decoding alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.tensors import TensorListCPU, TensorListGPU
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from fastfgssl.archive.manifest import Archive
from fastfgssl.benchmarks import read_ahead, reading
from fastfgssl.benchmarks.archive import open_archive
from fastfgssl.benchmarks.jigsaw import published_loop
from fastfgssl.benchmarks.measure import CheckFailed, Record, Settings, Suite
from fastfgssl.config.schema import IMAGENET_MEAN as MEAN
from fastfgssl.config.schema import IMAGENET_STD as STD
from fastfgssl.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import Encoded, GraphSpec, build_decoder
from fastfgssl.data.graph import GraphInput, build_graph, view_flags
from fastfgssl.data.order import Slots
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import ViewParams, draw_view_params
from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.blur.reference import blur_reference
from fastfgssl.kernels.fan_out.reference import fan_out_reference
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import available_cores
from fastfgssl.runtime.errors import UserError

BATCH, SIDE, GRIDS = 64, 224, (16, 8, 4)
BATCHES = {"cpu": 16, "cuda": 16, "rehearsal": 1}
"""Batches in one call."""
SHORT_SIDE = 256


class PillowViews(Dataset):
    """The same five views as a competent user makes them in a Dataset: Pillow, torchvision, one indexing a puzzle.

    published_loop: the puzzles by the published code's loop over tiles instead.
    """

    def __init__(self, files: list[np.ndarray], length: int, *, published_loop: bool = False) -> None:
        self._files, self._length, self._published_loop = files, length, published_loop

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        rng = np.random.default_rng(index)
        image = Image.open(io.BytesIO(self._files[index % len(self._files)].tobytes())).convert("RGB")
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        anchor = puzzle = image
        if rng.random() < 0.5:
            puzzle = ImageOps.mirror(puzzle)
        if rng.random() < 0.2:
            puzzle = ImageOps.grayscale(puzzle).convert("RGB")
        puzzle = puzzle.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
        if rng.random() < 0.2:
            anchor = ImageOps.grayscale(anchor).convert("RGB")
        if rng.random() < 0.1:
            anchor = anchor.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
        if rng.random() < 0.2:
            anchor = ImageOps.solarize(anchor, 128)
        anchor, puzzle = (
            functional.normalize(functional.to_dtype(functional.to_image(view), torch.float32, scale=True), MEAN, STD)
            for view in (anchor, puzzle)
        )
        orders = [torch.from_numpy(rng.permutation(grid * grid))[None] for grid in GRIDS]
        cut = published_loop if self._published_loop else jigsaw
        puzzles = [cut(puzzle[None], order, grid)[0] for order, grid in zip(orders, GRIDS, strict=True)]
        return [anchor, puzzle, *puzzles]


def run(settings: Settings) -> Iterator[Record]:
    """The `paper` preset at 224 px from JPEG files and from shards, and what comes before the decoder."""
    suite = Suite("input", settings)
    with ExitStack() as opened:
        archive, small = settings.archive, None
        if archive is None:
            archive, small = (
                opened.enter_context(open_archive(None, count=16, short_side=side)) for side in (None, SHORT_SIDE)
            )
        yield from _graph(archive, small, suite)
        yield from reading.records(archive, suite)
        yield read_ahead.record(small or archive, replace(_spec(suite.device), batch_size=8), suite)


def _graph(archive: Path, small: Path | None, suite: Suite) -> Iterator[Record]:
    """The whole graph on the images of `archive`, and on those of `small` against the files of `archive`."""
    opened = Archive.open(archive)
    if opened.bit_depth.get(16):
        raise UserError(
            f"--real {archive}: has images of 16 bits, which the Pillow baseline does not read; choose another"
        )
    reader = Reader(opened)
    ids = np.arange(min(16, opened.num_samples))
    files = [np.array(file) for file in reader.read(ids)]
    case = f"paper preset, {SIDE} px, " + ("JPEG 600 x 450 quality 90" if small else "real images")
    spec = _spec(suite.device)
    threads = spec.threads
    graph, decoder = _pipelines(files, reader.picture_sizes(ids), spec)
    batches = BATCHES[suite.scale]
    images = batches * BATCH
    loaders = {
        loop: DataLoader(
            PillowViews(files, images, published_loop=loop),
            batch_size=BATCH,
            num_workers=threads,
            persistent_workers=True,
            # a fork would make every page of this process copy on write, at the cost of whoever writes next: us
            multiprocessing_context="forkserver",
        )
        for loop in (False, True)
    }
    # a graph works ahead: of the batches of a call, one is made while the clock stands
    compare = partial(suite.compare, items=images, unit="images/s", runs=5)
    limit = ("DALI decoding alone", lambda: [decoder.run() for _ in range(batches)])
    for loop, loader in loaders.items():
        yield compare(
            f"{case}, {threads} threads",
            ours=lambda: [graph.run() for _ in range(batches)],
            baseline=(
                f"Pillow DataLoader, {threads} workers" + (", published tile loop" if loop else ""),
                partial(list, loader),
            ),
            limit=limit,
        )
    turns = np.arange(BATCH) % len(files)
    batch = [files[turn] for turn in turns]
    yield suite.on_host().compare(
        f"checksums, {case}",
        ours=lambda: [reader.find_damage(ids[turns], batch) for _ in range(batches)],
        baseline=(f"the whole graph, {threads} threads", lambda: [graph.run() for _ in range(batches)]),
        limit=("copy of the bytes", lambda: [[file.copy() for file in batch] for _ in range(batches)]),
        items=images,
        unit="images/s",
        runs=15,
    )
    gray = [_in_gray(file) for file in files]
    one_graph, one_decoder = _pipelines(gray, reader.picture_sizes(ids), _spec(suite.device, in_channels=1))
    three_graph, _ = _pipelines(gray, reader.picture_sizes(ids), spec)
    yield compare(
        f"{case} in gray, one channel, {threads} threads",
        ours=lambda: [one_graph.run() for _ in range(batches)],
        baseline=("the same files in three channels", lambda: [three_graph.run() for _ in range(batches)]),
        limit=("DALI decoding to gray alone", lambda: [one_decoder.run() for _ in range(batches)]),
    )
    if small is not None:
        reader = Reader(Archive.open(small))
        small_graph, small_decoder = _pipelines(reader.read(ids), reader.picture_sizes(ids), spec)
        yield compare(
            f"paper preset, {SIDE} px, from shards of --short-side {SHORT_SIDE}, {threads} threads",
            ours=lambda: [small_graph.run() for _ in range(batches)],
            baseline=(f"Pillow DataLoader on the files, {threads} workers", lambda: list(loaders[False])),
            limit=("DALI decoding of the shards alone", lambda: [small_decoder.run() for _ in range(batches)]),
        )


def _in_gray(file: np.ndarray) -> np.ndarray:
    """The picture of an encoded one in gray, as JPEG of quality 90."""
    encoded = io.BytesIO()
    Image.open(io.BytesIO(file.tobytes())).convert("L").save(encoded, "JPEG", quality=90)
    return np.frombuffer(encoded.getvalue(), np.uint8)


def _spec(device: torch.device, in_channels: Literal[1, 3] = 3) -> GraphSpec:
    """Of two threads on a CPU, so that machines compare, and of all cores beside a GPU."""
    threads = 2 if device.type == "cpu" else available_cores()
    config = Config(
        data=DataConfig(path="none", image_size=SIDE, threads=threads),
        model=ModelConfig(in_channels=in_channels),
        train=TrainConfig(steps=1, batch_size=BATCH),
    )
    return GraphSpec.of(config, Needs(grids=GRIDS), World.alone(device), depth="8")


def _pipelines(files: list[np.ndarray], sizes: np.ndarray, spec: GraphSpec) -> tuple[Pipeline, Pipeline]:
    """The whole graph on batches of `files` again and again, checked, and its decoder alone."""
    turns = np.arange(BATCH) % len(files)
    batch, sizes, ids = [files[i] for i in turns], sizes[turns], np.arange(BATCH)

    def source(iteration: int) -> GraphInput:
        slots = Slots(ids + iteration * BATCH, np.zeros_like(ids))
        return GraphInput(
            Encoded(batch), draw_view_params(spec.preset, slots, seed=0, sizes=sizes, image_size=SIDE, grids=GRIDS)
        )

    graph = build_graph(source, spec)
    decoder = build_decoder(lambda: Encoded(batch), spec)
    for pipeline in (graph, decoder):
        pipeline.build()
    _check(graph.run(), batch, source(0)[1], spec)
    return graph, decoder


def _check(
    outputs: Iterable[TensorListCPU | TensorListGPU], files: list[np.ndarray], params: ViewParams, spec: GraphSpec
) -> None:
    """The graph's batch is what Pillow's decoder and resize, a blur in float64 and the fan-out's reference make."""
    sources: dict[str, list[np.ndarray]] = {"puzzle": [], "anchor": []}
    for i, file in enumerate(files):
        decoded = Image.open(io.BytesIO(file.tobytes())).convert("RGB" if spec.channels == 3 else "L")
        image = np.array(decoded.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).reshape(SIDE, SIDE, spec.channels)
        for name, images in sources.items():
            sigma = getattr(params, name).sigma[i]
            images.append(np.rint(blur_reference(image, sigma)).astype(np.uint8) if sigma > 0 else image)
    expected = fan_out_reference(
        *(np.stack(images) for images in sources.values()),
        puzzle_flags=view_flags(params.puzzle),
        anchor_flags=view_flags(params.anchor),
        permutations=params.permutations,
        grids=GRIDS,
        mean=spec.mean,
        std=spec.std,
    )
    for ours, truth in zip(outputs, (expected.anchor, expected.puzzle_view, *expected.puzzles), strict=True):
        pixels = np.array(ours.as_cpu().as_tensor(), dtype=np.float32)
        levels = np.abs(pixels - truth) * np.array(spec.std) * 255
        # decoders differ by a level; at the threshold of solarise that turns a few pixels over
        if pixels.shape != truth.shape or levels.mean() > 1 or (levels > 4).mean() > 0.01:
            raise CheckFailed(f"views differ from their reference by {levels.mean():.2f} grey levels on average")
