"""An archive as training sees it: the batches of this rank, from any step on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.data.decode import GraphSpec
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Order, Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.runtime.agreement import lost_ranks, mean_over_ranks, shared_errors
from fastfgssl.runtime.distributed import World, local_main_first

log = logging.getLogger(__name__)


class ArchiveStream:
    """What `config` trains on. Raises `UserError` on every rank if the archive cannot be opened or used."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self._world = config, world
        """What batches are made under; that of the run, once it is known."""
        with shared_errors(world):
            self.archive = Archive.open(config.data.path)
        self.num_samples, self.fingerprint = self.archive.num_samples, self.archive.fingerprint
        self.needs = Needs()
        """What batches hold; an objective's, once it is known."""

    @contextmanager
    def batches(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        """This rank's batches of steps `start` to `stop` - 1; a run that ends in order says what it was not shown."""
        config, world = self.config, self._world
        listed = Path(config.output) / "quarantine.csv"
        with shared_errors(world), local_main_first(world):  # the first builds the operators, the others find them
            loader = Loader(
                self.archive,
                GraphSpec.of(config, self.needs, world, sixteen_bit=self.archive.is_sixteen_bit),
                rank_slots(self.archive, config, world),
                seed=config.seed,
                quarantine=Quarantine(self.num_samples, listed),
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
            log.warning(
                "%d of %d samples (%.2g %%) stood in for damaged ones; %s lists those",
                substitutes,
                samples,
                100 * substitutes / samples,
                listed,
            )


def rank_slots(archive: Archive, config: Config, world: World) -> Callable[[int], Slots]:
    """The samples of this rank at each step: its part of the global batch."""
    order = Order(archive.shard_sizes, seed=config.seed, window=config.data.window)
    part = config.train.batch_size // world.size

    def slots(step: int) -> Slots:
        first = step * config.train.batch_size + world.rank * part
        return order.slots(first, first + part)

    return slots
