"""Runs a function on several gloo ranks, each a process of its own, as torchrun would start them."""

from __future__ import annotations

import importlib.util
import inspect
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.multiprocessing

from fastfgssl.runtime.distributed import start_world


def run_on_ranks(function: Callable, world_size: int, *arguments, join: bool = True) -> list:
    """Results of function(world, *arguments) on each rank, in the order of ranks. `function` is not a nested one.

    join: False leaves it to the function to join the ranks, and gives it None for a world.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # a process that has seen a GPU cannot give it to those that are forked from it
    method = "spawn" if torch.cuda.is_available() else "forkserver"
    results = torch.multiprocessing.get_context(method).SimpleQueue()
    place = (inspect.getfile(function), function.__module__, function.__name__)
    arguments = (world_size, port, results, place, arguments, join, dict(os.environ))
    torch.multiprocessing.start_processes(_run, arguments, nprocs=world_size, start_method=method)
    collected = dict(results.get() for _ in range(world_size))
    return [torch.load(collected[rank], weights_only=False) for rank in range(world_size)]


def _find(file: str, module: str, name: str) -> Callable:
    """By its file: pytest gives the modules of tests names that another process cannot import."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return getattr(sys.modules[module], name)


def _run(
    rank: int, world_size: int, port: int, results, place: tuple, arguments: tuple, join: bool, environment: dict
) -> None:
    os.environ.update(environment)
    function = _find(*place)
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with start_world("cpu") if join else nullcontext() as world:
        result = function(world, *arguments)
    # by file: a tensor in a queue lives only as long as the process that made it
    with tempfile.NamedTemporaryFile(suffix=".pt", delete=False) as file:
        torch.save(result, file)
    results.put((rank, file.name))
