"""The DALI graph: encoded bytes and view parameters in, normalised views and puzzles out. One function for CPU and GPU.

    external_source -> decode -> resize or crop -> affine -> colour jitter -> blur -> views operator

Flip, grayscale, solarise, normalisation, cast and all puzzles are one pass of our own operator (kernels/fan_out). On
the CPU that pass blurs too and the resize is ours, since DALI's stock CPU operators for both take several times as
long; on a GPU both are stock. Nothing here is random: every parameter comes in with the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import BatchInfo

from fastfgssl.data.order import Slots
from fastfgssl.data.presets import JITTER_PARTS, Preset, View
from fastfgssl.data.view_params import ViewDraws, ViewParams, draw_view_params
from fastfgssl.kernels.build import BuildError, load_plugin
from fastfgssl.kernels.fan_out.reference import FLIP, GRAYSCALE, SOLARISE
from fastfgssl.runtime.errors import UserError

# DALI reads it at its first allocation. Host buffers above 32 MB come from its pool by default; smaller ones, which are
# most of a batch's outputs, would be mapped and zeroed anew for every batch: a sixth of the CPU path's time.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")

_INTERPOLATION = {"linear": types.INTERP_LINEAR, "cubic": types.INTERP_CUBIC}


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """What a graph makes, and with what; nothing in it changes while it runs."""

    batch_size: int
    """Most images of a batch."""
    image_size: int
    """Side of the views in pixels."""
    preset: Preset
    grids: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    half: bool
    """float16 outputs instead of float32."""
    sixteen_bit: bool
    """Decode to uint16, keeping what 16-bit images hold, instead of uint8."""
    device_id: int | None
    """The GPU to decode and distort on; None uses the CPU."""
    threads: int
    prefetch: int
    hw_decoder_load: float = 0.9
    """Share of the JPEG files that a GPU's decoding engines take, where it has them."""


GraphInput = tuple[list[np.ndarray], ViewParams]
"""Encoded images, uint8 arrays, and the parameters of their views."""


def build_graph(source: Callable[[int], GraphInput], spec: GraphSpec) -> Pipeline:
    """Builds a pipeline whose i-th run makes the views of `source(i)`; `source` ends it by raising StopIteration.

    Outputs, each a batch of [S, S, 3]: anchor, puzzle view, and a puzzle for each grid.
    """
    names = _load_operators(spec)

    def batch(info: BatchInfo) -> list:
        encoded, params = source(info.iteration)
        return [encoded, *_arguments(params, spec.preset).values()]

    # only images that are blurred pay for a stock blur
    @pipeline_def(**_options(spec), enable_conditionals=True)
    def graph():
        encoded, *values = fn.external_source(source=batch, num_outputs=1 + len(names), batch=True, batch_info=True)
        return _views(decode(encoded, spec), names, values, spec)

    return graph()


def build_views(images, params: ViewParams, spec: GraphSpec) -> Pipeline:
    """The graph after its decoder alone: each run makes the views with `params` of `images`, an output of the decoder.

    Nothing is copied: the images stay where the decoder left them, on a GPU in its memory.
    """
    names, values = _load_operators(spec), list(_arguments(params, spec.preset).values())

    @pipeline_def(**_options(spec), enable_conditionals=True)
    def graph():
        device = "cpu" if spec.device_id is None else "gpu"
        image = fn.external_source(source=lambda: images, batch=True, device=device, layout="HWC", no_copy=True)
        inputs = fn.external_source(source=lambda: values, num_outputs=len(names), batch=True)
        return _views(image, names, inputs, spec)

    return graph()


def build_decoder(source: Callable[[], list[np.ndarray]], spec: GraphSpec) -> Pipeline:
    """The graph's decoder alone, on the encoded images that `source` gives for each run."""

    @pipeline_def(**_options(spec))  # as the whole graph: what one costs is part of what the other does
    def graph():
        return decode(fn.external_source(source=source, batch=True), spec)

    return graph()


def _options(spec: GraphSpec) -> dict[str, Any]:
    """Of a pipeline."""
    return {
        "batch_size": spec.batch_size,
        "num_threads": spec.threads,
        "device_id": spec.device_id,
        "prefetch_queue_depth": spec.prefetch,
        "exec_dynamic": True,  # outputs then own their memory, so that tensors can share it
    }


def _load_operators(spec: GraphSpec) -> list[str]:
    """Loads the operators of a graph, and names its inputs beside the images. Raises `UserError` if it cannot be."""
    if spec.sixteen_bit and any(
        view.jitter and view.jitter.colour for view in (spec.preset.puzzle, spec.preset.anchor)
    ):
        raise UserError(
            "data.views: this preset changes hue and saturation, which 16-bit images do not allow; use grayscale"
        )
    try:
        load_plugin()
    except BuildError as error:
        raise UserError(str(error)) from None
    # a preset always needs the same arguments: those of any one sample name them
    sample = draw_view_params(
        spec.preset,
        Slots(np.zeros(1, np.int64), np.zeros(1, np.int64)),
        seed=0,
        sizes=np.ones((1, 2), np.int64),
        image_size=spec.image_size,
        grids=spec.grids,
    )
    return list(_arguments(sample, spec.preset))


