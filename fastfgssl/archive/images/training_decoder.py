"""The decoder of the training graph, for one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np


class TrainingDecoder:
    """The decoder of the training graph, DALI's on the CPU, for one image at a time.

    Building it takes about 3 ms; a call then costs no more than the decoding.
    """

    def __init__(self) -> None:
        self._pipelines: dict[np.dtype, Any] = {}

    def decode(self, data: bytes, dtype: type | np.dtype = np.uint8) -> np.ndarray | None:
        """The RGB picture [height, width, 3], valid until the next call, or None if DALI cannot decode it.

        `dtype` is uint8, or uint16 as training asks for if the archive has 16-bit images; both span their whole range.
        """
        dtype = np.dtype(dtype)
        if dtype not in self._pipelines:
            self._pipelines[dtype] = _decoding_pipeline(dtype)
            self._pipelines[dtype].build()
        pipeline = self._pipelines[dtype]
        try:
            pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8)])
            (pictures,) = pipeline.run()
            return np.asarray(pictures[0])
        except RuntimeError:  # DALI's only one; the pipeline cannot be used after it
            del self._pipelines[dtype]
            return None


def _decoding_pipeline(dtype: np.dtype) -> Any:
    from nvidia.dali import fn, pipeline_def, types  # a second, which processes that decode nothing need not wait

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        wanted = types.UINT16 if dtype == np.uint16 else types.UINT8
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, dtype=wanted)

    return pipeline()
