"""Times parts of the trainer with the user's archive and configuration: reader, decoder, views, graph, step, all.

A rate is taken in blocks, and the blocks of what is compared take turns, so that a slow minute of the machine slows all
alike. Only one DALI graph exists at a time: another, even idle, would fill its queue on the same cores.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.data.decode import Encoded, GraphSpec, build_decoder, depth_of
from fastfgssl.data.graph import GraphInput, build_graph, build_views
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Slots
from fastfgssl.data.presets import Preset
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import ViewParams, draw_view_params
from fastfgssl.runtime.distributed import World
from fastfgssl.training.metrics import Clock, synchronise
from fastfgssl.training.step import TrainingStep

BLOCKS = 3
UNREPEATED = 0.25  # taken for the noise of what was timed once
_KEPT = 4  # batches that are used again and again: their bytes are in memory, the disk is timed on its own
_ENDLESS = 2**62


class Rate(NamedTuple):
    """Images a second of one rank."""

    value: float
    noise: float = 0.0
    """Half the distance between the slowest and the fastest block, over `value`."""
    blocks: tuple[float, ...] = ()
    """What the median is of, in the order of turns."""

    @property
    def seconds(self) -> float:
        """Per image."""
        return 1 / self.value

    def over(self, before: Rate) -> Rate:
        """This rate as a multiple of `before`: turn by turn where both were measured in turns, so drift cancels."""
        if self.blocks and len(self.blocks) == len(before.blocks):
            return rate_of([after / now for after, now in zip(self.blocks, before.blocks, strict=True)])
        return Rate(self.value / before.value, self.noise + before.noise)


def rate_of(blocks: Sequence[float]) -> Rate:
    """The median of what blocks found, and how far they are apart."""
    middle = statistics.median(blocks)
    return Rate(middle, (max(blocks) - min(blocks)) / 2 / middle, tuple(blocks))


def in_turns(cases: Mapping[str, Callable[[], float]]) -> dict[str, Rate]:
    """Rates of all cases, each of whose calls measures images/s over one block."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(BLOCKS):
        for name, block in cases.items():
            found[name].append(block())
    return {name: rate_of(values) for name, values in found.items()}


