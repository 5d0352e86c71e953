"""Compiles our C++ and CUDA on first use and caches the libraries: the DALI plugin, and the operators of tensors.

With g++ alone a library works on the CPU; where nvcc is on the PATH on GPUs too, and an nvcc that fails is an error,
never a silent build without the GPU. The cache key covers sources, flags, compilers, processor and DALI's version: an
update of any of them builds anew, and machines that share a home folder do not share machine code.

FASTFGSSL_MARCH names the processors to compile for, such as x86-64-v3, where one machine builds for many, as for an
image of a container: the key then leaves this processor out, and the code serves all of `_CUDA_ARCHITECTURES`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fastfgssl.kernels import cache

log = logging.getLogger("fastfgssl.kernels.build")

_SOURCES = Path(__file__).parent
_OPTIMISATION = ["-std=c++20", "-O3", "-fPIC"]
# native code; no fusing of multiply and add, which would round differently from the reference
_HOST_ONLY = ["-march=native", "-ffp-contract=off"]
_CUDA_ARCHITECTURES = (80, 90, 100)
_OLDEST_GCC = 11
_OUTPUT = "library.so"


class BuildError(RuntimeError):
    """A library cannot be built or loaded: says which compiler is missing, too old, or what it printed."""


class Library(NamedTuple):
    """What one shared library is made of."""

    name: str
    sources: tuple[str, ...]
    """In C++, for the host."""
    cuda_sources: tuple[str, ...]
    """Left out where there is no nvcc."""
    uses_dali: bool


PLUGIN = Library("views", ("fan_out/dali_operator.cc", "resize/dali_operator.cc"), ("fan_out/dali_operator.cu",), True)
TENSORS = Library("tensors", ("fan_out/tensors.cc",), ("fan_out/tensors.cu",), False)


@functools.cache
def load_plugin() -> None:
    """Builds the plugin if need be and makes `fn.fastfgssl_views` and `fn.fastfgssl_resize` known to DALI."""
    from nvidia.dali import plugin_manager

    path = build(PLUGIN)
    with _load_errors(path):
        plugin_manager.load_library(str(path))


@functools.cache
def load_tensors() -> ctypes.CDLL:
    """The operators of tensors, built if need be. Raises `BuildError`."""
    path = build(TENSORS)
    with _load_errors(path):
        return ctypes.CDLL(str(path))


class Plugin(NamedTuple):
    """The plugin as it was loaded."""

    backends: tuple[str, ...]  # cpu, gpu
    compilers: str  # what builds it on this machine, with versions


def describe_plugin() -> Plugin:
    """Loads the plugin, built if need be, and says what DALI has found in it. Raises `BuildError`."""
    from nvidia.dali import backend

    load_plugin()
    registered = {"cpu": backend.RegisteredCPUOps(), "gpu": backend.RegisteredGPUOps()}
    host, nvcc = _find_host_compiler(), shutil.which("nvcc")
    compilers = f"{shlex.join(host)} {_output([*host, '-dumpfullversion', '-dumpversion'])}"
    release = re.search(r"release ([\d.]+)", _output([nvcc, "--version"])) if nvcc else None
    nvcc_says = f"nvcc {release[1] if release else 'of unknown version'}" if nvcc else "no nvcc on the PATH"
    return Plugin(
        tuple(name for name, operators in registered.items() if "FastfgsslViews" in operators),
        f"{compilers}, {nvcc_says}",
    )


def build(library: Library, folder: Path | None = None) -> Path:
    """The library's path, built unless the cache holds it; ranks that start together wait for the one that builds.

    folder: the cache; default $FASTFGSSL_CACHE, else fastfgssl in $XDG_CACHE_HOME or ~/.cache; where that cannot be
    written, or others may write there too, a folder of this user alone in the system's folder for temporary files.
    """
    commands = _build_commands(library)
    name = f"{library.name}_{_key(library, commands)}.so"
    refused = []
    for place in [folder] if folder else cache.folders():
        try:
            return _built(commands, place / name)
        except OSError as error:
            refused.append(f"{place}: {error.strerror or error}")
            log.info("the cache %s", refused[-1])
    if not refused:
        raise BuildError("there is no home folder to build the operators in: set FASTFGSSL_CACHE")
    raise BuildError(f"cannot build in the cache {'; nor in '.join(refused)}; set FASTFGSSL_CACHE")


def _built(commands: _Commands, path: Path) -> Path:
    """`path`, built if need be. Raises OSError where that cannot be, or others might have put something else there."""
    cache.open_folder(path.parent)
    if cache.is_whole(path):
        return path
    with cache.locked(path.parent):
        if not cache.is_whole(path):
            log.info("building %s with %s (once)", path.name, commands.link[0])
            with cache.draft(path) as folder:
                with ThreadPoolExecutor(len(commands.compile)) as compilers:
                    list(compilers.map(lambda command: _run(command, folder, path.parent), commands.compile))
                _run(commands.link, folder, path.parent)
                cache.keep(folder / _OUTPUT, path)
    return path


@contextmanager
def _load_errors(path: Path) -> Iterator[None]:
    """Says in one line that a library cannot be loaded, as from a file system without execution."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BuildError(
            f"cannot load {path}: {reason}; set FASTFGSSL_CACHE to a folder whose files may be executed"
        ) from None


