"""The fan-out's CUDA code on the CPU: compiled as it stands, under a stand-in for CUDA (helpers/cuda_stand_in).

Every template instance against the reference bit for bit, in memory that is NaN before and guarded behind; and the same
code with faults planted in it, which the same checker must reject.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfgssl.kernels.fan_out import op
from fastfgssl.kernels.fan_out.reference import fan_out_reference
from helpers.fan_out import SHAPES, make_case, on, require_same_bits
from helpers.further import further
from helpers.paths import HELPERS, ROOT

STAND_IN = HELPERS / "cuda_stand_in"
GUARD = 64  # numbers behind each output
CPU = torch.device("cpu")


def compile_device_code(kernels: Path, target: Path) -> ctypes.CDLL:
    command = [
        "g++",
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-fno-gnu-unique",
        "-ffp-contract=off",
        "-I",
        str(STAND_IN),
        "-x",
        "c++",
    ]
    subprocess.run([*command, str(kernels / "fan_out" / "tensors.cu"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return compile_device_code(ROOT / "kernels", tmp_path_factory.mktemp("device") / "library.so")


def run(library: ctypes.CDLL, case: dict, dtype: torch.dtype, *, offset: int = 0) -> op.Views:
    """The views that device code makes. offset: numbers by which each output begins later than memory does."""
    inputs = on(CPU, case)
    images = [inputs[name] for name in ("puzzle_images", "anchor_images", "puzzle_flags", "anchor_flags")]
    B, H, W, C = images[0].shape
    size = B * H * W * C
    memory = [torch.full((offset + size + GUARD,), torch.nan, dtype=dtype) for _ in range(2 + len(case["grids"]))]
    outputs = [whole[offset : offset + size].view(B, H, W, C).permute(0, 3, 1, 2) for whole in memory]
    call = op._make_call([*images, *inputs["permutations"]], outputs, case["grids"], case["mean"], case["std"])
    op.launch(library, call, CPU, 0)
    assert all(whole[:offset].isnan().all() and whole[offset + size :].isnan().all() for whole in memory)
    return op.Views(outputs[0], outputs[1], tuple(outputs[2:]))


def require_right(library: ctypes.CDLL, case: dict, dtype: torch.dtype, **where) -> None:
    truth = fan_out_reference(**case, dtype=np.float16 if dtype == torch.float16 else np.float32)
    require_same_bits(run(library, case, dtype, **where), truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("source", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "grids"), SHAPES)
def test_device_code_equals_the_reference(library, height, width, grids, channels, source, dtype):
    require_right(library, make_case(height, width, grids, channels=channels, source=source), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_memory_that_is_not_aligned_is_taken(library, dtype):
    require_right(library, make_case(96, 96, (32, 16, 8)), dtype, offset=3)


@pytest.mark.parametrize(("height", "width"), product((1, 2, 37), (1, 3, 61)))
def test_every_small_shape(library, height, width):
    require_right(library, make_case(height, width, (1,), batch=32), torch.float16)


FAULTS = {
    "a wrong tile": ("tile_row * grid.side.divisor + tile_column", "tile_column * grid.side.divisor + tile_row"),
    "a missed last vector": ("v < channels; v++) __stcs(", "v < channels - 1; v++) __stcs("),
    "a swapped channel": ("= source[i * channels + c]", "= source[i * channels + channels - 1 - c]"),
    "always a tile's first column": ("* grid.tile_width.divisor + in_tile_x", "* grid.tile_width.divisor"),
    "older bytes overwritten": ("(words[w] & kept) | (word & ~kept)", "word"),
    "a transposition that is not mirrored": ("flags & kFlip ? width - 1 - place.x : place.x", "place.x"),
    "no flip": ("const bool mirrored = flags & kFlip;", "const bool mirrored = false;"),
    "a last number not written": ("if (i < count * channels)", "if (i < count * channels - 1)"),
}


@pytest.mark.parametrize("fault", [*list(FAULTS)[::2], *further(*list(FAULTS)[1::2])])
def test_the_checker_rejects_wrong_device_code(fault, tmp_path):
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    header = tmp_path / "kernels" / "fan_out" / "device.cuh"
    right, wrong = FAULTS[fault]
    assert header.read_text().count(right) == 1
    header.write_text(header.read_text().replace(right, wrong))
    library = compile_device_code(tmp_path / "kernels", tmp_path / "library.so")
    cases = make_case(96, 96, (32, 16, 8)), make_case(7, 5, (1,))  # with whole vectors, and with none
    with pytest.raises(AssertionError):
        assert all(require_right(library, case, torch.float16) is None for case in cases)
