"""The DALI graph: encoded bytes and view parameters in, normalised views and puzzles out. One function for CPU and GPU.

    external_source -> decode -> resize or crop -> affine -> colour jitter -> blur -> views operator

Turns, flips, grayscale, solarise, normalisation, cast and all puzzles are one pass of our own operator
(kernels/fan_out). On the CPU that pass blurs too and the resize is ours, since DALI's stock CPU operators for both take
several times as long; on a GPU both are stock. Nothing here is random: every parameter comes in with the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.tensors import TensorListCPU, TensorListGPU
from nvidia.dali.types import BatchInfo

from fastfgssl.data.decode import Encoded, GraphSpec, decode, decoder_inputs, pipeline_options
from fastfgssl.data.presets import JITTER_PARTS, ViewSpec
from fastfgssl.data.view_params import ViewDraws, ViewParams
from fastfgssl.kernels.build import BuildError, load_plugin
from fastfgssl.kernels.fan_out.reference import FLIP, GRAYSCALE, SOLARISE, TRANSPOSE, VERTICAL_FLIP
from fastfgssl.runtime.errors import UserError

_INTERPOLATION = {"linear": types.INTERP_LINEAR, "cubic": types.INTERP_CUBIC}


class GraphInput(NamedTuple):
    """The encoded images of a batch, and the parameters of their views."""

    encoded: Encoded
    params: ViewParams


class _Input(NamedTuple):
    """One input of the graph beside the images."""

    name: str
    values: Callable[[ViewParams], np.ndarray]
    """The values for a batch: a row per image."""


def build_graph(source: Callable[[int], GraphInput], spec: GraphSpec) -> Pipeline:
    """Builds a pipeline whose i-th run makes the views of `source(i)`; `source` ends it by raising StopIteration.

    Outputs, each a batch of [S, S, C] and made if `spec.needs` it: anchor, puzzle view, and a puzzle for each grid.
    """
    load_operators()
    inputs = _declare_inputs(spec)

    of_decoder = 3 if spec.depth == "own" else 1

    def batch(info: BatchInfo) -> list:
        encoded, params = source(info.iteration)
        return [*decoder_inputs(encoded), *_values(inputs, params)]

    # only images that are blurred pay for a stock blur
    @pipeline_def(**pipeline_options(spec), enable_conditionals=True)
    def graph():
        fed = fn.external_source(source=batch, num_outputs=of_decoder + len(inputs), batch=True, batch_info=True)
        return _views(decode(fed[:of_decoder], spec), _named(inputs, fed[of_decoder:]), spec)

    return graph()


def build_views(images: TensorListCPU | TensorListGPU, params: ViewParams, spec: GraphSpec) -> Pipeline:
    """The graph after its decoder alone: each run makes the views with `params` of `images`, an output of the decoder.

    Nothing is copied: the images stay where the decoder left them, on a GPU in its memory.
    """
    load_operators()
    inputs = _declare_inputs(spec)
    values = _values(inputs, params)

    @pipeline_def(**pipeline_options(spec), enable_conditionals=True)
    def graph():
        device = "cpu" if spec.device_id is None else "gpu"
        image = fn.external_source(source=lambda: images, batch=True, device=device, layout="HWC", no_copy=True)
        fed = fn.external_source(source=lambda: values, num_outputs=len(inputs), batch=True)
        return _views(image, _named(inputs, fed), spec)

    return graph()


def load_operators() -> None:
    """Makes our operators known to DALI. Raises `UserError` if they cannot be built."""
    try:
        load_plugin()
    except BuildError as error:
        raise UserError(str(error)) from None


def view_flags(view: ViewDraws) -> np.ndarray:
    """int32 [B], the operator's flags of a view."""
    flags = FLIP * view.flip + GRAYSCALE * view.grayscale + SOLARISE * view.solarise
    if view.vertical_flip is not None:
        flags += VERTICAL_FLIP * view.vertical_flip
    if view.transpose is not None:
        flags += TRANSPOSE * view.transpose
    return flags.astype(np.int32)


def _declare_inputs(spec: GraphSpec) -> list[_Input]:
    """What the views of a preset have to be told of each image."""
    inputs = []
    if any(spec.needs.grids):
        inputs.append(_Input("permutations", lambda params: np.concatenate(params.permutations, axis=1)))
    for name, view in _made(spec):
        # DALI orders coordinates as the axes of an image: y, x
        columns: dict[str, tuple[Any, Callable[[Any], np.ndarray]]] = {
            "flags": (True, view_flags),
            "sigma": (view.blur, lambda draws: draws.sigma),
            "crop_start": (view.crop, lambda draws: draws.crop[:, [1, 0]]),
            "crop_end": (view.crop, lambda draws: draws.crop[:, [3, 2]]),
            "affine": (view.affine, lambda draws: draws.affine),
        }
        for column, part in enumerate(_jitter_parts(view, spec)):
            columns[part] = (True, partial(_jitter_column, column))
        for part, (is_needed, of_view) in columns.items():
            if is_needed:
                inputs.append(_Input(f"{name}_{part}", partial(_of_view, name, of_view)))
    return inputs


