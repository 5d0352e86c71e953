"""The fan-out of batches that are tensors already: for those who decode by other means than DALI.

Registered with `torch.library` as `fastfgssl::fan_out`: eager, and under `torch.compile` without a graph break. It has
no gradient: its images are integers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fastfgssl.kernels.build import BuildError, load_tensors
from fastfgssl.kernels.fan_out.reference import FLIP, GRAYSCALE, SOLARISE, TRANSPOSE, VERTICAL_FLIP
from fastfgssl.kernels.jigsaw.op import require_permutations

MAX_GRIDS = 16
_WHITE = {torch.uint8: 255, torch.uint16: 65535}
_MAX_SAMPLES = 65535  # of a launch's third axis


class Views(NamedTuple):
    """Normalised views of B images: [B, C, H, W], channels-last in memory."""

    anchor: torch.Tensor
    puzzle_view: torch.Tensor
    puzzles: tuple[torch.Tensor, ...]
    """One for each grid."""


def fan_out(
    puzzle_images: torch.Tensor,
    anchor_images: torch.Tensor,
    *,
    puzzle_flags: torch.Tensor,
    anchor_flags: torch.Tensor,
    permutations: Sequence[torch.Tensor],
    grids: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float16,
    out: Views | None = None,
) -> Views:
    """Anchor, puzzle view and every jigsaw puzzle of a batch, in one pass over its images.

    puzzle_images, anchor_images: uint8 or uint16 [B, H, W, C], the sources of the two views, 1 or 3 channels; *_flags:
    int32 [B], sums of FLIP, GRAYSCALE, SOLARISE, VERTICAL_FLIP and, where H = W, TRANSPOSE (`reference.py`);
    permutations: for each grid int64 [B, grid * grid], tile t of the puzzle is tile permutation[b, t] of the puzzle
    view, row-major; mean, std: one value or one a channel, on a scale where white is 1; dtype: float16 or float32; out:
    views of an earlier call of the same shapes and dtype, to be written over. All on one device. Without `out`, memory
    for new views is taken: on a CPU the system has to map and zero it each time, which takes several times as long as
    the views.

    What is no permutation, and flags that there are not, are found when FASTFGSSL_DEBUG=1; otherwise what the first
    gives is undefined, and the others are passed over. Raises ValueError naming the argument that does not fit,
    `BuildError` where the operator cannot be built.
    """
    mean, std = (_for_channels(name, values, anchor_images) for name, values in (("mean", mean), ("std", std)))
    _require_arguments(
        puzzle_images, anchor_images, puzzle_flags, anchor_flags, permutations, grids, std=std, dtype=dtype
    )
    if os.environ.get("FASTFGSSL_DEBUG") == "1" and not puzzle_images.is_meta and not torch.compiler.is_compiling():
        for permutation, grid in zip(permutations, grids, strict=True):
            require_permutations(permutation, grid)
        _require_flags(puzzle_flags, anchor_flags, is_square=puzzle_images.shape[1] == puzzle_images.shape[2])
    arguments = puzzle_images, anchor_images, puzzle_flags, anchor_flags, list(permutations), list(grids), mean, std
    if out is None:
        anchor, puzzle_view, *puzzles = _fan_out(*arguments, dtype)
        return Views(anchor, puzzle_view, tuple(puzzles))
    outputs = [out.anchor, out.puzzle_view, *out.puzzles]
    _require_outputs(outputs, puzzle_images, len(grids), dtype)
    _fan_out_into(*arguments, outputs)
    return out


def _for_channels(name: str, values: Sequence[float], images: torch.Tensor) -> list[float]:
    """A value for each channel."""
    channels = images.shape[-1] if isinstance(images, torch.Tensor) and images.ndim else 1
    if len(values) not in (1, channels):
        raise ValueError(f"{name}: must have one value or one a channel ({channels}), got {len(values)}")
    return [float(value) for value in values] * (channels // len(values))


def _require_arguments(
    puzzle: Any,
    anchor: Any,
    puzzle_flags: Any,
    anchor_flags: Any,
    permutations: Any,
    grids: Any,
    *,
    std: Any,
    dtype: Any,
) -> None:
    """Raises ValueError naming the first argument that does not fit."""
    for name, images in (("puzzle_images", puzzle), ("anchor_images", anchor)):
        if not isinstance(images, torch.Tensor) or images.dtype not in _WHITE or images.ndim != 4:
            raise ValueError(f"{name}: must be a uint8 or uint16 tensor [B, H, W, C], got {_describe(images)}")
    if puzzle.shape != anchor.shape or puzzle.dtype != anchor.dtype:
        raise ValueError(f"anchor_images: must be {_describe(puzzle)} as the puzzle images, got {_describe(anchor)}")
    B, H, W, C = puzzle.shape
    if C not in (1, 3) or puzzle.numel() == 0:
        raise ValueError(f"puzzle_images: must have 1 or 3 channels and no empty axis, got shape {list(puzzle.shape)}")
    if H * W * C >= 2**31 or B > _MAX_SAMPLES:
        raise ValueError(f"puzzle_images: at most {_MAX_SAMPLES} images of 2^31 - 1 numbers, got {_describe(puzzle)}")
    if len(grids) > MAX_GRIDS or len(permutations) != len(grids):
        raise ValueError(
            f"permutations: must be one for each of at most {MAX_GRIDS} grids, got {len(permutations)} for {len(grids)}"
        )
    for grid in grids:
        if not isinstance(grid, int) or not 1 <= grid <= 64 or H % grid or W % grid:
            raise ValueError(f"grid = {grid}: must be 1 to 64 and divide the images' height {H} and width {W}")
    for name, flags in (("puzzle_flags", puzzle_flags), ("anchor_flags", anchor_flags)):
        if flags.shape != (B,) or flags.dtype != torch.int32:
            raise ValueError(f"{name}: must be int32 [{B}], got {_describe(flags)}")
    for grid, permutation in zip(grids, permutations, strict=True):
        if permutation.shape != (B, grid * grid) or permutation.dtype != torch.int64:
            raise ValueError(
                f"permutations: must be int64 [{B}, {grid * grid}] for {grid}, got {_describe(permutation)}"
            )
    for name, other in (
        ("anchor_images", anchor),
        ("puzzle_flags", puzzle_flags),
        ("anchor_flags", anchor_flags),
        *(("permutations", permutation) for permutation in permutations),
    ):
        if other.device != puzzle.device:
            raise ValueError(f"{name}: must be on {puzzle.device} like the puzzle images, got {other.device}")
    if not all(value > 0 for value in std):
        raise ValueError(f"std: must be greater than 0, got {std}")
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype: must be float16 or float32, got {dtype}")


def _require_flags(puzzle_flags: torch.Tensor, anchor_flags: torch.Tensor, *, is_square: bool) -> None:
    most = FLIP | GRAYSCALE | SOLARISE | VERTICAL_FLIP | (TRANSPOSE if is_square else 0)
    for name, flags in (("puzzle_flags", puzzle_flags), ("anchor_flags", anchor_flags)):
        wrong = flags[(flags < 0) | (flags > most)]
        if wrong.numel():
            reason = "" if is_square else " for images that are not square"
            raise ValueError(f"{name}: must be 0 to {most}{reason}, got {int(wrong[0])}")


def _require_outputs(outputs: list[torch.Tensor], puzzle: torch.Tensor, num_grids: int, dtype: torch.dtype) -> None:
    B, H, W, C = puzzle.shape
    if len(outputs) != 2 + num_grids:
        raise ValueError(f"out: must have a puzzle for each of {num_grids} grids, got {len(outputs) - 2}")
    for view in outputs:
        fits = view.shape == (B, C, H, W) and view.dtype == dtype and view.device == puzzle.device
        if not fits or not view.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"out: must be {dtype} [{B}, {C}, {H}, {W}], channels-last, on {puzzle.device}, got {_describe(view)}"
            )


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


class _Call(ctypes.Structure):
    """`FastfgsslFanOut` of tensors.h."""

    _fields_ = (
        ("puzzle", ctypes.c_void_p),
        ("anchor", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p * (2 + MAX_GRIDS)),
        ("puzzle_flags", ctypes.c_void_p),
        ("anchor_flags", ctypes.c_void_p),
        ("permutations", ctypes.c_void_p * MAX_GRIDS),
        ("workspace", ctypes.c_void_p),
        ("batch", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("num_grids", ctypes.c_int32),
        ("grids", ctypes.c_int32 * MAX_GRIDS),
        ("source_bits", ctypes.c_int32),
        ("output_bits", ctypes.c_int32),
        ("mean", ctypes.c_float * 3),
        ("inverse_std", ctypes.c_float * 3),
    )


def _empty_views(puzzle: torch.Tensor, grids: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    B, H, W, C = puzzle.shape
    return [
        torch.empty(B, C, H, W, dtype=dtype, device=puzzle.device, memory_format=torch.channels_last)
        for _ in range(2 + len(grids))
    ]


def _make_call(inputs: list[torch.Tensor], outputs: list[torch.Tensor], grids: Any, mean: Any, std: Any) -> _Call:
    puzzle, anchor, puzzle_flags, anchor_flags, *permutations = (tensor.data_ptr() for tensor in inputs)
    B, H, W, C = inputs[0].shape
    white = _WHITE[inputs[0].dtype]
    call = _Call(
        puzzle=puzzle,
        anchor=anchor,
        puzzle_flags=puzzle_flags,
        anchor_flags=anchor_flags,
        batch=B,
        height=H,
        width=W,
        channels=C,
        num_grids=len(grids),
        source_bits=8 * inputs[0].element_size(),
        output_bits=8 * outputs[0].element_size(),
    )
    call.outputs[: len(outputs)] = [tensor.data_ptr() for tensor in outputs]
    call.permutations[: len(grids)] = permutations
    call.grids[: len(grids)] = grids
    # rounded to float32 twice, as the DALI operator receives them and as it scales them
    call.mean[:C] = [white * ctypes.c_float(value).value for value in mean]
    call.inverse_std[:C] = [1 / (white * ctypes.c_float(value).value) for value in std]
    return call


_DEVICES = ("cpu", "cuda")


@torch.library.custom_op("fastfgssl::fan_out", mutates_args=(), device_types=_DEVICES)
def _fan_out(
    puzzle: torch.Tensor,
    anchor: torch.Tensor,
    puzzle_flags: torch.Tensor,
    anchor_flags: torch.Tensor,
    permutations: list[torch.Tensor],
    grids: list[int],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    outputs = _empty_views(puzzle, grids, dtype)
    _write([puzzle, anchor, puzzle_flags, anchor_flags, *permutations], outputs, grids, mean, std)
    return outputs


@_fan_out.register_fake
def _fan_out_fake(puzzle, anchor, puzzle_flags, anchor_flags, permutations, grids, mean, std, dtype):
    return _empty_views(puzzle, grids, dtype)


@torch.library.custom_op("fastfgssl::fan_out_into", mutates_args=("outputs",), device_types=_DEVICES)
def _fan_out_into(
    puzzle: torch.Tensor,
    anchor: torch.Tensor,
    puzzle_flags: torch.Tensor,
    anchor_flags: torch.Tensor,
    permutations: list[torch.Tensor],
    grids: list[int],
    mean: list[float],
    std: list[float],
    outputs: list[torch.Tensor],
) -> None:
    _write([puzzle, anchor, puzzle_flags, anchor_flags, *permutations], outputs, grids, mean, std)


def _write(
    inputs: list[torch.Tensor], outputs: list[torch.Tensor], grids: list[int], mean: list[float], std: list[float]
) -> None:
    inputs, device = [tensor.contiguous() for tensor in inputs], inputs[0].device
    call = _make_call(inputs, outputs, grids, mean, std)
    if device.type == "cuda":
        launch(load_tensors(), call, device, torch.cuda.current_stream(device).cuda_stream)
    else:
        load_tensors().fastfgssl_fan_out_cpu(ctypes.byref(call), torch.get_num_threads())


def launch(library: ctypes.CDLL, call: _Call, device: torch.device, stream: int) -> None:
    """Begins a call on a GPU. Raises `BuildError` if `library` was built without nvcc, `RuntimeError` of CUDA's."""
    try:
        workspace_size, run = library.fastfgssl_fan_out_workspace, library.fastfgssl_fan_out_cuda
    except AttributeError:
        raise BuildError("the fan-out of tensors on a GPU needs nvcc: put it on the PATH") from None
    workspace_size.restype, run.restype = ctypes.c_int64, ctypes.c_char_p
    workspace = torch.empty(workspace_size(ctypes.byref(call)), dtype=torch.uint8, device=device)
    call.workspace = workspace.data_ptr()
    error = run(ctypes.byref(call), device.index or 0, ctypes.c_void_p(stream))
    if error is not None:
        raise RuntimeError(f"fan_out: {error.decode()}")
