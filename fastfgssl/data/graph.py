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
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import BatchInfo

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Needs
from fastfgssl.data.presets import JITTER_PARTS, Preset, ViewSpec, find_preset
from fastfgssl.data.view_params import ViewDraws, ViewParams
from fastfgssl.kernels.build import BuildError, load_plugin
from fastfgssl.kernels.fan_out.reference import FLIP, GRAYSCALE, SOLARISE
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import cores_per_rank
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
    needs: Needs
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

    def __post_init__(self) -> None:
        jitters = [view.jitter for view in (self.preset.puzzle, self.preset.anchor)]
        if self.sixteen_bit and any(jitter and jitter.colour for jitter in jitters):
            raise UserError(
                "data.views: this preset changes hue and saturation, which 16-bit images do not allow; use grayscale"
            )

    @classmethod
    def of(
        cls, config: Config, needs: Needs, world: World, *, sixteen_bit: bool, preset: Preset | None = None
    ) -> GraphSpec:
        """The graph of each rank in training; preset: in the place of that of `config`."""
        data, on_gpu = config.data, world.device.type == "cuda"
        return cls(
            batch_size=config.train.batch_size // world.size,
            image_size=data.image_size,
            preset=preset or find_preset(data.views),
            needs=needs,
            mean=data.mean,
            std=data.std,
            half=on_gpu and config.train.precision in ("bfloat16", "float16"),
            sixteen_bit=sixteen_bit,
            device_id=world.device.index if on_gpu else None,
            threads=data.threads or cores_per_rank(world.local_size),
            prefetch=data.prefetch,
            hw_decoder_load=data.hw_decoder_load,
        )


class GraphInput(NamedTuple):
    """The encoded images of a batch, uint8 arrays, and the parameters of their views."""

    encoded: list[np.ndarray]
    params: ViewParams


class _Input(NamedTuple):
    """One input of the graph beside the images."""

    name: str
    values: Callable[[ViewParams], np.ndarray]
    """Of a batch: a row an image."""


def build_graph(source: Callable[[int], GraphInput], spec: GraphSpec) -> Pipeline:
    """Builds a pipeline whose i-th run makes the views of `source(i)`; `source` ends it by raising StopIteration.

    Outputs, each a batch of [S, S, 3] and made if `spec.needs` it: anchor, puzzle view, and a puzzle for each grid.
    """
    load_operators()
    inputs = _declare_inputs(spec)

    def batch(info: BatchInfo) -> list:
        encoded, params = source(info.iteration)
        return [encoded, *_values(inputs, params)]

    # only images that are blurred pay for a stock blur
    @pipeline_def(**_options(spec), enable_conditionals=True)
    def graph():
        encoded, *values = fn.external_source(source=batch, num_outputs=1 + len(inputs), batch=True, batch_info=True)
        return _views(decode(encoded, spec), _named(inputs, values), spec)

    return graph()


def build_views(images, params: ViewParams, spec: GraphSpec) -> Pipeline:
    """The graph after its decoder alone: each run makes the views with `params` of `images`, an output of the decoder.

    Nothing is copied: the images stay where the decoder left them, on a GPU in its memory.
    """
    load_operators()
    inputs = _declare_inputs(spec)
    values = _values(inputs, params)

    @pipeline_def(**_options(spec), enable_conditionals=True)
    def graph():
        device = "cpu" if spec.device_id is None else "gpu"
        image = fn.external_source(source=lambda: images, batch=True, device=device, layout="HWC", no_copy=True)
        fed = fn.external_source(source=lambda: values, num_outputs=len(inputs), batch=True)
        return _views(image, _named(inputs, fed), spec)

    return graph()


def build_decoder(source: Callable[[], list[np.ndarray]], spec: GraphSpec) -> Pipeline:
    """The graph's decoder alone, on the encoded images that `source` gives for each run."""

    @pipeline_def(**_options(spec))  # as the whole graph: what one costs is part of what the other does
    def graph():
        return decode(fn.external_source(source=source, batch=True), spec)

    return graph()


def load_operators() -> None:
    """Makes our operators known to DALI. Raises `UserError` if they cannot be built."""
    try:
        load_plugin()
    except BuildError as error:
        raise UserError(str(error)) from None


def decode(encoded, spec: GraphSpec):
    """RGB of any supported format, upright."""
    return fn.decoders.image(
        encoded,
        device="cpu" if spec.device_id is None else "mixed",
        hw_decoder_load=spec.hw_decoder_load,
        output_type=types.RGB,
        dtype=types.UINT16 if spec.sixteen_bit else types.UINT8,
    )


