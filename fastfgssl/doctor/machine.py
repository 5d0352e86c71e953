"""What a machine has: versions, the plugin, GPUs, cores and memory, in words, with what is wrong marked."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import GraphSpec, depth_of
from fastfgssl.data.rehearsal import describe, find_heaviest
from fastfgssl.data.stream import rank_slots, whole_archive
from fastfgssl.kernels.build import BuildError, describe_plugin
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.environment import available_cores
from fastfgssl.runtime.memory import available_memory
from fastfgssl.runtime.versions import versions

GIB = 2**30


class Finding(NamedTuple):
    """One line of the report; `advice` says what to do where something is wrong, and is empty where all is well."""

    name: str
    text: str
    advice: str = ""


def examine(world: World) -> list[Finding]:
    """Everything that can be told without the archive; `world.local_size` ranks are to share this machine."""
    known = versions()
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return [
        Finding("python", known["python"]),
        Finding("torch", f"{known['torch']}, {cuda}"),
        Finding("DALI", known["dali"]),
        _driver(),
        _gpus(),
        _plugin(on_gpu=world.device.type == "cuda"),
        _cores(world),
        _load(),
        _memory(),
    ]


def examine_images(config: Config, archive: Archive, world: World) -> Finding:
    """Whether the images of the heaviest batch fit in memory, as they are decoded on the CPU."""
    grids = config.model.grids if any(config.model.grids) else ()
    spec = GraphSpec.of(config, Needs(grids=grids), world, depth=depth_of(archive))
    slots = rank_slots(whole_archive(config, archive), config, world)
    found = find_heaviest(archive, spec, slots, config.train.num_steps(archive.num_samples))
    free = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else available_memory()
    # of those that are on their way, one may be the heaviest
    needed = found.nbytes * (1 if world.device.type == "cuda" else world.local_size)
    advice = "more than half of what is free: lower train.batch_size, or prepare with --short-side"
    return Finding("heaviest batch", f"{describe(found)} on each rank", advice if 2 * needed > free else "")


def _driver() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("driver", "no NVIDIA driver (no nvidia-smi on the PATH)")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return Finding("driver", " ".join(done.stdout.split()) or "nvidia-smi fails", "reinstall the NVIDIA driver")
    advice = "" if torch.cuda.is_available() else "torch cannot use the GPU: it needs a driver for its version of CUDA"
    return Finding("driver", f"NVIDIA {', '.join(sorted(set(done.stdout.split())))}", advice)


def _gpus() -> Finding:
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if not found:
        return Finding("GPUs", "none: training runs on the CPU")
    return Finding("GPUs", ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in found))


def _plugin(*, on_gpu: bool) -> Finding:
    try:
        plugin = describe_plugin()
    except BuildError as error:
        return Finding("plugin", "cannot be built", str(error))
    missing = on_gpu and "gpu" not in plugin.backends
    return Finding(
        "plugin",
        f"builds and loads, for {' and '.join(plugin.backends)} ({plugin.compilers})",
        "built without its GPU part: put nvcc on the PATH" if missing else "",
    )


def _cores(world: World) -> Finding:
    cores, ranks = available_cores(), world.local_size
    what = "GPU" if world.device.type == "cuda" else "rank"
    # one decodes while one feeds the device
    advice = f"fewer than 2 cores a {what}: run fewer ranks or give the job more cores" if cores < 2 * ranks else ""
    return Finding("cores", f"{cores}, {cores / ranks:.3g} for each {what} of {ranks}", advice)


def _load() -> Finding:
    before = _processor_times()
    time.sleep(0.3)
    busy, cores = busy_cores(before, _processor_times()), os.cpu_count() or 1
    advice = "something else is at work here, so what is timed may come out slower" if busy > cores / 4 else ""
    return Finding("load", f"{busy:.1f} of the machine's {cores} cores are busy", advice)


def _processor_times() -> list[int]:
    """Ticks of all cores since the start: user, nice, system, idle, waiting for disks, interrupts (2), stolen."""
    return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def busy_cores(before: Sequence[int], after: Sequence[int]) -> float:
    """How many cores were at work between two readings of the processor times, on average."""
    spent = [now - then for then, now in zip(before, after, strict=True)]
    idle = spent[3] + spent[4]
    return (os.cpu_count() or 1) * (1 - idle / max(1, sum(spent)))


def _memory() -> Finding:
    return Finding("memory", f"{available_memory() / GIB:.1f} GiB available")
