"""The host's part of a batch, before the graph: whose bytes, the bytes, and the random numbers of their views."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastfgssl.data.decode import Encoded, GraphSpec
from fastfgssl.data.decode_failures import DecodeFailures
from fastfgssl.data.order import Slots
from fastfgssl.data.philox import Use, random_words
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import ViewParams, draw_view_params


class HostBatch(NamedTuple):
    ids: np.ndarray
    """int64 [B], the samples whose bytes these are."""
    substitutes: int
    """How many of them stand in for others."""
    encoded: Encoded
    """The bytes that were stored."""
    params: ViewParams
    labels: np.ndarray | None
    """int64 [B], where they are needed."""
    draws: np.ndarray | None
    """float32 [B, n], as the objective needs them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded images, which is nearly all."""
        return sum(map(len, self.encoded.images))


class HostBatches:
    """Makes the host's part of any step."""

    def __init__(
        self,
        spec: GraphSpec,
        slots: Callable[[int], Slots],
        reader: Reader,
        quarantine: Quarantine,
        failures: DecodeFailures,
        *,
        seed: int,
    ) -> None:
        self._spec, self._slots, self._seed = spec, slots, seed
        self._reader, self._quarantine, self._failures = reader, quarantine, failures

    def make(self, step: int) -> HostBatch:
        slots = self._slots(step)
        ids, encoded = self._quarantine.read(slots.ids, self._reader)
        params = draw_view_params(
            self._spec.preset,
            slots,  # a substitute is distorted as the sample whose place it takes
            seed=self._seed,
            sizes=self._reader.picture_sizes(ids),
            image_size=self._spec.image_size,
            view_sizes=self._spec.view_sizes,
            grids=self._spec.needs.grids,
        )
        return HostBatch(
            ids=ids,
            substitutes=int((ids != slots.ids).sum()),
            encoded=Encoded(
                self._failures.replace(ids, encoded), self._reader.windows(ids) if self._spec.depth == "own" else None
            ),
            params=params,
            labels=self._reader.labels(ids) if self._spec.needs.labels else None,
            draws=self._draws(slots),
        )

    def _draws(self, slots: Slots) -> np.ndarray | None:
        count = self._spec.needs.draws
        if not count:
            return None
        words = random_words(self._seed, slots.epochs, slots.ids, Use.OBJECTIVE, count)
        return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)  # 24 bits: none is rounded up to 1
