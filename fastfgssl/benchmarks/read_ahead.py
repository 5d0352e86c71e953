"""What reading ahead is for: a store that is slow to answer, against the same reads when the graph asks for them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.benchmarks.measure import CheckFailed, Record, Suite
from fastfgssl.data.decode import GraphSpec
from fastfgssl.data.decode_failures import DecodeFailures
from fastfgssl.data.graph import GraphInput, build_graph
from fastfgssl.data.host_batch import HostBatches
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Order, Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader

STEP = 0.25
"""Seconds of a step, which the host sleeps through as it waits for a device."""
LATENCY = 0.225
"""Seconds that each batch waits for before it is read."""
FIRST = 6
"""Steps that fill the queues."""
STEPS, TURNS = {"cpu": 16, "cuda": 16, "rehearsal": 2}, {"cpu": 2, "cuda": 2, "rehearsal": 1}
"""Steps that are timed, and how often each kind takes its turn."""


def record(path: Path, spec: GraphSpec, suite: Suite) -> Record:
    """What comes of that latency, on batches of `spec` from the archive at `path`."""
    archive = Archive.open(path)
    order = Order(archive.shard_sizes, seed=0, window=16)

    steps = STEPS[suite.scale]

    def slots(step: int) -> Slots:
        return order.slots(step * spec.batch_size, (step + 1) * spec.batch_size)

    kinds = {
        "ours": lambda: _ahead(archive, spec, _late(slots, LATENCY), steps),
        "baseline": lambda: _when_asked(archive, spec, _late(slots, LATENCY), steps),
        "limit": lambda: _ahead(archive, spec, slots, steps),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    waits: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(TURNS[suite.scale]):
        for kind, batches in kinds.items():
            spent, waited = _train(batches(), slots, steps)
            seconds[kind].append(spent)
            waits[kind].append(waited / spent)
    return suite.record(
        f"reader {1000 * LATENCY:.0f} ms late each batch, step of {1000 * STEP:.0f} ms, batch {spec.batch_size}",
        seconds,
        baseline="read when the graph asks",
        limit="a reader that is not late",
        items=steps,
        unit="steps/s",
        details={f"share_of_time_waiting_{kind}": statistics.median(share) for kind, share in waits.items()},
    )


def _late(slots: Callable[[int], Slots], seconds: float) -> Callable[[int], Slots]:
    """Asked for the samples of a step, waits as for a store that answers late; then come the reads."""

    def late(step: int) -> Slots:
        time.sleep(seconds)
        return slots(step)

    return late


def _ahead(archive: Archive, spec: GraphSpec, slots: Callable[[int], Slots], steps: int) -> Iterator[np.ndarray]:
    """Ids of the batches of the loader."""
    quarantine = Quarantine(archive.num_samples)
    with Loader(archive, spec, slots, seed=0, quarantine=quarantine, start=0, stop=FIRST + steps) as loader:
        for batch in loader:
            yield batch.ids


def _when_asked(archive: Archive, spec: GraphSpec, slots: Callable[[int], Slots], steps: int) -> Iterator[np.ndarray]:
    """The same from a graph whose inputs are made when it asks for them."""
    reader, quarantine = Reader(archive), Quarantine(archive.num_samples)
    host = HostBatches(spec, slots, reader, quarantine, DecodeFailures(reader, quarantine), seed=0)
    ids = []

    def source(step: int) -> GraphInput:
        made = host.make(step)
        ids.append(made.ids)
        return GraphInput(made.encoded, made.params)

    graph = build_graph(source, spec)
    graph.build()
    for step in range(FIRST + steps):
        graph.run()
        yield ids[step]


def _train(batches: Iterator[np.ndarray], slots: Callable[[int], Slots], steps: int) -> tuple[float, float]:
    """Seconds of `steps` steps that sleep, and those of them that were spent waiting for a batch."""
    waited = 0.0
    for step in range(FIRST + steps):
        if step == FIRST:
            waited, start = 0.0, time.perf_counter()
        begin = time.perf_counter()
        ids = next(batches)
        waited += time.perf_counter() - begin
        if not np.array_equal(ids, slots(step).ids):
            raise CheckFailed(f"step {step} has other samples than it should")
        time.sleep(STEP)
    return time.perf_counter() - start, waited