def view_flags(view: ViewDraws) -> np.ndarray:
    """int32 [B], the operator's flags of a view."""
    return (FLIP * view.flip + GRAYSCALE * view.grayscale + SOLARISE * view.solarise).astype(np.int32)


def _options(spec: GraphSpec) -> dict[str, Any]:
    """Of a pipeline."""
    return {
        "batch_size": spec.batch_size,
        "num_threads": spec.threads,
        "device_id": spec.device_id,
        "prefetch_queue_depth": spec.prefetch,
        "exec_dynamic": True,  # outputs then own their memory, so that tensors can share it
    }


def _declare_inputs(spec: GraphSpec) -> list[_Input]:
    """What the views of a preset have to be told of each image."""
    inputs = []
    if any(spec.needs.grids):
        inputs.append(_Input("permutations", lambda params: np.concatenate(params.permutations, axis=1)))
    for name, view in _made(spec):
        # DALI orders coordinates as the axes of an image: y, x
        columns = {
            "flags": (True, view_flags),
            "sigma": (view.blur, lambda draws: draws.sigma),
            "crop_start": (view.crop, lambda draws: draws.crop[:, [1, 0]]),
            "crop_end": (view.crop, lambda draws: draws.crop[:, [3, 2]]),
            "affine": (view.affine, lambda draws: draws.affine),
        }
        for column, part in enumerate(_jitter_parts(view)):
            columns[part] = (True, lambda draws, column=column: draws.jitter[:, column])
        for part, (is_needed, of_view) in columns.items():
            if is_needed:
                values = lambda params, name=name, of_view=of_view: of_view(getattr(params, name))  # noqa: E731
                inputs.append(_Input(f"{name}_{part}", values))
    return inputs


def _made(spec: GraphSpec) -> list[tuple[str, ViewSpec]]:
    """The views that are made, by name."""
    puzzle = spec.needs.view or any(spec.needs.grids)
    return [("puzzle", spec.preset.puzzle)] * puzzle + [("anchor", spec.preset.anchor)] * spec.needs.anchor


def _values(inputs: list[_Input], params: ViewParams) -> list[np.ndarray]:
    # DALI refuses strided arrays
    return [np.ascontiguousarray(given.values(params)) for given in inputs]


def _named(inputs: list[_Input], nodes) -> dict[str, Any]:
    return {given.name: nodes[place] for place, given in enumerate(inputs)}  # DALI takes no zip(strict=True) here


def _views(image, inputs: dict[str, Any], spec: GraphSpec) -> tuple:
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


def _jitter_parts(view: ViewSpec) -> tuple[str, ...]:
    if view.jitter is None:
        return ()
    return JITTER_PARTS if view.jitter.colour else JITTER_PARTS[:2]


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


def _crop(image, name: str, inputs: dict[str, Any], spec: GraphSpec):
    return _resize(image, spec, roi_start=inputs[f"{name}_crop_start"], roi_end=inputs[f"{name}_crop_end"])


def _distort(image, name: str, view: ViewSpec, inputs: dict[str, Any], spec: GraphSpec):
    """What is done to one view before the views operator, in the order of the fields of `ViewSpec`."""
    # stock operators for geometry and intensity do not take uint16; a cast back rounds and saturates
    as_float = spec.sixteen_bit and (view.affine or view.jitter)
    if as_float:
        image = fn.cast(image, dtype=types.FLOAT)
    if view.affine:
        # without a fill value, coordinates outside the image are clamped to its edge
        image = fn.warp_affine(image, matrix=inputs[f"{name}_affine"], interp_type=types.INTERP_LINEAR)
    if view.jitter:
        parts = {part: inputs[f"{name}_{part}"] for part in _jitter_parts(view)}
        if view.jitter.colour:
            image = fn.color_twist(image, **parts)
        else:
            image = fn.brightness_contrast(image, contrast_center=32768 if spec.sixteen_bit else 128, **parts)
    if as_float:
        image = fn.cast(image, dtype=types.UINT16)
    if view.blur and spec.device_id is not None:
        image = _blur(image, inputs[f"{name}_sigma"])
    return image


def _blur(image, sigma):
    if sigma > 0:
        image = fn.gaussian_blur(image, sigma=sigma)
    return image