class Bench:
    """Measures one rank of `world.size`, of which `world.local_size` are to share this machine.

    slots: the rank's samples at each step; seconds: how long each rate is measured. `rows` is the batch that the input
    path is timed with: as many images as a sixth of that time makes, at most the rank's batch.
    """

    def __init__(
        self,
        config: Config,
        archive: Archive,
        world: World,
        needs: Needs,
        slots: Callable[[int], Slots],
        seconds: float,
    ) -> None:
        self.config, self.archive, self.world = config, archive, world
        self.spec = GraphSpec.of(config, needs, world, depth=depth_of(archive))
        self.seconds, self._block = seconds, seconds / BLOCKS
        self._slots = slots
        self._quarantine = Quarantine(archive.num_samples)
        self._reader = Reader(archive)
        self.rows = min(8, self.spec.batch_size)
        self.rows = min(self.spec.batch_size, max(self.rows, int(self.graph_block() * seconds / 6)))
        # every kept batch once: what does not decode is replaced then, and all bytes are in memory
        with self._loader(replace(self.spec, batch_size=self.rows)) as loader:
            self._batch = next(loader)
            self.ids = [self._batch.ids, *(next(loader).ids for _ in range(_KEPT - 1))]
        own = self.spec.depth == "own"
        self.encoded = [Encoded(self._reader.read(ids), self._reader.windows(ids) if own else None) for ids in self.ids]

    def reader_block(self) -> float:
        """Order, view parameters, and the bytes themselves, from memory: what the loader's thread does."""
        steps, preset, made, start = itertools.cycle(range(_KEPT)), self.spec.preset, 0, time.perf_counter()
        while not made or time.perf_counter() - start < self._block:
            slots = self._kept(next(steps), self.rows)
            ids, _ = self._quarantine.read(slots.ids, self._reader)
            self._params(slots, self._reader.picture_sizes(ids), preset)
            made += len(slots.ids)
        return made / (time.perf_counter() - start)

    def decode_block(self) -> float:
        """The decoder alone, on batches of encoded images."""
        batches, spec = itertools.cycle(self.encoded), replace(self.spec, batch_size=self.rows)
        decoder = build_decoder(lambda: next(batches), spec)
        decoder.build()
        return self._timed(decoder.run, spec)

    def views_block(self) -> float:
        """All that comes after the decoder, on a batch of images that are where it leaves them."""
        spec = replace(self.spec, batch_size=self.rows)
        decoder = build_decoder(lambda: self.encoded[0], replace(spec, prefetch=1))
        decoder.build()
        images = decoder.run()[0]
        params = self._params(self._kept(0, self.rows), self._reader.picture_sizes(self.ids[0]), spec.preset)
        graph = build_views(images, params, spec)
        graph.build()
        rate = self._timed(graph.run, spec)
        del decoder  # not before: the images lie in its memory
        return rate

    def graph_block(self) -> float:
        """The whole input path: reader, decoder, views, and tensors on the device."""
        spec = replace(self.spec, batch_size=self.rows)
        with self._loader(spec) as loader:
            return self._timed(loader.__next__, spec)

    def graph_of_block(self, encoded: Encoded, sizes: np.ndarray) -> float:
        """The whole graph on one batch of encoded images with pictures of `sizes` (int64 [B, 2])."""
        number = len(encoded.images)
        spec = replace(self.spec, batch_size=number)
        slots = Slots(np.arange(number), np.zeros(number, np.int64))
        graph = build_graph(lambda _: GraphInput(encoded, self._params(slots, sizes, spec.preset)), spec)
        graph.build()
        return self._timed(graph.run, spec)

    def time_step(self, step: TrainingStep) -> tuple[Rate, int]:
        """The step's rate, and the images that it was measured with.

        These are the rank's batch, or as much of it as a step does in about twice the time that a rate is measured for:
        a small batch uses a device badly, so a rate of few images is a lower bound of that of many. A step that takes
        longer even with the fewest images is timed once.
        """
        rows = 2 * self.config.train.accumulate
        while True:
            rows = min(rows, self.spec.batch_size)
            batch = self.resident(rows)
            for _ in range(2):  # the first call of a size also sets up memory
                start = time.perf_counter()
                step(batch)
                synchronise(self.world.device)
                spent = time.perf_counter() - start
                if spent > 2 * self.seconds:
                    return Rate(rows / spent, UNREPEATED), rows
            if rows == self.spec.batch_size or spent > self.seconds:
                return rate_of([self.step_block(step, rows) for _ in range(BLOCKS)]), rows
            rows *= 2

    def step_block(self, step: TrainingStep, rows: int) -> float:
        """The training step on `rows` resident images."""
        batch = self.resident(rows)
        synchronise(self.world.device)
        made, start = 0, time.perf_counter()
        while not made or time.perf_counter() - start < self._block:
            step(batch)
            made += rows
            synchronise(self.world.device)
        return made / (time.perf_counter() - start)

    def trainer_block(self, step: TrainingStep, spec: GraphSpec, waits: list[float]) -> float:
        """Loader and step together, on whole batches; appends the share of time that the step waited for a batch."""
        with self._loader(spec) as loader:
            for _ in range(spec.prefetch + 1):
                batch = next(loader)
            step(batch)
            synchronise(self.world.device)
            clock, steps, start = Clock(0), 0, time.perf_counter()
            while steps < 2 or time.perf_counter() - start < self._block:
                with clock.waiting():
                    batch = next(loader)
                step(batch)
                steps += 1
            synchronise(self.world.device)
            lap = clock.lap(steps)
        waits.append(lap.waited / lap.seconds)
        return steps * spec.batch_size / lap.seconds

    def resident(self, rows: int) -> Batch:
        """A batch of `rows` images on the device; those that there are, repeated."""
        chosen = np.arange(rows) % self.rows
        index = torch.from_numpy(chosen).to(self.world.device)
        # in the layout that the loader gives them
        return self._batch.rows(index, chosen).in_layout(torch.channels_last)

    def _kept(self, step: int, rows: int) -> Slots:
        slots = self._slots(step % _KEPT)
        return Slots(slots.ids[:rows], slots.epochs[:rows])

    def _params(self, slots: Slots, sizes: np.ndarray, preset: Preset) -> ViewParams:
        return draw_view_params(
            preset,
            slots,
            seed=self.config.seed,
            sizes=sizes,
            image_size=self.spec.image_size,
            view_sizes=self.spec.view_sizes,
            grids=self.spec.needs.grids,
        )

    def _loader(self, spec: GraphSpec) -> Loader:
        return Loader(
            self.archive,
            spec,
            lambda step: self._kept(step, spec.batch_size),
            seed=self.config.seed,
            quarantine=self._quarantine,
            start=0,
            stop=_ENDLESS,
        )

    def _timed(self, run: Callable[[], object], spec: GraphSpec) -> float:
        """Images/s of calls that make a batch each, from when the queue of batches is in its steady state."""
        for _ in range(spec.prefetch + 1):
            run()
        synchronise(self.world.device)
        runs, start = 0, time.perf_counter()
        while runs < 3 or time.perf_counter() - start < self._block:
            run()
            runs += 1
        synchronise(self.world.device)
        return runs * spec.batch_size / (time.perf_counter() - start)
