"""Which sample goes into which of an archive's new shards, and the shards, written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.accounting import WRITTEN
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.members import Members
from fastfgssl.archive.building.plan import DonePart, Inputs
from fastfgssl.archive.building.publish import Place
from fastfgssl.archive.building.shards import EXTENSIONS, ShardPlan, ShardWriter
from fastfgssl.archive.building.tasks import OnProgress, do_all
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.runtime.environment import available_cores


class ShardPlans:
    """The plans of the shards, made as they are asked for."""

    def __init__(
        self, base: Base, inputs: Inputs, parts: Sequence[DonePart], bounds: np.ndarray, members: Members | None
    ) -> None:
        written = inputs.outcome == WRITTEN
        table = inputs.table.filter(pa.array(written))
        self._parts, self._bounds, self._base = parts, bounds, base
        self._part, self._members = inputs.part[written], members
        self.bytes = int(table["size"].to_numpy().sum())
        self._columns = {name: table[name].to_numpy() for name in ("offset", "size", "crc32")}
        formats = pc.index_in(table["format"], pa.array(list(EXTENSIONS))).to_numpy()
        self._columns["extension"] = np.array(list(EXTENSIONS.values()))[formats]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[ShardPlan]:
        for number, (begin, end) in enumerate(zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True)):
            numbers, part = np.unique(self._part[begin:end], return_inverse=True)
            yield ShardPlan(
                number=len(self._base.shards) + number,
                first=self._base.num_samples + begin,
                folders=[self._parts[one].folder for one in numbers.tolist()],
                part=part,
                beside=self._members.of(begin, end) if self._members else [],
                beside_extension=self._members.extension if self._members else "",
                **{name: column[begin:end] for name, column in self._columns.items()},
            )

    def offsets(self) -> np.ndarray:
        """Where each sample lies in its shard, int64."""
        return np.concatenate([np.empty(0, np.int64), *(plan.offsets() for plan in self)])


def write_shards(options: PrepareOptions, place: Place, plans: ShardPlans, on_progress: OnProgress) -> list[dict]:
    """Writes all shards and returns their entries in the manifest, in order."""
    made = do_all(
        ShardWriter(place.archive),
        plans,
        len(plans),
        workers=options.workers or available_cores(),
        nbytes=plans.bytes,
        what="shards",
        on_progress=on_progress,
    )
    done: dict[int, dict] = dict(made)
    return [done[number] for number in sorted(done)]
