"""Batches on the training device, one for each step: `batch = f(archive, seed, step)`.

Nothing here remembers anything that changes a batch, so starting at any step gives the batches of an uninterrupted run.
A thread reads ahead of the graph and lets no damaged bytes pass: the next intact sample stands in for theirs
(quarantine.py). For a sample that the decoder refuses all the same, the graph is built again at the same step
(decode_failures.py).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from nvidia.dali.tensors import TensorListCPU, TensorListGPU

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.batch import Batch, on_device
from fastfgssl.data.decode import Encoded, GraphSpec
from fastfgssl.data.decode_failures import DecodeFailures
from fastfgssl.data.fetch_ahead import FetchAhead
from fastfgssl.data.graph import GraphInput, build_graph
from fastfgssl.data.host_batch import HostBatch, HostBatches
from fastfgssl.data.order import Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.readahead import ReadAhead
from fastfgssl.data.reader import Reader
from fastfgssl.runtime.memory import is_out_of_memory

# Batches that are read ahead of those that the graph has; and their bytes, after which no further one is begun.
_AHEAD = 2
_AHEAD_BYTES = 512 << 20
# Samples that the GPU's decoder refuses until the CPU decodes all: each costs a new graph once, and memory.
_MAX_REFUSED = 64


class Loader(Iterator[Batch]):
    """Makes the batches of steps `start` to `stop` - 1 from an archive; a context that closes itself.

    slots: the samples of a step, and the epoch that keys their view parameters, asked by a thread; seed: keys them too.
    """

    def __init__(
        self,
        archive: Archive,
        spec: GraphSpec,
        slots: Callable[[int], Slots],
        *,
        seed: int,
        quarantine: Quarantine,
        start: int,
        stop: int,
    ) -> None:
        self._spec = spec
        self._device = torch.device("cpu" if spec.device_id is None else f"cuda:{spec.device_id}")
        self._reader = Reader(archive)
        self._fetching = None
        if archive.shards is not None:
            self._fetching = FetchAhead(archive, archive.shards, slots, start=start, stop=stop)
            slots = self._fetching.slots
        self._failures = DecodeFailures(self._reader, quarantine)
        self._host = HostBatches(spec, slots, self._reader, quarantine, self._failures, seed=seed)
        self._step, self._stop = start, stop
        self.samples = self.substitutes = 0
        """Samples of the batches so far, and those among them that stood in for damaged ones."""
        self._begin()

    def __next__(self) -> Batch:
        if self._step == self._stop:
            raise StopIteration
        outputs = self._run()
        made = self._fed.popleft()
        self._step += 1
        self.samples += len(made.ids)
        self.substitutes += made.substitutes
        needs, views = self._spec.needs, map(self._as_tensor, outputs)
        return Batch(
            anchor=next(views) if needs.anchor else None,
            puzzle_view=next(views) if needs.view else None,
            puzzles=tuple(next(views) if grid else None for grid in needs.grids),
            ids=made.ids,
            labels=None if made.labels is None else on_device(made.labels, self._device),
            draws=made.draws,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back the graph, the threads, and the files; no batch comes after it."""
        self._stop = self._step
        if self._fetching is not None:
            self._fetching.close()
        self._end()
        self._reader.close()

    def _begin(self) -> None:
        """Sets the graph and the thread before it to work, from the present step on."""
        self._fed: deque[HostBatch] = deque()  # what the graph has been given and has not made yet
        self._ahead = ReadAhead(
            self._host.make, self._step, self._stop, items=self._spec.prefetch + _AHEAD, nbytes=_AHEAD_BYTES
        )
        self._graph = build_graph(_source(self._ahead, self._fed), self._spec)
        self._graph.build()

    def _end(self) -> None:
        self._graph = None
        self._ahead.close()

    def _run(self) -> tuple[TensorListCPU | TensorListGPU, ...]:
        """The graph's outputs for the present step."""
        while True:
            try:
                # The host waits until this batch is made, which was begun `prefetch` steps ago. Given a stream, the
                # graph would let the GPU wait instead, unseen by the clock that tells a starved run from a busy one.
                return self._graph.run()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise  # no sample's fault
                refusal = RuntimeError(str(error))  # a new one: the frames of `error` keep the graph
            self._settle(refusal)

    def _settle(self, refusal: RuntimeError) -> None:
        """Begins anew without the samples that the decoder refused; raises `refusal` if it was not about a sample."""
        fed = list(self._fed)
        self._end()  # before another graph is built: a GPU's memory may not hold two
        if not any(self._failures.settle(batch.ids, self._spec) for batch in fed):
            raise refusal
        if len(self._failures) > _MAX_REFUSED:
            self._spec = replace(self._spec, decode_on_cpu=True)
        self._begin()

    def _as_tensor(self, output: TensorListCPU | TensorListGPU) -> torch.Tensor:
        """[B, C, S, S], channels-last, of one output of the graph."""
        if self._spec.device_id is None:
            return torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
        from nvidia.dali.plugin.pytorch import feed_ndarray

        dtype = torch.float16 if self._spec.half else torch.float32
        tensor = torch.empty(output.as_tensor().shape(), dtype=dtype, device=f"cuda:{self._spec.device_id}")
        feed_ndarray(output.as_tensor(), tensor, cuda_stream=torch.cuda.current_stream(tensor.device))
        return tensor.permute(0, 3, 1, 2)


def _source(ahead: ReadAhead[HostBatch], fed: deque[HostBatch]) -> Callable[[int], GraphInput]:
    """What the graph calls for its inputs.

    It does not know the loader and keeps no thread: DALI's operators refer to each other in circles, so that what they
    call lives on until Python's next collection.
    """
    ahead_of_graph = weakref.ref(ahead)

    def source(iteration: int) -> GraphInput:
        ahead = ahead_of_graph()
        assert ahead is not None, "the loader, which runs the graph, keeps it"
        batch = next(ahead)
        fed.append(batch._replace(encoded=Encoded([])))  # the graph has its own copy
        return GraphInput(batch.encoded, batch.params)

    return source