def _of_view(name: str, of_view: Callable[[Any], np.ndarray], params: ViewParams) -> np.ndarray:
    return of_view(getattr(params, name))


def _made(spec: GraphSpec) -> list[tuple[str, ViewSpec]]:
    """The views that are made, by name."""
    puzzle = spec.needs.view or any(spec.needs.grids)
    return [("puzzle", spec.preset.puzzle)] * puzzle + [("anchor", spec.preset.anchor)] * spec.needs.anchor


def _values(inputs: list[_Input], params: ViewParams) -> list[np.ndarray]:
    # DALI refuses strided arrays
    return [np.ascontiguousarray(given.values(params)) for given in inputs]


def _jitter_column(column: int, draws: Any) -> np.ndarray:
    return draws.jitter[:, column]


def _named(inputs: list[_Input], nodes: Sequence[DataNode]) -> dict[str, DataNode]:
    return {given.name: nodes[place] for place, given in enumerate(inputs)}  # DALI takes no zip(strict=True) here


def _views(image: DataNode, inputs: dict[str, DataNode], spec: GraphSpec) -> tuple[DataNode, ...]:
    """The graph's outputs, of images that are decoded."""
    views = _made(spec)
    whole = None if all(view.crop for _, view in views) else _resize(image, spec)
    sources = []
    for name, view in views:
        source = _crop(image, name, inputs, spec) if view.crop else whole
        sources.append(_distort(source, name, view, inputs, spec))
    if len(sources) == 1 and spec.needs.anchor:  # the operator's first input is the source of puzzles
        sources *= 2
    on_cpu = ("puzzle_sigma", "anchor_sigma") if spec.device_id is None else ()
    of_operator = ("puzzle_flags", "anchor_flags", "permutations", *on_cpu)
    outputs = fn.fastfgssl_views(
        *sources,
        anchor=spec.needs.anchor,
        view=spec.needs.view,
        grids=[grid for grid in spec.needs.grids if grid],
        mean=list(spec.mean),
        std=list(spec.std),
        dtype=types.FLOAT16 if spec.half else types.FLOAT,
        **{name: inputs[name] for name in of_operator if name in inputs},
    )
    return tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)


def _jitter_parts(view: ViewSpec, spec: GraphSpec) -> tuple[str, ...]:
    """Which numbers of the jitter are used; none where it changes nothing of a gray image."""
    jitter = view.jitter
    if jitter is None or (spec.channels == 1 and not jitter.intensity):
        return ()
    return JITTER_PARTS if jitter.colour and spec.channels == 3 else JITTER_PARTS[:2]


def _resize(image: DataNode, spec: GraphSpec, **region: DataNode) -> DataNode:
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


def _crop(image: DataNode, name: str, inputs: dict[str, DataNode], spec: GraphSpec) -> DataNode:
    return _resize(image, spec, roi_start=inputs[f"{name}_crop_start"], roi_end=inputs[f"{name}_crop_end"])


def _distort(image: DataNode, name: str, view: ViewSpec, inputs: dict[str, DataNode], spec: GraphSpec) -> DataNode:
    """What is done to one view before the views operator, in the order that `ViewSpec` says."""
    # stock operators for geometry and intensity do not take uint16; a cast back rounds and saturates
    jitter = _jitter_parts(view, spec)
    as_float = spec.depth == "16" and (view.affine or jitter)
    if as_float:
        image = fn.cast(image, dtype=types.FLOAT)
    if view.affine:
        # without a fill value, coordinates outside the image are clamped to its edge
        image = fn.warp_affine(image, matrix=inputs[f"{name}_affine"], interp_type=types.INTERP_LINEAR)
    if jitter:
        parts = {part: inputs[f"{name}_{part}"] for part in jitter}
        if jitter == JITTER_PARTS:
            image = fn.color_twist(image, **parts)
        else:
            image = fn.brightness_contrast(image, contrast_center=32768 if spec.depth == "16" else 128, **parts)
    if as_float:
        image = fn.cast(image, dtype=types.UINT16)
    if view.blur and spec.device_id is not None:
        image = _blur(image, inputs[f"{name}_sigma"])
    return image


def _blur(image: DataNode, sigma: DataNode) -> DataNode:
    if sigma > 0:
        image = fn.gaussian_blur(image, sigma=sigma)
    return image
