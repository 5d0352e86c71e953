"""The fan-out of tensors: every version against the reference bit for bit, registration, bad input."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from fastfgssl.kernels import build
from fastfgssl.kernels.build import TENSORS
from fastfgssl.kernels.fan_out.op import Views, fan_out
from fastfgssl.kernels.fan_out.reference import fan_out_reference
from helpers.fan_out import MEAN, SHAPES, STD, make_case, on, require_same_bits
from helpers.gpu import gpu_case


@pytest.fixture(params=["cpu", gpu_case("cuda")], scope="module")
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors are filled with NaN: what is not written stays so."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("source", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "grids"), SHAPES)
def test_fan_out_equals_reference(height, width, grids, channels, source, dtype, device):
    case = make_case(height, width, grids, channels=channels, source=source)
    truth = fan_out_reference(**case, dtype=np.float16 if dtype == torch.float16 else np.float32)
    views = fan_out(**on(device, case), dtype=dtype)
    require_same_bits(views, truth)
    for view in (views.anchor, views.puzzle_view, *views.puzzles):
        view.fill_(torch.nan)
    assert fan_out(**on(device, case), dtype=dtype, out=views) is views
    require_same_bits(views, truth)


def test_registration(device):
    case = on(device, make_case(12, 20, (4, 2)))
    arguments = [case[name] for name in ("puzzle_images", "anchor_images", "puzzle_flags", "anchor_flags")]
    arguments += [case["permutations"], list(case["grids"]), list(MEAN), list(STD)]
    torch.library.opcheck(torch.ops.fastfgssl.fan_out.default, (*arguments, torch.float16))
    views = fan_out(**case)
    outputs = [views.anchor, views.puzzle_view, *views.puzzles]
    torch.library.opcheck(torch.ops.fastfgssl.fan_out_into.default, (*arguments, outputs))


def test_no_graph_break_under_compile(device):
    case = on(device, make_case(12, 20, (4, 2)))

    def total(images):
        return fan_out(**case | {"puzzle_images": images}).puzzles[0].float().sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(case["puzzle_images"]), total(case["puzzle_images"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"puzzle_images": torch.zeros(2, 8, 8, 3)}, r"puzzle_images: must be a uint8 or uint16 .* got torch.float32"),
        ({"anchor_images": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}, r"anchor_images: must be .* \[2, 8, 8, 3\]"),
        ({"grids": (3,)}, "grid = 3: must be 1 to 64 and divide the images' height 8 and width 8"),
        ({"grids": (2, 4)}, "permutations: must be one for each of at most 16 grids, got 1 for 2"),
        ({"permutations": [torch.zeros(2, 4)]}, r"permutations: must be int64 \[2, 4\] for 2, got torch.float32"),
        ({"puzzle_flags": torch.zeros(2)}, r"puzzle_flags: must be int32 \[2\], got torch.float32 \[2\]"),
        ({"anchor_flags": torch.zeros(2, dtype=torch.int32, device="meta")}, "anchor_flags: must be on cpu"),
        ({"mean": (0.0, 0.0)}, r"mean: must have one value or one a channel \(3\), got 2"),
        ({"std": (0.0,)}, "std: must be greater than 0"),
        ({"dtype": torch.bfloat16}, "dtype: must be float16 or float32, got torch.bfloat16"),
        ({"out": Views(*torch.zeros(2, 2, 3, 8, 8), ())}, "out: must have a puzzle for each of 1 grids, got 0"),
        (
            {"out": Views(*torch.zeros(2, 2, 3, 8, 8), (torch.zeros(2, 3, 8, 8),))},
            r"out: must be torch.float16 \[2, 3, 8, 8\], channels-last, on cpu, got torch.float32",
        ),
    ],
)
def test_bad_arguments_are_named(changes, message):
    case = on(torch.device("cpu"), make_case(8, 8, (2,), batch=2))
    with pytest.raises(ValueError, match=message):
        fan_out(**case | changes)


@pytest.mark.parametrize(
    ("side", "flags", "most"), [(8, 32, 31), (8, -1, 31), (12, 16, "15 for images that are not square")]
)
def test_flags_that_there_are_not_are_named_in_debug_mode_and_harmless_without(side, flags, most, monkeypatch, device):
    case = on(device, make_case(8, side, (2,), batch=2))
    case["anchor_flags"][1] = flags
    known = case | {"anchor_flags": case["anchor_flags"] & (31 if side == 8 else 15)}
    for got, want in zip(fan_out(**case)[:2], fan_out(**known)[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    monkeypatch.setenv("FASTFGSSL_DEBUG", "1")
    with pytest.raises(ValueError, match=f"anchor_flags: must be 0 to {most}, got {flags}"):
        fan_out(**case)


def test_what_is_no_permutation_is_named_in_debug_mode(monkeypatch):
    monkeypatch.setenv("FASTFGSSL_DEBUG", "1")
    case = on(torch.device("cpu"), make_case(8, 8, (2,), batch=2))
    case["permutations"][0][1, 0] = case["permutations"][0][1, 1]
    with pytest.raises(ValueError, match=r"permutation: row 1 is not a permutation of 0\.\.3"):
        fan_out(**case)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler")
def test_no_cuda_kernel_spills_registers(tmp_path):
    """Compiled for every GPU that is supported; read from the assembler's report."""
    source = build._SOURCES / TENSORS.cuda_sources[0]
    command = ["nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "--fatbin", "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in build._CUDA_ARCHITECTURES]
    command += [str(source), "-o", str(tmp_path / "tensors.fatbin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    # four kinds of input and output, each with 1 and 3 channels; and what describes samples
    assert len(report) == (8 + 4) * len(build._CUDA_ARCHITECTURES)
    assert set(report) == {("0", "0", "0")}
    assert all(f"'sm_{sm}'" in done.stderr for sm in (80, 90, 100))
