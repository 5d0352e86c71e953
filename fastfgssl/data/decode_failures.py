"""Samples that the graph's decoder refuses although their bytes are those that were stored.

`prepare` has decoded each of them on a CPU, so this is seldom the sample's fault. Where the graph decodes on a GPU,
what the CPU makes of the sample takes its place; otherwise it is listed like a damaged one.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from dataclasses import replace

import numpy as np

from fastfgssl.archive.images.image import TrainingDecoder
from fastfgssl.data.decode import Encoded, GraphSpec, build_decoder
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.runtime.memory import is_out_of_memory

log = logging.getLogger(__name__)


class DecodeFailures:
    """Finds samples that the decoder of a graph refuses, and sees that it does not meet them again."""

    def __init__(self, reader: Reader, quarantine: Quarantine) -> None:
        self._reader, self._quarantine = reader, quarantine
        self._decoded: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Samples that the CPU decoded instead; their bytes are kept in memory."""
        return len(self._decoded)

    def replace(self, ids: np.ndarray, encoded: list[np.ndarray]) -> list[np.ndarray]:
        """`encoded`, the bytes of samples `ids`, with what the GPU's decoder refuses as the CPU decoded it."""
        if not self._decoded:
            return encoded
        return [self._decoded.get(sample, payload) for sample, payload in zip(ids.tolist(), encoded, strict=True)]

    def settle(self, ids: np.ndarray, spec: GraphSpec) -> bool:
        """Decodes each of the samples on its own, as the graph of `spec` does, and deals with those that it refuses.

        The message of a failed run does not always tell which sample it was. False if it is none of them.
        """
        ids = np.unique(ids)
        encoded, damage, unread = self._reader.read_and_check(ids)  # that may be so since they were read for the graph
        windows = self._reader.windows(ids) if spec.depth == "own" else None
        refused = _refused_by_decoder(Encoded(self.replace(ids, encoded), windows), spec, skip={**damage, **unread})
        is_deep = np.full(len(ids), spec.depth == "16") if windows is None else windows[:, 1] > 0
        for place, reason in {**refused, **damage}.items():
            sample, name = int(ids[place]), self._reader.names(ids[[place]])[0]
            if (
                place in refused
                and spec.decodes_on_gpu
                and self._decode_on_cpu(sample, encoded[place], np.uint16 if is_deep[place] else np.uint8)
            ):
                log.warning(
                    "sample %d (%s) is decoded on the CPU; the GPU's decoder refuses it: %s", sample, name, reason
                )
            else:
                self._quarantine.add(sample, name, reason)
        for place, reason in unread.items():
            self._quarantine.add(int(ids[place]), self._reader.names(ids[[place]])[0], reason, may_pass=True)
        return bool(refused or damage or unread)

    def _decode_on_cpu(self, sample: int, payload: np.ndarray, dtype: type[np.generic]) -> bool:
        """Keeps the sample's picture in a form that every decoder reads; False if that does not help."""
        if sample in self._decoded:
            return False
        picture = TrainingDecoder().decode(payload.tobytes(), dtype)
        if picture is not None:
            self._decoded[sample] = np.frombuffer(encode_pnm(picture), np.uint8)
        return picture is not None


def _refused_by_decoder(encoded: Encoded, spec: GraphSpec, *, skip: Container[int]) -> dict[int, str]:
    """What the decoder says of each image that it refuses, by its place."""
    spec = replace(spec, batch_size=1, threads=1, prefetch=1)
    refused: dict[int, str] = {}
    current: list[Encoded] = []
    decoder = None
    for place, payload in enumerate(encoded.images):
        if place in skip:
            continue
        current[:] = [Encoded([payload], None if encoded.windows is None else encoded.windows[[place]])]
        if decoder is None:
            decoder = build_decoder(lambda: current[0], spec)
            decoder.build()
        try:
            decoder.run()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            refused[place] = decoder_message(str(error))
            decoder = None  # a pipeline is of no use after an error
    return refused


def decoder_message(text: str) -> str:
    """The first line of what the decoder said, without DALI's traceback of the graph."""
    said = text.partition("encountered:")[2] or text
    lines = said.replace("Current pipeline object is no longer valid.", "").strip().splitlines()
    return lines[0].strip() if lines else "the decoder refuses it without a reason"


def encode_pnm(picture: np.ndarray) -> bytes:
    """`picture`, uint8 or uint16 [H, W, 3], as a binary PNM: without loss, and in need of no decoder's library."""
    height, width, _ = picture.shape
    header = b"P6 %d %d %d\n" % (width, height, np.iinfo(picture.dtype).max)
    return header + picture.astype(picture.dtype.newbyteorder(">")).tobytes()