_OUTPUT = "library.so"


class _Commands(NamedTuple):
    """What makes `_OUTPUT` in the folder it runs in."""

    compile: list[list[str]]  # each on its own
    link: list[str]


def _build_commands(library: Library) -> _Commands:
    host = _find_host_compiler()
    nvcc = shutil.which("nvcc")
    processors = _chosen_processors()
    host_only = [f"-march={processors}" if processors and "-march" in flag else flag for flag in _HOST_ONLY]
    compile_flags, link_flags = [], []
    if library.uses_dali:
        import nvidia.dali.sysconfig as dali

        compile_flags, link_flags = dali.get_compile_flags(), dali.get_link_flags()
    # nvcc hands sources in C++ to the same compiler, with its own headers
    if nvcc:
        link = [nvcc, "-ccbin", host[0]]
        compile_host = [*link, "-Xcompiler", ",".join([*_OPTIMISATION, *host_only])]
    else:
        link = host
        compile_host = [*host, *_OPTIMISATION, *host_only, *([f"-I{_cuda_headers()}"] if library.uses_dali else [])]
    commands = [[*compile_host, *compile_flags, "-c", str(_SOURCES / source)] for source in library.sources]
    if nvcc:
        compile_cuda = [*link, "-std=c++20", "-O3", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr"]
        compile_cuda += [*_architecture_flags(), *compile_flags, "-c"]
        commands += [[*compile_cuda, str(_SOURCES / source)] for source in library.cuda_sources]
    objects = [f"{index}.o" for index in range(len(commands))]
    commands = [[*command, "-o", name] for command, name in zip(commands, objects, strict=True)]
    return _Commands(commands, [*link, "-shared", *objects, "-o", _OUTPUT, *link_flags])


def _find_host_compiler() -> list[str]:
    chosen = os.environ.get("CXX") or "g++"
    try:
        command = shlex.split(chosen)
    except ValueError as error:  # a quotation mark without its other one
        raise BuildError(f"CXX = {chosen!r}: is no command: {error}") from None
    if not command:
        raise BuildError(f"CXX = {chosen!r}: names no compiler; unset it for g++")
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"no C++ compiler: {command[0]} is not on the PATH; install g++ {_OLDEST_GCC} or newer, or set CXX"
        )
    version = _output([*command, "-dumpversion"])
    if not re.match(r"\d", version):
        raise BuildError(f"{shlex.join(command)} is no C++ compiler: it gives no version; set CXX")
    if "clang" not in _output([*command, "--version"]) and int(version.split(".")[0]) < _OLDEST_GCC:
        raise BuildError(f"{command[0]} {version} is too old: install g++ {_OLDEST_GCC} or newer, or set CXX")
    return command


def _cuda_headers() -> Path:
    """CUDA's headers as pip installs them beside torch; DALI's own headers include them, for the CPU too."""
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path}:
        include = Path(site) / "nvidia" / "cu13" / "include"
        if (include / "cuda_runtime.h").exists() and (include / "crt" / "host_config.h").exists():
            return include
    raise BuildError(
        "CUDA's headers are missing: pip install nvidia-cuda-runtime nvidia-cuda-crt, or put nvcc on the PATH"
    )


def _architecture_flags() -> list[str]:
    """Machine code for the GPUs of this machine, or for the usual ones where it builds for others or has none."""
    import torch

    devices = range(0 if _chosen_processors() else torch.cuda.device_count())
    found = {"".join(map(str, torch.cuda.get_device_capability(i))) for i in devices}
    architectures = sorted(found) or [str(number) for number in _CUDA_ARCHITECTURES]
    return [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]


def _key(library: Library, commands: _Commands) -> str:
    digest = hashlib.sha256()
    if library.uses_dali:
        from nvidia.dali import __version__ as dali_version

        digest.update(dali_version.encode())
    for source in sorted(path for path in _SOURCES.rglob("*") if path.suffix in (".h", ".cuh", ".cc", ".cu")):
        digest.update(source.read_bytes())
    for command in (*commands.compile, commands.link):  # wherever the sources lie: an installed copy builds the same
        digest.update("\0".join(word.removeprefix(f"{_SOURCES}/") for word in command).encode())
    # the whole command of the host's compiler: behind ccache, say, is another
    for compiler in (_find_host_compiler(), commands.link[:1]):
        digest.update(_output([*compiler, "--version"]).encode())
    digest.update((_chosen_processors() or _processor()).encode())
    return digest.hexdigest()[:16]


def _chosen_processors() -> str | None:
    """The processors to compile for, as -march names them; None for that of this machine."""
    return os.environ.get("FASTFGSSL_MARCH") or None


def _processor() -> str:
    """What -march=native depends on: the instruction sets of this processor."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return " ".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$", info, re.MULTILINE)[:2])


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _run(command: list[str], folder: Path, logs: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        log = logs / "build_failed.log"
        log.write_text(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
        reason = errors[0].strip() if errors else f"exit code {done.returncode}"
        raise BuildError(f"{command[0]} failed: {reason} (all of it in {log})")
