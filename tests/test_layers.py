"""Imports run one way, and each outside world has one door."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from helpers.paths import ROOT

# from the ground up; a room may import those below it
LAYERS = [
    {"runtime"},
    {"config", "kernels"},
    {"archive"},
    {"models", "loss", "data"},
    {"objectives"},
    {"training"},
    {"evaluation"},
    {"export"},
    {"pretraining", "finetuning"},
    {"doctor", "benchmarks", "comparison", "report"},
    {"commands"},
    {"tools"},
]


def python_files() -> list[Path]:
    return [path for folder in ("fastfgssl", "kernels", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("kernels", "tools"):
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


def imports(path: Path) -> list[str]:
    """Full names of all modules that a file imports, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def layer(name: str) -> int:
    return next(index for index, rooms in enumerate(LAYERS) if name in rooms)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    if room(path) in ("", "__main__"):
        return
    for name in imports(path):
        if name.startswith("fastfgssl.") and not name.startswith("fastfgssl.__"):
            target = name.split(".")[1]
            assert room(path) == target or layer(target) < layer(room(path)), f"{path} imports {name}"
            if room(path) == "kernels":
                assert target == "kernels", f"{path} imports {name}"


def test_the_loop_names_no_objective():
    for path in (ROOT / "fastfgssl" / "training").rglob("*.py"):
        of_objectives = {name for name in imports(path) if name.startswith("fastfgssl.objectives")}
        for name in of_objectives:
            assert re.match(r"fastfgssl\.objectives(\.base\.\w+|\.build_objective)$", name), f"{path} imports {name}"


DOORS = {
    r"torch\.distributed": ["fastfgssl/runtime/"],
    r"nvidia\.dali": ["fastfgssl/data/", "fastfgssl/archive/", "fastfgssl/benchmarks/", "kernels/"],
    r"triton": ["triton_kernel.py", "columns_triton.py"],
    r"pydicom": ["fastfgssl/archive/", "fastfgssl/benchmarks/prepare.py", "fastfgssl/benchmarks/decoding.py"],
    r"imagecodecs": ["fastfgssl/archive/", "fastfgssl/benchmarks/prepare.py", "fastfgssl/benchmarks/decoding.py"],
    r"openpyxl": ["fastfgssl/archive/labels/excel.py"],
    r"(fsspec|s3fs)": ["fastfgssl/archive/sources/remote.py"],
    r"openslide": ["fastfgssl/archive/images/slides.py"],
    r"ray": ["fastfgssl/archive/cluster/"],
    r"requests": ["fastfgssl/archive/sources/dicomweb_client.py"],
    r"zstandard": ["fastfgssl/archive/sources/streams.py"],
    r"timm": ["fastfgssl/models/"],
    r"(onnx|onnxruntime|onnxscript)": ["fastfgssl/export/onnx.py"],
}


@pytest.mark.parametrize("library", DOORS)
def test_each_outside_world_has_one_door(library):
    for path in python_files():
        where = str(path.relative_to(ROOT))
        for name in imports(path):
            # the type of a process group may be named anywhere; only the door calls
            if re.match(rf"{library}(\.|$)", name) and name != "torch.distributed.ProcessGroup":
                assert any(door in where for door in DOORS[library]), f"{where} imports {name}"


def test_only_the_environment_reads_the_ranks():
    for path in python_files():
        if path.name != "environment.py":
            assert not re.search(r"[\"'](LOCAL_)?(RANK|WORLD_SIZE)[\"']", path.read_text()), path


def test_no_file_is_longer_than_a_reader_likes():
    for path in [*python_files(), *(ROOT / "kernels").rglob("*.c[cu]"), *(ROOT / "tests").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 300, path