def _views(image, names: list[str], inputs, spec: GraphSpec) -> tuple:
    """The graph's outputs, of images that are decoded and the inputs that `names` are of."""
    arguments = {name: inputs[place] for place, name in enumerate(names)}  # DALI takes no zip(strict=True) here
    whole = None if spec.preset.puzzle.crop and spec.preset.anchor.crop else _resize(image, spec)
    puzzle, anchor = (
        _distort(_crop(image, name, arguments, spec) if view.crop else whole, name, view, arguments, spec)
        for name, view in (("puzzle", spec.preset.puzzle), ("anchor", spec.preset.anchor))
    )
    return tuple(
        fn.fastfgssl_views(
            puzzle,
            anchor,
            grids=list(spec.grids),
            mean=list(spec.mean),
            std=list(spec.std),
            dtype=types.FLOAT16 if spec.half else types.FLOAT,
            **{name: arguments[name] for name in _fan_out_arguments(spec) if name in arguments},
        )
    )


def decode(encoded, spec: GraphSpec):
    """RGB of any supported format, upright."""
    return fn.decoders.image(
        encoded,
        device="cpu" if spec.device_id is None else "mixed",
        hw_decoder_load=spec.hw_decoder_load,
        output_type=types.RGB,
        dtype=types.UINT16 if spec.sixteen_bit else types.UINT8,
    )


def _arguments(params: ViewParams, preset: Preset) -> dict[str, np.ndarray]:
    """The graph's inputs beside the images, by name."""
    arguments = {"puzzle_flags": view_flags(params.puzzle), "anchor_flags": view_flags(params.anchor)}
    if params.permutations:
        arguments["permutations"] = np.concatenate(params.permutations, axis=1)
    for name, view in (("puzzle", params.puzzle), ("anchor", params.anchor)):
        if view.sigma is not None:
            arguments[f"{name}_sigma"] = view.sigma
        if view.crop is not None:
            # DALI orders coordinates as the axes of an image: y, x
            arguments[f"{name}_crop_start"] = view.crop[:, [1, 0]]
            arguments[f"{name}_crop_end"] = view.crop[:, [3, 2]]
        if view.jitter is not None:
            for column, part in enumerate(_jitter_parts(getattr(preset, name))):
                arguments[f"{name}_{part}"] = view.jitter[:, column]
        if view.affine is not None:
            arguments[f"{name}_affine"] = view.affine
    # DALI refuses strided arrays
    return {name: np.ascontiguousarray(values) for name, values in arguments.items()}


def _fan_out_arguments(spec: GraphSpec) -> tuple[str, ...]:
    on_cpu = ("puzzle_sigma", "anchor_sigma") if spec.device_id is None else ()
    return ("puzzle_flags", "anchor_flags", "permutations", *on_cpu)


def _jitter_parts(view: View) -> tuple[str, ...]:
    return JITTER_PARTS if view.jitter.colour else JITTER_PARTS[:2]


def view_flags(view: ViewDraws) -> np.ndarray:
    """int32 [B], the operator's flags of a view."""
    return (FLIP * view.flip + GRAYSCALE * view.grayscale + SOLARISE * view.solarise).astype(np.int32)


def _resize(image, spec: GraphSpec, **region):
    """The image, or a region of it, at the size of the views."""
    if spec.device_id is None:
        return fn.fastfgssl_resize(image, size=spec.image_size, interpolation=spec.preset.interpolation, **region)
    return fn.resize(
        image,
        resize_x=spec.image_size,
        resize_y=spec.image_size,
        interp_type=_INTERPOLATION[spec.preset.interpolation],
        antialias=True,
        **region,
    )


def _crop(image, name: str, arguments: dict, spec: GraphSpec):
    return _resize(image, spec, roi_start=arguments[f"{name}_crop_start"], roi_end=arguments[f"{name}_crop_end"])


def _distort(image, name: str, view: View, arguments: dict, spec: GraphSpec):
    """What is done to one view before the views operator, in the order of the fields of `View`."""
    # stock operators for geometry and intensity do not take uint16; a cast back rounds and saturates
    as_float = spec.sixteen_bit and (view.affine or view.jitter)
    if as_float:
        image = fn.cast(image, dtype=types.FLOAT)
    if view.affine:
        # without a fill value, coordinates outside the image are clamped to its edge
        image = fn.warp_affine(image, matrix=arguments[f"{name}_affine"], interp_type=types.INTERP_LINEAR)
    if view.jitter:
        parts = {part: arguments[f"{name}_{part}"] for part in _jitter_parts(view)}
        if view.jitter.colour:
            image = fn.color_twist(image, **parts)
        else:
            image = fn.brightness_contrast(image, contrast_center=32768 if spec.sixteen_bit else 128, **parts)
    if as_float:
        image = fn.cast(image, dtype=types.UINT16)
    if view.blur and spec.device_id is not None:
        image = _blur(image, arguments[f"{name}_sigma"])
    return image


def _blur(image, sigma):
    if sigma > 0:
        image = fn.gaussian_blur(image, sigma=sigma)
    return image
