"""Batches on the training device, one for each step: `batch = f(archive, seed, step)`.

Nothing here remembers anything that changes a batch, so starting at any step gives the batches of an uninterrupted run.
A sample that does not decode does not end the run: it is listed in the quarantine, the graph is built again at the same
step, and the next sample that decodes stands in for it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.batch import Batch
from fastfgssl.data.decode import GraphSpec, build_decoder
from fastfgssl.data.graph import GraphInput, build_graph
from fastfgssl.data.order import Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import draw_view_params
from fastfgssl.runtime.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Loader(Iterator[Batch]):
    """Makes the batches of steps `start` to `stop` - 1 from an archive.

    slots: the samples of a step, and the epoch that keys their view parameters; seed: keys them too.
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
        self._archive = archive
        self._spec = spec
        self._slots = slots
        self._seed = seed
        self._quarantine = quarantine
        self._reader = Reader(archive)
        self._step = start
        self._stop = stop
        self._graph = self._build_graph()

    def __next__(self) -> Batch:
        if self._step == self._stop:
            raise StopIteration
        while True:
            try:
                # The host waits until this batch is made, which was begun `prefetch` steps ago. Given a stream, the
                # graph would let the GPU wait instead, unseen by the clock that tells a starved run from a busy one.
                outputs = self._graph.run()
                break
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise  # no sample's fault
                self._quarantine_undecodable(error)
                self._graph = self._build_graph()
        ids = self._quarantine.substitute(self._slots(self._step).ids)
        self._step += 1
        needs, views = self._spec.needs, map(self._as_tensor, outputs)
        return Batch(
            anchor=next(views) if needs.anchor else None,
            puzzle_view=next(views) if needs.view else None,
            puzzles=tuple(next(views) if grid else None for grid in needs.grids),
            ids=ids,
            labels=self._labels(ids) if needs.labels else None,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the graph and its threads."""
        self._graph = None

    def _build_graph(self) -> Pipeline:
        first = self._step

        def source(iteration: int) -> GraphInput:
            step = first + iteration
            if step >= self._stop:
                raise StopIteration
            return self._graph_input(step)

        graph = build_graph(source, self._spec)
        graph.build()
        return graph

    def _graph_input(self, step: int) -> GraphInput:
        slots = self._slots(step)
        ids = self._quarantine.substitute(slots.ids)
        params = draw_view_params(
            self._spec.preset,
            slots,  # a substitute is distorted as the sample whose place it takes
            seed=self._seed,
            sizes=self._reader.picture_sizes(ids),
            image_size=self._spec.image_size,
            grids=self._spec.needs.grids,
        )
        return GraphInput(self._reader.read(ids), params)

    def _labels(self, ids: np.ndarray) -> torch.Tensor:
        labels = torch.from_numpy(self._reader.labels(ids))
        if self._spec.device_id is None:
            return labels
        return labels.pin_memory().to(f"cuda:{self._spec.device_id}", non_blocking=True)

    def _as_tensor(self, output) -> torch.Tensor:
        """[B, 3, S, S], channels-last, of one output of the graph."""
        if self._spec.device_id is None:
            return torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
        from nvidia.dali.plugin.pytorch import feed_ndarray

        dtype = torch.float16 if self._spec.half else torch.float32
        tensor = torch.empty(output.as_tensor().shape(), dtype=dtype, device=f"cuda:{self._spec.device_id}")
        feed_ndarray(output.as_tensor(), tensor, cuda_stream=torch.cuda.current_stream(tensor.device))
        return tensor.permute(0, 3, 1, 2)

    def _quarantine_undecodable(self, error: RuntimeError) -> None:
        """Lists the samples that the decoder refuses among the batches that the graph was working on.

        The message of a failed run does not always tell which sample it was, so each is decoded on its own. Raises
        `error` again if all of them decode: then it was not about a sample.
        """
        for step in range(self._step, min(self._step + self._spec.prefetch + 1, self._stop)):
            refused = self._undecodable(self._quarantine.substitute(self._slots(step).ids))
            for sample, reason in refused.items():
                row = self._archive.columns(np.array([sample]), ("id", "crc32"))
                payload = self._reader.read(np.array([sample]))[0]
                damaged = zlib.crc32(payload) != int(row["crc32"][0])
                cause = "its bytes changed since the archive was made" if damaged else reason
                log.warning(
                    "sample %d (%s) does not decode: %s; the next one stands in for it", sample, row["id"][0], cause
                )
                self._quarantine.add(sample, str(row["id"][0]), cause)
            if refused:
                return
        raise error

    def _undecodable(self, ids: np.ndarray) -> dict[int, str]:
        """The samples among `ids` that the graph's decoder refuses, with its reasons: each is decoded on its own."""
        spec = replace(self._spec, batch_size=1, threads=1, prefetch=1)
        refused: dict[int, str] = {}
        current: list[np.ndarray] = []
        decoder = None
        for sample in dict.fromkeys(ids.tolist()):
            current[:] = self._reader.read(np.array([sample]))
            if decoder is None:
                decoder = build_decoder(lambda: current, spec)
                decoder.build()
            try:
                decoder.run()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                refused[sample] = _decoder_message(error)
                decoder = None  # a pipeline is of no use after an error
        return refused


def _decoder_message(error: RuntimeError) -> str:
    """What the decoder said, without DALI's traceback of the graph."""
    text = str(error).partition("encountered:")[2] or str(error)
    return text.replace("Current pipeline object is no longer valid.", "").strip().splitlines()[0]
