"""What a graph makes, and its first part: the decoder, also by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config, ViewSizes
from fastfgssl.data.batch import Needs
from fastfgssl.data.presets import PRESETS, Preset, find_preset
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import cores_per_rank
from fastfgssl.runtime.errors import UserError

# DALI reads it at its first allocation. Host buffers above 32 MB come from its pool by default; smaller ones, which are
# most of a batch's outputs, would be mapped and zeroed anew for every batch: a sixth of the CPU path's time.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")


Depth = Literal["8", "16", "own"]
"""Bits a channel that images are decoded to. own: of each image those that it has, of which a window becomes 8."""


class Encoded(NamedTuple):
    """The encoded images of a batch."""

    images: list[np.ndarray]
    """B arrays of uint8."""
    windows: np.ndarray | None = None
    """float32 [B, 2] where depths are their own: the levels that are black and white; 0 and 0 for an 8-bit image."""


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """What a graph makes, and with what; nothing in it changes while it runs."""

    batch_size: int
    """Most images of a batch."""
    image_size: int
    """Side of the views in pixels."""
    preset: Preset
    view_sizes: ViewSizes = "relative"
    """What sizes in the preset are: stated for `REFERENCE_SIDE` pixels, or pixels of these views."""
    needs: Needs
    mean: tuple[float, ...]
    """A number for each channel."""
    std: tuple[float, ...]
    channels: int = 3
    """3: images are decoded to RGB. 1: to gray, colour by its luminance (ITU-R 601)."""
    half: bool
    """float16 outputs instead of float32."""
    depth: Depth
    device_id: int | None
    """The GPU to decode and distort on; None uses the CPU."""
    threads: int
    prefetch: int
    hw_decoder_load: float = 0.9
    """Share of the JPEG files that a GPU's decoding engines take, where it has them."""
    decode_on_cpu: bool = False
    """Decode on the CPU even where a GPU does the rest."""

    def __post_init__(self) -> None:
        if not (self.needs.anchor or self.needs.view or any(self.needs.grids)):
            raise UserError("the objective's needs: no view at all; it must need the anchor, the view or a grid")
        for grid in self.needs.grids:
            if grid < 0 or (grid and self.image_size % grid):
                raise UserError(
                    f"the objective's needs: a grid of {grid}: must divide data.image_size = {self.image_size}, or be 0"
                )
        if self.depth == "16" and self.changes_colour:
            others = ", ".join(name for name, preset in PRESETS.items() if not preset.colour)
            raise UserError(
                "data.views: this preset changes hue and saturation, which an archive with 16-bit images of an earlier"
                f" release does not allow; prepare it anew, or take one that does not: {others}"
            )

    @property
    def changes_colour(self) -> bool:
        """Whether a view's jitter changes hue or saturation, which gray images do not have."""
        return self.channels == 3 and self.preset.colour

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether a GPU decodes."""
        return self.device_id is not None and not self.decode_on_cpu

    @classmethod
    def of(cls, config: Config, needs: Needs, world: World, *, depth: Depth, preset: Preset | None = None) -> GraphSpec:
        """The graph of each rank in training; preset: in the place of that of `config`."""
        data, on_gpu = config.data, world.device.type == "cuda"
        return cls(
            batch_size=config.train.batch_size // world.size,
            image_size=data.image_size,
            preset=preset or find_preset(data.views),
            view_sizes=data.view_sizes,
            needs=needs,
            mean=data.mean,
            std=data.std,
            channels=config.model.in_channels,
            half=on_gpu and config.train.precision in ("bfloat16", "float16"),
            depth=depth,
            device_id=world.device.index if on_gpu else None,
            threads=data.threads or cores_per_rank(world.local_size),
            prefetch=data.prefetch,
            hw_decoder_load=data.hw_decoder_load,
        )


def depth_of(archive: Archive) -> Depth:
    """What the images of an archive are decoded to: archives of earlier releases do not tell it of each."""
    if not archive.bit_depth.get(16):
        return "8"
    return "own" if archive.has_column("high") else "16"


def decode(inputs: Sequence[DataNode], spec: GraphSpec) -> DataNode:
    """RGB, or gray, of any supported format, upright, on the device of the graph.

    inputs: encoded images; where depths are their own the lowest levels and the highest, a number an image, too.
    """
    encoded, *window = inputs
    if spec.depth != "own":
        return _decoded(encoded, spec, types.UINT16 if spec.depth == "16" else types.UINT8)
    low, high = window
    if high > 0:  # only images of more than 8 bits pay for it
        deep = _decoded(encoded, spec, types.UINT16)
        image = fn.cast((deep - low) * (255.0 / (high - low)), dtype=types.UINT8)  # rounds and saturates
    else:
        image = _decoded(encoded, spec, types.UINT8)
    return image


def _decoded(encoded: DataNode, spec: GraphSpec, dtype: Any) -> DataNode:
    image = fn.decoders.image(
        encoded,
        device="mixed" if spec.decodes_on_gpu else "cpu",
        hw_decoder_load=spec.hw_decoder_load,
        jpeg_fancy_upsampling=True,  # of chroma, on a GPU as on a CPU: otherwise the two make other edges of one file
        output_type=types.RGB if spec.channels == 3 else types.GRAY,
        dtype=dtype,
    )
    return image.gpu() if spec.device_id is not None and spec.decode_on_cpu else image


def decoder_inputs(encoded: Encoded) -> list:
    """What `decode` takes of a batch."""
    if encoded.windows is None:
        return [encoded.images]
    return [encoded.images, *np.ascontiguousarray(encoded.windows.T)]


def build_decoder(source: Callable[[], Encoded], spec: GraphSpec) -> Pipeline:
    """The graph's decoder alone, on the encoded images that `source` gives for each run."""
    num_inputs = 3 if spec.depth == "own" else 1

    # as the whole graph: what one costs is part of what the other does
    @pipeline_def(**pipeline_options(spec), enable_conditionals=True)
    def graph():
        return decode(fn.external_source(lambda: decoder_inputs(source()), num_outputs=num_inputs, batch=True), spec)

    return graph()


def pipeline_options(spec: GraphSpec) -> dict[str, Any]:
    """Keyword arguments for DALI's `pipeline_def`."""
    return {
        "batch_size": spec.batch_size,
        "num_threads": spec.threads,
        "device_id": spec.device_id,
        "prefetch_queue_depth": spec.prefetch,
        "exec_dynamic": True,  # outputs then own their memory, so that tensors can share it
    }
