"""An archive as training sees it: the batches of this rank, from any step on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.data.decode import GraphSpec, depth_of
from fastfgssl.data.gray import tell_of_colour
from fastfgssl.data.loader import Loader
from fastfgssl.data.opening import open_archive
from fastfgssl.data.order import Order, Slots, Stream
from fastfgssl.data.quarantine import Quarantine, forget_unreadable
from fastfgssl.data.rehearsal import rehearse
from fastfgssl.runtime.agreement import lost_ranks, mean_over_ranks, shared_errors
from fastfgssl.runtime.distributed import World, local_main_first
from fastfgssl.runtime.errors import UserError

log = logging.getLogger(__name__)


class ArchiveStream:
    """What `config` trains on. Raises `UserError` on every rank if the archive cannot be opened or used.

    stream: which of the archive's samples, and in which order; None for all of them.
    """

    def __init__(self, config: Config, world: World, stream: Callable[[Archive], Stream] | None = None) -> None:
        self.config, self._world = config, world
        """What batches are made under; that of the run, once it is known."""
        with shared_errors(world):
            self.archive = open_archive(config.data)
            self._stream = (stream or partial(whole_archive, config))(self.archive)
        self.num_samples, self.fingerprint = self._stream.num_samples, self.archive.fingerprint
        self.needs = Needs()
        """What batches hold; an objective's, once it is known."""
        self.writes = True
        """Whether `config.output` is to list what is met; else nothing is written."""
        self._quarantine = Quarantine(self.archive.num_samples)

    def verdict(self) -> UserError | None:
        """Why no more batches are to be made; None while the archive is good enough."""
        return self._quarantine.verdict

    @contextmanager
    def batches(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        """This rank's batches of steps `start` to `stop` - 1; a run that ends in order says what it was not shown."""
        config, world = self.config, self._world
        listed = Path(config.output) / "quarantine.csv"
        slots = rank_slots(self._stream, config, world)
        if config.model.in_channels == 1 and start < stop:
            with shared_errors(world):
                if world.is_main:
                    tell_of_colour(self.archive, slots(start).ids)
        with shared_errors(world):
            if world.is_main and self.writes:
                forget_unreadable(listed)
        with shared_errors(world), local_main_first(world):  # the first builds the operators, the others find them
            self._quarantine = Quarantine(
                self.archive.num_samples,
                listed,
                among=self._stream.ids,
                max_bad_share=config.data.max_bad_share,
                writes=self.writes,
            )
            if too_many := self.verdict():
                raise too_many
            spec = GraphSpec.of(config, self.needs, world, depth=depth_of(self.archive))
            if start < stop:
                rehearse(self.archive, spec, slots, self._quarantine, stop=stop)
            loader = Loader(
                self.archive,
                spec,
                slots,
                seed=config.seed,
                quarantine=self._quarantine,
                start=start,
                stop=stop,
            )
        with loader:
            yield loader
        # all ranks come here together, or none does: an exception leaves the body above
        with lost_ranks("counting substitutes"):
            counts = mean_over_ranks(torch.tensor([loader.substitutes, loader.samples], dtype=torch.float64), world)
        substitutes, samples = (counts * world.size).round().long().tolist()
        if substitutes and world.is_main:
            found = Quarantine(self.archive.num_samples, listed, among=self._stream.ids)  # of all ranks and starts
            log.warning(
                "%d of %d samples (%.2g %%) stood in for damaged ones; %s lists those, %d images, %.2g %% of all",
                substitutes,
                samples,
                100 * substitutes / samples,
                listed,
                found.count,
                100 * found.share,
            )


def whole_archive(config: Config, archive: Archive) -> Order:
    """All samples of an archive, in the order of `config`."""
    return Order(archive.shard_sizes, seed=config.seed, window=config.data.window)


def rank_slots(stream: Stream, config: Config, world: World) -> Callable[[int], Slots]:
    """The samples of this rank at each step: its part of the global batch."""
    part = config.train.batch_size // world.size

    def slots(step: int) -> Slots:
        first = step * config.train.batch_size + world.rank * part
        return stream.slots(first, first + part)

    return slots
