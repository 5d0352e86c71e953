"""Compiles the DALI plugin on first use and caches it.

With g++ alone the plugin has the CPU backend; where nvcc is on the PATH it has both, and an nvcc that fails is an
error, never a silent build without the GPU. The cache key covers sources, flags, compilers, processor and DALI's
version: an update of any of them builds anew, and machines that share a home folder do not share machine code.

FASTFGSSL_MARCH names the processors to compile for, such as x86-64-v3, where one machine builds for many, as for an
image of a container: the key then leaves this processor out, and the code serves all of `_CUDA_ARCHITECTURES`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

_SOURCES = Path(__file__).parent
_OPTIMISATION = ["-std=c++20", "-O3", "-fPIC"]
# native code; no fusing of multiply and add, which would round differently from the reference
_HOST_ONLY = ["-march=native", "-ffp-contract=off"]
_HOST_SOURCES = {"fan_out": "fan_out/dali_operator.cc", "resize": "resize/dali_operator.cc"}  # object: source
_CUDA_SOURCE = "fan_out/dali_operator.cu"
_CUDA_ARCHITECTURES = (80, 90, 100)
_OLDEST_GCC = 11
_loaded: set[Path] = set()


class BuildError(RuntimeError):
    """The plugin cannot be built: says which compiler is missing, too old, or what it printed."""


def load_plugin() -> None:
    """Builds the plugin if need be and makes `fn.fastfgssl_views` and `fn.fastfgssl_resize` known to DALI."""
    from nvidia.dali import plugin_manager

    path = build_plugin()
    if path not in _loaded:
        plugin_manager.load_library(str(path))
        _loaded.add(path)


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


def build_plugin(cache: Path | None = None) -> Path:
    """The plugin's path, built unless the cache holds it; ranks that start together wait for the one that builds.

    cache: default $FASTFGSSL_CACHE, else fastfgssl in $XDG_CACHE_HOME or ~/.cache.
    """
    commands = _build_commands()
    folder = cache or _default_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot make the cache folder {folder}: {error.strerror}; set FASTFGSSL_CACHE") from None
    plugin = folder / f"views_{_key(commands)}.so"
    if plugin.exists():
        return plugin
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not plugin.exists():
            print(f"fastfgssl: building {plugin.name} with {commands.link[0]} (once)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as build:
                with ThreadPoolExecutor(len(commands.compile)) as compilers:
                    list(compilers.map(lambda command: _run(command, Path(build)), commands.compile))
                _run(commands.link, Path(build))
                (Path(build) / "views.so").replace(plugin)
    return plugin


def _default_cache() -> Path:
    if explicit := os.environ.get("FASTFGSSL_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfgssl"


class _Commands(NamedTuple):
    """What makes `views.so` in the folder it runs in."""

    compile: list[list[str]]  # each on its own
    link: list[str]


def _build_commands() -> _Commands:
    import nvidia.dali.sysconfig as dali

    host = _find_host_compiler()
    nvcc = shutil.which("nvcc")
    processors = _chosen_processors()
    host_only = [f"-march={processors}" if processors and "-march" in flag else flag for flag in _HOST_ONLY]
    # nvcc hands these sources to the same compiler, with its own headers
    compile_host = (
        [nvcc, "-ccbin", host[0], "-Xcompiler", ",".join([*_OPTIMISATION, *host_only])]
        if nvcc
        else [*host, *_OPTIMISATION, *host_only, f"-I{_cuda_headers()}"]
    )
    flags = dali.get_compile_flags()
    objects = [f"{name}.o" for name in _HOST_SOURCES]
    commands = [
        [*compile_host, *flags, "-c", str(_SOURCES / source), "-o", target]
        for source, target in zip(_HOST_SOURCES.values(), objects, strict=True)
    ]
    if nvcc is None:
        return _Commands(commands, [*host, "-shared", *objects, "-o", "views.so", *dali.get_link_flags()])
    compile_cuda = [nvcc, "-ccbin", host[0], "-std=c++20", "-O3", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr"]
    source = str(_SOURCES / _CUDA_SOURCE)
    commands.append([*compile_cuda, *_architecture_flags(), *flags, "-c", source, "-o", "cuda.o"])
    link = [nvcc, "-ccbin", host[0], "-shared", *objects, "cuda.o", "-o", "views.so", *dali.get_link_flags()]
    return _Commands(commands, link)


def _find_host_compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"no C++ compiler: {command[0]} is not on the PATH; install g++ {_OLDEST_GCC} or newer, or set CXX"
        )
    version = _output([*command, "-dumpversion"])
    if not re.match(r"\d", version):
        raise BuildError(f"{shlex.join(command)} is no C++ compiler: it does not tell its version; set CXX")
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


def _key(commands: _Commands) -> str:
    from nvidia.dali import __version__ as dali_version

    digest = hashlib.sha256(dali_version.encode())
    for source in sorted(path for path in _SOURCES.rglob("*") if path.suffix in (".h", ".cc", ".cu")):
        digest.update(source.read_bytes())
    for command in (*commands.compile, commands.link):
        digest.update("\0".join(command).encode())
        digest.update(_output([command[0], "--version"]).encode())
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


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        log = folder.parent / "build_failed.log"
        log.write_text(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
        reason = errors[0].strip() if errors else f"exit code {done.returncode}"
        raise BuildError(f"{command[0]} failed: {reason} (all of it in {log})")
