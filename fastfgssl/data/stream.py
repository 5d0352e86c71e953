"""An archive as training sees it: the batches of this rank, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.data.decode import GraphSpec
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Order, Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.runtime.agreement import shared_errors
from fastfgssl.runtime.distributed import World, local_main_first


class ArchiveStream:
    """What `config` trains on. Raises `UserError` on every rank if the archive cannot be opened or used."""

    def __init__(self, config: Config, world: World) -> None:
        self._config, self._world = config, world
        with shared_errors(world):
            self.archive = Archive.open(config.data.path)
        self.num_samples, self.fingerprint = self.archive.num_samples, self.archive.fingerprint
        self.needs = Needs()
        """What batches hold; an objective's, once it is known."""

    @contextmanager
    def batches(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        """This rank's batches of steps `start` to `stop` - 1."""
        config, world = self._config, self._world
        with shared_errors(world), local_main_first(world):  # the first builds the operators, the others find them
            loader = Loader(
                self.archive,
                GraphSpec.of(config, self.needs, world, sixteen_bit=self.archive.is_sixteen_bit),
                rank_slots(self.archive, config, world),
                seed=config.seed,
                quarantine=Quarantine(self.num_samples, Path(config.output) / "quarantine.csv"),
                start=start,
                stop=stop,
            )
        with loader:
            yield loader


def rank_slots(archive: Archive, config: Config, world: World) -> Callable[[int], Slots]:
    """The samples of this rank at each step: its part of the global batch."""
    order = Order(archive.shard_sizes, seed=config.seed, window=config.data.window)
    part = config.train.batch_size // world.size

    def slots(step: int) -> Slots:
        first = step * config.train.batch_size + world.rank * part
        return order.slots(first, first + part)

    return slots
